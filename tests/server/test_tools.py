"""Tools that a target of kind `tool` takes out of a request, and all others, which stay as they are."""

import pytest

from guard.context import RequestContext
from guard.errors import BadRequest
from guard.types import Match
from server.tools import withhold

MATCH = Match("rocket", 3, 0.9, 0.8, "lexical")


def function(name, description="", **properties):
    schema = {"type": "object", "properties": properties}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": schema},
    }


ROCKET, WEATHER = function("launch_rocket"), function("weather", "The weather.", city={"type": "string"})


@pytest.fixture
def context():
    return RequestContext("d", "/v1/chat/completions", 0.0)


async def judge(tools, context):
    """Matches every tool whose name holds "rocket"."""
    return [(MATCH,) if "rocket" in tool.name else () for tool in tools]


async def withheld(context, **body):
    return await withhold(body, context, judge)


async def test_a_matched_tool_goes_and_the_others_stay_as_they_are(context):
    body = {"model": "m", "tools": [WEATHER, ROCKET, function("clock")], "tool_choice": "auto"}
    assert await withhold(body, context, judge) == {**body, "tools": [WEATHER, function("clock")]}
    assert context.withheld == [MATCH]
    assert context.events == [{"event": "tools_withheld", "withheld": 1, "left": 2}]


@pytest.mark.parametrize("tools", [None, [], [WEATHER], "junk", {"a": 1}, ["launch_rocket", 7, None]])
async def test_a_body_without_matched_tools_is_the_very_same(context, tools):
    body = {"model": "m", "tools": tools, "tool_choice": "auto"}
    assert await withhold(body, context, judge) is body
    assert context.withheld == [] and context.events == []


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}, {"tool_choice": "none"}])
async def test_with_the_last_tool_goes_the_field(context, choice):
    assert await withheld(context, model="m", tools=[ROCKET], **choice) == {"model": "m"}


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "function": {"name": "launch_rocket"}},
        {"type": "function", "name": "launch_rocket"},
        {"type": "tool", "name": "launch_rocket"},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "launch_rocket"}]},
    ],
)
async def test_a_choice_of_a_tool_that_is_gone_is_a_bad_request(context, choice):
    with pytest.raises(BadRequest) as error:
        await withheld(context, tools=[WEATHER, ROCKET], tool_choice=choice)
    assert error.value.param == "tool_choice" and error.value.status == 400
    assert context.withheld == [MATCH]


@pytest.mark.parametrize("choice", ["required", {"type": "any"}])
async def test_any_tool_cannot_be_demanded_where_none_is_left(context, choice):
    with pytest.raises(BadRequest):
        await withheld(context, tools=[ROCKET], tool_choice=choice)
    kept = await withheld(context, tools=[ROCKET, WEATHER], tool_choice=choice)
    assert kept == {"tools": [WEATHER], "tool_choice": choice}


async def test_allowed_tools_lose_what_is_gone(context):
    weather, rocket = (
        {"type": "function", "function": {"name": name}} for name in ("weather", "launch_rocket")
    )
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [rocket, weather]}}
    kept = await withheld(context, tools=[ROCKET, WEATHER], tool_choice=choice)
    assert kept["tool_choice"]["allowed_tools"] == {"mode": "required", "tools": [weather]}


async def test_tools_of_every_wire_form_are_known(context):
    flat = {"type": "function", "name": "launch_rocket", "parameters": {}}
    anthropic = {"name": "rocketry", "description": "x", "input_schema": {"type": "object"}}
    space = {"type": "namespace", "name": "pad", "tools": [flat, {"type": "function", "name": "clean"}]}
    empty = {"type": "namespace", "name": "other", "tools": [flat]}
    kept = await withheld(context, tools=[flat, anthropic, space, empty, WEATHER])
    clean = {"type": "namespace", "name": "pad", "tools": [{"type": "function", "name": "clean"}]}
    assert kept["tools"] == [clean, WEATHER]
    choice = {"type": "function", "name": "pad__launch_rocket"}
    with pytest.raises(BadRequest):
        await withheld(context, tools=[space], tool_choice=choice)


async def test_what_a_definition_says_is_judged(context):
    seen = []

    async def look(tools, context):
        seen.extend(tools)
        return [() for _ in tools]

    nested = {"type": "object", "properties": {"launch_pad": {"title": "Pad", "enum": ["x"]}}}
    tool = function("a", "Does it.", where=nested, count={"type": "integer", "description": "How many."})
    deep = schema = {}
    for _ in range(900):
        schema["items"] = schema = {}
    await withhold({"tools": [tool, {"name": "b", "input_schema": deep}]}, context, look)
    assert seen[0].description.split("\n") == ["Does it.", "where", "launch_pad", "Pad", "count", "How many."]
    assert seen[1].description == ""
