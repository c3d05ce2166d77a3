"""Matched answers: no likelihoods, and the reply styles that clients know."""

import json

from guard.context import RequestContext
from guard.types import Admission, Decision, Plan, Reply
from server.wire import rewrite, rewrite_event, tells


def test_likelihoods_and_cache_counts_are_withheld():
    body = {
        "choices": [{"message": {"content": "a"}, "logprobs": {"content": []}, "finish_reason": "stop"}],
        "prompt_logprobs": [None],
        "usage": {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
    }
    out = rewrite(body, filtered=False)
    assert out["choices"][0]["logprobs"] is None and out["prompt_logprobs"] is None
    assert out["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert out["choices"][0]["message"]["content"] == "a"


def test_a_withheld_choice_carries_a_refusal():
    out = rewrite(
        {"choices": [{"message": {"content": "no"}, "finish_reason": "content_filter"}]}, filtered=True
    )
    assert out["choices"][0]["message"] == {"content": None, "refusal": "no"}


def test_the_responses_api_reports_an_incomplete_response():
    body = {
        "object": "response",
        "status": "completed",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "no", "logprobs": [1]}]}],
    }
    out = rewrite(body, filtered=True)
    assert out["status"] == "incomplete" and out["incomplete_details"] == {"reason": "content_filter"}
    assert out["output"][0]["content"] == [{"type": "refusal", "refusal": "no"}]


def test_responses_events_change_their_name_with_their_type():
    inner = b'{"object":"response","status":"completed"}'
    data = b'{"type":"response.completed","response":' + inner + b"}"
    event = b"event: response.completed\ndata: " + data
    name, data = rewrite_event(event, filtered=True).split(b"\n")
    assert name == b"event: response.incomplete"
    assert json.loads(data[5:])["response"]["status"] == "incomplete"


def test_anthropic_messages_stop_with_refusal():
    assert rewrite({"type": "message", "stop_reason": None}, filtered=True)["stop_reason"] == "refusal"


def test_the_end_of_a_stream_is_left_alone():
    assert rewrite_event(b"data: [DONE]", filtered=True) == b"data: [DONE]"


def test_a_call_that_may_lack_its_end_is_no_reason_to_call():
    call = {"message": {"content": None, "tool_calls": [{}]}, "finish_reason": "tool_calls"}
    assert (
        rewrite({"choices": [dict(call)]}, filtered=True)["choices"][0]["finish_reason"] == "content_filter"
    )
    assert rewrite({"choices": [dict(call)]}, filtered=False)["choices"][0]["finish_reason"] == "tool_calls"


def test_likelihoods_of_an_edited_model_are_told_and_those_of_the_prompt_are_not():
    body = {
        "choices": [{"message": {"content": "a"}, "logprobs": {"content": [1]}, "prompt_logprobs": [2]}],
        "prompt_logprobs": [None],
    }
    out = rewrite(body, filtered=False, likelihoods=True)
    assert out["choices"][0]["logprobs"] == {"content": [1]}
    assert out["prompt_logprobs"] is None and out["choices"][0]["prompt_logprobs"] is None


def test_likelihoods_are_told_only_where_every_match_allows_it():
    context = RequestContext("d", "/", 0.0)
    assert not tells(context)
    edited = Admission(Decision("intervene", 1), Plan(likelihoods=True))
    context.admissions = {(1,): edited, (2,): Admission(Decision("allow", 1))}
    assert tells(context)
    context.admissions[(3,)] = Admission(Decision("refuse", 1), Plan(reply=Reply()))
    assert not tells(context)
