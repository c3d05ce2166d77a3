"""The parity normaliser and its verdicts."""

from __future__ import annotations

import json

from evals.normalise import clean, collapse, differences
from evals.suites.parity import DIFFERENT, DOCUMENTED, SAME, Seen, judge
from evals.suites.parity_cases import Case, build

GENERATION = Case("chat: plain", "chat", {})
ERROR = {"error": {"message": "m", "type": "invalid_request_error", "code": 400, "param": None}}


def seen(body: object, status: int = 200, header: str | None = "d-1") -> Seen:
    return Seen(status, body, "application/json", header)


def test_identifiers_times_and_model_names_are_taken_out():
    def body(number: int, model: str) -> dict:
        return {
            "id": f"chatcmpl-{number}", "created": number, "model": model,
            "note": f"see chatcmpl-tool-abcdef{number}", "choices": [{"text": "a", "id": number}],
        }  # fmt: skip

    assert clean(body(1, "left"), "left") == clean(body(2, "right"), "right")
    assert clean(body(1, "left"), "left")["choices"] == [{"text": "a"}]


def test_differences_name_the_place():
    one = {"a": [1, {"b": "x"}], "c": 1}
    assert differences(one, {"a": [1, {"b": "x"}], "c": 1}) == []
    assert differences(one, {"a": [1, {"b": "y"}], "c": 1}) == ['$.a[1].b: "x" against "y"']
    assert differences(one, {"a": [1, {"b": "x"}]}) == ["$.c: only in the bare body"]
    assert differences({"a": []}, {"a": [1]}) == ["$.a: 0 against 1 entries"]
    assert differences(True, 1) != []
    assert differences(None, "") != []


def test_logprobs_may_differ_within_the_tolerance_and_counts_may_not():
    assert differences({"p": -1.00001}, {"p": -1.00002}) == []
    assert differences({"p": -1.0}, {"p": -1.1}) != []
    assert differences({"tokens": 1000}, {"tokens": 1001}) != []


def chunk(**choice: object) -> str:
    return json.dumps({"id": "x", "object": "chat.completion.chunk", "choices": [{"index": 0, **choice}]})


def test_streams_cut_differently_are_equal():
    head, tail = chunk(delta={"role": "assistant", "content": ""}), chunk(delta={}, finish_reason="stop")
    fine = [head, chunk(delta={"content": "Hel"}), chunk(delta={"content": "lo"}), tail, "[DONE]"]
    coarse = [head, chunk(delta={"content": "Hello"}, finish_reason="stop"), "[DONE]"]
    assert differences(collapse(fine, "model"), collapse(coarse, "model")) == []


def test_what_must_hold_of_a_stream_is_compared():
    head, words = chunk(delta={"role": "assistant"}), chunk(delta={"content": "a"}, finish_reason="stop")
    usage = json.dumps({"choices": [], "usage": {"total_tokens": 3}})
    good = collapse([head, words, usage, "[DONE]"], "model")
    for broken in (
        [head, words, usage],  # no end
        [words, head, usage, "[DONE]"],  # role not first
        [head, words, "[DONE]"],  # no usage
        [head, words, words, usage, "[DONE]"],  # two finish reasons
    ):
        assert differences(good, collapse(broken, "model")) != []


def test_tool_calls_and_event_streams_are_joined():
    def call(text: str) -> dict:
        return {"tool_calls": [{"index": 0, "id": text, "function": {"arguments": text}}]}

    whole = collapse([chunk(delta=call('{"a": 1}'))], "model")
    assert differences(whole, collapse([chunk(delta=call('{"a"')), chunk(delta=call(": 1}"))], "model")) == []
    events = [{"type": "response.output_text.delta", "delta": d} for d in ("a", "b")]
    joined = collapse([json.dumps(event) for event in events], "model")
    assert (joined["events"], joined["text"]) == (["response.output_text.delta"], "ab")


def test_verdicts():
    same = judge(GENERATION, seen({"a": 1}, header=None), seen({"a": 1}), expect_header=True)
    assert same == (SAME, [])
    assert judge(GENERATION, seen({"a": 1}), seen({"a": 2}), expect_header=True)[0] == DIFFERENT
    assert judge(GENERATION, seen({}), seen({}, header=None), expect_header=True)[0] == DIFFERENT
    assert judge(GENERATION, seen({}), seen({}, header=None), expect_header=False)[0] == SAME
    assert judge(GENERATION, seen(ERROR, 404), seen(ERROR, 400), expect_header=True)[0] == DIFFERENT


def test_documented_differences_need_openais_error():
    strict = Case("chat: empty messages", "chat", {}, stricter="refused on purpose", generates=False)
    assert judge(strict, seen({}), seen(ERROR, 400), expect_header=True)[0] == DOCUMENTED
    assert judge(strict, seen({}), seen({"detail": "no"}, 400), expect_header=True)[0] == DIFFERENT
    assert judge(strict, seen({}), seen({}), expect_header=True)[0] == DIFFERENT
    assert judge(GENERATION, seen("oops", 500), seen(ERROR, 400), expect_header=True)[0] == DOCUMENTED
    assert judge(GENERATION, seen(ERROR, 400), seen("oops", 500), expect_header=True)[0] == DIFFERENT


def test_case_names_are_unique_and_the_brief_is_covered():
    cases = build(["one", "two", "three"], [1, 2, 3], "model")
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    for part in (
        "stream with usage",
        "n=2",
        "tools required",
        "tool named",
        "json_schema",
        "echo",
        "malformed",
    ):
        assert any(part in name for name in names), part
    assert sum(bool(case.stricter) for case in cases) >= 6
