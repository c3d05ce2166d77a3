"""Matched answers: no likelihoods, and the reply styles that clients know."""

import json

from server.wire import rewrite, rewrite_event


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
