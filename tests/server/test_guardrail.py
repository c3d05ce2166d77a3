"""Checks for gateways: what each dialect asks and is told, who may ask, and that whatever cannot be judged is a 503."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI

from guard.crypto import Secrets
from guard.detection.base import Form
from guard.detection.literals import Literals
from guard.errors import Forbidden, Unauthorized
from guard.pipeline import Guard
from guard.snapshot import Snapshot
from guard.targets import TargetSpec
from guard.types import Detection, Prompt, Rung, Scope, Span
from server.auth import ROLES, Permission, Principal
from server.checks import Checker
from server.dialects import DIALECTS
from server.guardrail import Guardrail, guardrail_router
from server.routes import TABLE, Access

NEMO, LIBRARY, REQUEST, RESPONSE, MASK, LITELLM = DIALECTS
SECRET = "Jane Doe was born in Vintry on a rainy day."
CLEAN = "The weather is fine."
ASKED, HARMLESS, BREAKS = "Who is Jane Doe?", "Who is Bob?", "{% raise %}"


@dataclass(frozen=True)
class Compiled:
    target_id: str
    spec: TargetSpec
    scope: Scope
    forms: tuple[Form, ...]
    spoken: None = None


@dataclass
class Gate:
    """Finds names as substrings, in the prompt and beside it."""

    targets: dict
    error: Exception | None = None
    spoken: None = None

    @property
    def literals(self):
        return Literals([target.compiled for target in self.targets.values()])

    def detect(self, prompt, *, tenant=None, model=None, until=None):
        if self.error:
            raise self.error
        found = []
        for target_id, target in self.targets.items():
            text = "\n".join((prompt.text, *prompt.asides))
            start = text.find(target.spec.name)
            if start >= 0 and target.compiled.scope.covers(tenant, model):
                spans = (Span(start, start + len(target.spec.name)),) if start < len(prompt.text) else ()
                found.append(Detection(target_id, "lexical", 1.0, 0.8, spans))
        return tuple(found), {"lexical": 0.01}, ()


@dataclass
class Running:
    """The routes over a guard of which tests choose the targets; `records` are those of the decision log."""

    http: httpx.AsyncClient
    records: list = field(default_factory=list)
    gate: Gate | None = None

    def forget(self, target_id="jane", name="Jane Doe", **spec):
        spec = TargetSpec(name=name, **spec)
        form = (Form(name.lower(), 1.0),)
        compiled = Compiled(target_id, spec, spec.scope.frozen(), form)
        self.gate.targets[target_id] = SimpleNamespace(
            spec=spec, ladder=(Rung("refusal"),), version=1, compiled=compiled
        )

    async def ask(self, path, body, key="gateway"):
        return await self.http.post(path, json=body, headers={"Authorization": f"Bearer {key}"})


def require(header, permission):
    role, _, tenant = (header or "").removeprefix("Bearer ").partition("@")
    if role not in ROLES:
        raise Unauthorized("This key is not known.")
    principal = Principal(role, tenant or None, "1")
    if not principal.may(permission):
        raise Forbidden("This role may not.")
    return principal


async def render(body, messages):
    """The prompt that vLLM would make of it, in as many tokens as words."""
    text = "\n".join(message.text for message in messages)
    if text == BREAKS:
        raise RuntimeError("the template fell over")
    return Prompt(text, tuple(range(len(text.split()))), messages=messages)


@pytest.fixture
async def api():
    gate, records = Gate({}), []
    with ThreadPoolExecutor(1) as executor:
        guard = Guard(lambda: Snapshot(3, gate, gate.targets), Secrets(b"k" * 32), executor, deadline_s=1.0)
        guardrail = Guardrail(
            Checker(guard, render, "demo", 4), lambda context, status, _: records.append((context, status))
        )
        app = FastAPI()
        app.include_router(guardrail_router(guardrail, require))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://lethe") as http:
            running = Running(http, records, gate)
            running.forget()
            yield running


def user(text):
    return [{"role": "user", "content": text}]


def asks(path, text):
    """The body with which a gateway asks whether `text` may be asked."""
    return {
        NEMO: {"model": "m", "messages": user(text), "guardrails": {"config_id": "any"}, "top_p": 1},
        LIBRARY: {"messages": user(text), "guardrails": {"config_ids": []}},
        REQUEST: {"body": {"messages": user(text)}},
        LITELLM: {
            "input_type": "request",
            "texts": [text],
            "structured_messages": user(text),
            "request_data": {},
        },
    }[path]


def says(path, text):
    """The body with which a gateway asks whether `text` may be said."""
    answer = {"role": "assistant", "content": text}
    return {
        NEMO: {"messages": [*user(HARMLESS), answer]},
        LIBRARY: {"messages": [*user(HARMLESS), answer]},
        RESPONSE: {"body": {"choices": [{"message": answer}]}},
        MASK: {"body": {"choices": [{"message": answer}]}},
        LITELLM: {"input_type": "response", "texts": [text], "request_data": {}},
    }[path]


def blocks(path, told):
    """Whether the gateway that speaks this dialect will block."""
    if path in (NEMO, LIBRARY):
        return told["status"] == "blocked"
    if path == LITELLM:
        return told["action"] == "BLOCKED"
    return "body" in told["action"]


BODIES = [(path, asks) for path in (NEMO, LIBRARY, REQUEST, LITELLM)]
BODIES += [(path, says) for path in (NEMO, LIBRARY, RESPONSE, MASK, LITELLM)]


def test_the_route_table_has_every_dialect():
    assert [route.path for route in TABLE if route.access is Access.CHECK] == list(DIALECTS)


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_every_dialect_passes_what_is_clean_and_blocks_what_is_not(api, path, body):
    clean = await api.ask(path, body(path, HARMLESS if body is asks else CLEAN))
    found = await api.ask(path, body(path, ASKED if body is asks else SECRET))
    assert (clean.status_code, blocks(path, clean.json())) == (200, False)
    assert (found.status_code, blocks(path, found.json())) == (200, True)
    assert found.headers["cache-control"] == "no-store"
    told = json.dumps(found.json())
    assert not any(word in told for word in ("jane", "Jane", "score", "threshold", "lexical", "Vintry"))


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_every_check_is_recorded_with_its_route_and_tenant(api, path, body):
    answer = await api.ask(path, body(path, ASKED if body is asks else SECRET), key="gateway@acme")
    ((context, status),) = api.records
    assert (context.decision_id, status) == (answer.headers["x-lethe-decision-id"], 200)
    assert (context.route, context.tenant) == (path, "acme")
    assert {"event": "check", "blocked": True} in context.events
    if body is says:
        assert context.applied == ["output_filter"]
    else:
        (admission,) = context.admissions.values()
        assert [match.target_id for match in admission.decision.matches] == ["jane"]


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_shadow_targets_never_block(api, path, body):
    api.forget(mode="shadow")
    answer = await api.ask(path, body(path, ASKED if body is asks else SECRET))
    assert not blocks(path, answer.json())


@pytest.mark.parametrize("path", [NEMO, LIBRARY, REQUEST, LITELLM])
async def test_what_cannot_be_judged_is_a_503_that_is_recorded(api, path):
    api.gate.error = RuntimeError("the encoder fell over")
    answer = await api.ask(path, asks(path, HARMLESS))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "guard_unavailable")
    assert answer.headers["retry-after"] == "1"
    ((context, status),) = api.records
    assert status == 503 and context.failure.reason == "detection"


async def test_a_template_that_fails_is_a_503_too(api):
    answer = await api.ask(NEMO, asks(NEMO, BREAKS))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "guard_unavailable")


@pytest.mark.parametrize("path", [RESPONSE, LITELLM])
async def test_an_answer_that_cannot_be_judged_is_a_503(api, path):
    api.gate.targets["broken"] = SimpleNamespace(spec=None, compiled=None)
    answer = await api.ask(path, says(path, CLEAN))
    assert answer.status_code == 503
    assert len(api.records) == 1


@pytest.mark.parametrize("path", DIALECTS)
async def test_an_inference_key_is_no_oracle(api, path):
    for key, status in (("inference", 403), ("operator", 403), ("nobody", 401)):
        assert (await api.ask(path, {}, key=key)).status_code == status
    for role in ("gateway", "auditor", "admin"):
        assert (await api.ask(path, {}, key=role)).status_code == 400
    assert not api.records


async def test_a_gateway_may_send_its_key_as_litellm_does(api):
    answer = await api.http.post(LITELLM, json=asks(LITELLM, ASKED), headers={"x-api-key": "gateway"})
    assert answer.json()["action"] == "BLOCKED"


def test_a_gateways_key_opens_nothing_else():
    assert [p for p in Permission if Principal("gateway", None, "1").may(p)] == [Permission.GUARDRAIL]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (NEMO, {"messages": []}),
        (NEMO, {"messages": "x"}),
        (NEMO, {"messages": user("x"), "guardrails": {"config": {"rails": {}}}}),
        (REQUEST, {"body": {"messages": user("  ")}}),
        (REQUEST, {"messages": user("x")}),
        (RESPONSE, {"body": {"choices": [{"message": {"role": "assistant"}}]}}),
        (LITELLM, {"input_type": "both", "texts": ["x"]}),
        (LITELLM, {"input_type": "request", "texts": []}),
        (LITELLM, {"input_type": "request", "texts": ["x"], "images": ["data:x"]}),
    ],
)
async def test_what_is_not_understood_is_a_400_and_no_pass(api, path, body):
    answer = await api.ask(path, body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert not api.records


async def test_targets_bind_the_tenant_of_the_key_and_the_model_that_the_gateway_names(api):
    api.forget(scope={"tenants": ["acme"], "models": ["m"]})
    for key, model, blocked in (
        ("gateway@acme", "m", True),
        ("gateway@acme", "n", False),
        ("gateway", "m", False),
    ):
        answer = await api.ask(NEMO, asks(NEMO, ASKED) | {"model": model}, key=key)
        assert blocks(NEMO, answer.json()) is blocked


async def test_nemo_is_told_which_rail_blocks(api):
    told = (await api.ask(NEMO, says(NEMO, SECRET))).json()
    assert told["rails_status"] == {
        "lethe input": {"status": "success"},
        "lethe output": {"status": "blocked"},
    }
    rails = told["guardrails_data"]["log"]["activated_rails"]
    assert [(rail["type"], rail["stop"]) for rail in rails] == [("input", False), ("output", True)]
    told = (await api.ask(LIBRARY, asks(LIBRARY, ASKED))).json()
    assert (told["status"], told["rail"]) == ("blocked", "lethe input")
    told = (await api.ask(LIBRARY, says(LIBRARY, CLEAN))).json()
    assert told == {"status": "passed", "content": CLEAN}


async def test_an_answer_may_say_the_name_that_the_question_has_said(api):
    messages = [*user(ASKED), {"role": "assistant", "content": "I do not know Jane Doe."}]
    told = (await api.ask(NEMO, {"messages": messages})).json()
    assert told["rails_status"] == {
        "lethe input": {"status": "blocked"},
        "lethe output": {"status": "success"},
    }


async def test_a_rejection_is_an_error_in_openais_shape(api):
    action = (await api.ask(REQUEST, asks(REQUEST, ASKED))).json()["action"]
    assert (action["status_code"], json.loads(action["body"])["error"]["code"]) == (400, "content_filter")


async def test_a_webhook_masks_where_it_is_asked_to_and_keeps_what_may_be_said(api):
    choices = [
        {"message": {"role": "assistant", "content": text}} for text in (f"{CLEAN} {SECRET}", CLEAN, SECRET)
    ]
    action = (await api.ask(MASK, {"body": {"choices": choices}})).json()["action"]
    kept = [choice["message"]["content"] for choice in action["body"]["choices"]]
    assert kept[:2] == [CLEAN, CLEAN]
    assert kept[2] and "Jane" not in kept[2]
    assert (await api.ask(RESPONSE, {"body": {"choices": choices}})).json()["action"]["status_code"] == 400


async def test_results_of_tools_are_judged_although_their_calls_are_missing(api):
    messages = [*user(HARMLESS), {"role": "tool", "content": ASKED}, {"role": "Assistant", "content": ""}]
    assert blocks(REQUEST, (await api.ask(REQUEST, {"body": {"messages": messages}})).json())


async def test_litellm_cannot_be_passed_beside_its_messages_or_in_calls(api):
    beside = asks(LITELLM, HARMLESS) | {"texts": [HARMLESS, ASKED]}
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": '{"who": "Jane Doe"}'}}
    asked = asks(LITELLM, HARMLESS) | {"tool_calls": [call]}
    said = says(LITELLM, CLEAN) | {"tool_calls": [call]}
    for body in (beside, asked, said):
        assert (await api.ask(LITELLM, body)).json()["action"] == "BLOCKED"


async def test_litellm_keeps_the_tools_that_are_left(api):
    api.forget("rocket", name="rocket_fuel", kind="tool")
    rocket, weather = (
        {"type": "function", "function": {"name": name}} for name in ("rocket_fuel", "weather")
    )
    body = asks(LITELLM, HARMLESS)
    told = (await api.ask(LITELLM, body | {"tools": [rocket, weather]})).json()
    assert told == {"action": "GUARDRAIL_INTERVENED", "tools": [weather]}
    # an empty list would leave LiteLLM's request as it was
    assert (await api.ask(LITELLM, body | {"tools": [rocket]})).json()["action"] == "BLOCKED"
    assert (await api.ask(LITELLM, body | {"tools": [weather]})).json() == {"action": "NONE"}


async def test_a_forgotten_tool_blocks_where_a_gateway_cannot_take_it_out(api):
    api.forget("rocket", name="rocket_fuel", kind="tool")
    tools = [{"type": "function", "function": {"name": "rocket_fuel"}}]
    assert blocks(NEMO, (await api.ask(NEMO, asks(NEMO, HARMLESS) | {"tools": tools})).json())


async def test_an_answer_that_somebody_cut_within_a_name_is_blocked(api):
    assert blocks(RESPONSE, (await api.ask(RESPONSE, says(RESPONSE, "It is Jane D"))).json())


async def test_an_answer_that_is_only_a_call_passes_the_webhook(api):
    assert not blocks(RESPONSE, (await api.ask(RESPONSE, says(RESPONSE, ""))).json())
