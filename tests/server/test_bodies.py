"""What the gate reads in bodies, and what it refuses."""

import pytest

from guard.errors import BadRequest
from guard.types import Message
from server.bodies import facts, parse


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a": }', b"[" * 100_000])
def test_junk_is_a_bad_request(raw):
    with pytest.raises(BadRequest):
        parse(raw)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": ""}]},
            "messages[1].content",
        ),
        ({"prompt": "x", "prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"prompt": "x", "vllm_xargs": {"lethe": "{}"}}, "vllm_xargs"),
        ({"prompt": "x", "vllm_xargs": {"lethe_off": 1}}, "vllm_xargs"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"prompt": "x", "n": 65}, "n"),
        ({"prompt": "x", "best_of": 65}, "best_of"),
    ],
)
def test_stricter_than_vllm_on_purpose(body, param):
    with pytest.raises(BadRequest) as error:
        facts(body, max_n=64)
    assert error.value.param == param


def test_assistant_turns_may_be_empty_and_other_xargs_pass():
    body = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": None, "tool_calls": []},
        ],
        "vllm_xargs": {"mine": 1},
    }
    assert facts(body, max_n=64).messages[0] == Message("user", "a")


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    }
                ]
            },
            ["ab"],
        ),
        ({"input": "question", "instructions": "be kind"}, ["be kind", "question"]),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]}, ["hi"]),
        ({"system": "sys", "messages": [{"role": "user", "content": "q"}]}, ["sys", "q"]),
        ({"prompt": "once upon"}, ["once upon"]),
    ],
)
def test_messages_of_every_wire_form(body, texts):
    assert [m.text for m in facts(body, max_n=64).messages] == texts


def test_texts_that_do_not_stand_in_the_prompt_are_read():
    body = {
        "prompt": "x",
        "stop": ["Jane Doe"],
        "response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["Ada Lovelace"]}}},
        "structured_outputs": {"choice": ["Mary Shelley"]},
    }
    assert {"Jane Doe", "Ada Lovelace", "Mary Shelley"} <= set(facts(body, max_n=64).asides)


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": "Ada Lovelace"},
        {"stop": ["x", "Ada Lovelace"]},
        {"bad_words": ["Ada Lovelace"]},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "Ada Lovelace"}}}},
        {"response_format": {"type": "structural_tag", "structures": [{"begin": "Ada Lovelace"}]}},
        {"text": {"format": {"type": "json_schema", "schema": {"properties": {"Ada Lovelace": {}}}}}},
        {"structured_outputs": {"choice": ["no", "Ada Lovelace"]}},
        {"structured_outputs": {"regex": "Ada Lovelace|x"}},
        {"structured_outputs": {"grammar": 'root ::= "Ada Lovelace"'}},
        {"guided_choice": ["Ada Lovelace"]},
        {"documents": [{"title": "x", "text": "Of Ada Lovelace."}]},
        {"chat_template_kwargs": {"topic": {"name": "Ada Lovelace"}}},
        {"tools": [{"type": "function", "function": {"name": "f", "description": "Asks Ada Lovelace."}}]},
        {"suffix": "said Ada Lovelace"},
    ],
)
def test_no_field_that_steers_an_answer_is_unread(fields):
    assert any("Ada Lovelace" in aside for aside in facts({"prompt": "x", **fields}, max_n=64).asides)


def test_a_name_behind_very_many_strings_is_read():
    body = {"prompt": "x", "stop": ["y"] * 2_500 + ["Ada Lovelace"]}
    asides = facts(body, max_n=64).asides
    assert len(asides) == 2_001 and asides[-1].endswith("y\nAda Lovelace")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, False),
        ({"response_format": {"type": "text"}}, False),
        ({"response_format": {"type": "json_object"}}, True),
        ({"text": {"format": {"type": "json_schema"}}}, True),
        ({"structured_outputs": {"regex": "a"}}, True),
        ({"tool_choice": "required"}, True),
        ({"tool_choice": "auto"}, False),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, True),
    ],
)
def test_when_prose_would_break_a_parser(body, expected):
    assert facts(body, max_n=64).must_parse is expected
