"""How a matched answer looks on the wire: no likelihoods, and the reply style of its target.

The engine client already withholds likelihoods from matched requests and marks withheld answers with the finish
reason `content_filter`. Here they get the exact shape that OpenAI's and Anthropic's clients know, whole or as
server-sent events. Clean answers pass through untouched, byte for byte.
"""

from __future__ import annotations

import json
from typing import Any

from guard.context import RequestContext

FILTERED = "content_filter"
LIKELIHOODS = ("logprobs", "prompt_logprobs", "prompt_token_ids")
REFUSAL_EVENTS = {
    "response.output_text.delta": "response.refusal.delta",
    "response.output_text.done": "response.refusal.done",
    "response.completed": "response.incomplete",
}


def tells(context: RequestContext) -> bool:
    """Whether the likelihoods of a matched request's answer are the edited model's and may be told."""
    matched = [a for a in context.admissions.values() if a.matched]
    return bool(matched) and all(a.plan.likelihoods for a in matched)


def is_filtered(context: RequestContext) -> bool:
    """Whether the answers of a request are withheld in the style `content_filter`."""
    replies = [a.plan.reply for a in context.admissions.values() if a.plan.reply is not None]
    filtered = any(r.style == FILTERED for r in replies) or (bool(replies) and context.must_parse)
    return filtered or context.broken


def manner(context: RequestContext) -> dict[str, bool]:
    """How the answers of a request are rewritten: the options of the functions below."""
    return {"filtered": is_filtered(context), "likelihoods": tells(context)}


def rewrite_body(raw: bytes, *, filtered: bool, likelihoods: bool = False) -> bytes:
    """A whole JSON answer of a matched request; `filtered` when it is withheld in the style `content_filter`."""
    try:
        value = json.loads(raw)
    except ValueError:
        return raw
    return json.dumps(
        rewrite(value, filtered=filtered, likelihoods=likelihoods), ensure_ascii=False, separators=(",", ":")
    ).encode()


def rewrite_event(event: bytes, *, filtered: bool, likelihoods: bool = False) -> bytes:
    """One server-sent event (without its blank line) of a matched request."""
    lines = event.split(b"\n")
    for i, line in enumerate(lines):
        if not line.startswith(b"data:") or line[5:].strip() == b"[DONE]":
            continue
        try:
            value = rewrite(json.loads(line[5:]), filtered=filtered, likelihoods=likelihoods)
        except ValueError:
            continue
        lines[i] = b"data: " + json.dumps(value, ensure_ascii=False).encode()
        if lines[0].startswith(b"event:") and isinstance(value, dict) and "type" in value:
            lines[0] = b"event: " + value["type"].encode()
    return b"\n".join(lines)


def rewrite(value: Any, *, filtered: bool, likelihoods: bool = False) -> Any:
    """The JSON of one answer or of one event, changed in place and returned."""
    for item in value if isinstance(value, list) else (value,):
        if isinstance(item, dict):
            _withhold(item, likelihoods=likelihoods)
            _filter_choices(item, filtered=filtered)
            _rewrite_response(item, filtered=filtered, likelihoods=likelihoods)
            if filtered:
                _filter_message(item)
    return value


def _withhold(item: dict[str, Any], *, likelihoods: bool) -> None:
    """Drop likelihoods (those of the prompt always), and cached-token counts, which would show that the request was
    salted."""
    for holder in (item, *(item.get("choices") or ())):
        for key in LIKELIHOODS[likelihoods:]:
            if isinstance(holder, dict) and holder.get(key) is not None:
                holder[key] = None
    usage = item.get("usage")
    for key in ("prompt_tokens_details", "input_tokens_details"):
        if isinstance(usage, dict) and isinstance(usage.get(key), dict) and "cached_tokens" in usage[key]:
            usage[key]["cached_tokens"] = 0


def _filter_choices(item: dict[str, Any], *, filtered: bool) -> None:
    """Chat: a withheld choice carries its text as a refusal, because empty turns send agents into loops. A call that
    may lack its end is no reason to call."""
    for choice in item.get("choices") or ():
        if filtered and choice.get("finish_reason") == "tool_calls":
            choice["finish_reason"] = FILTERED
        for key in ("message", "delta"):
            part = choice.get(key)
            if choice.get("finish_reason") == FILTERED and isinstance(part, dict) and part.get("content"):
                part["refusal"], part["content"] = part["content"], None


def _rewrite_response(item: dict[str, Any], *, filtered: bool, likelihoods: bool = False) -> None:
    """Responses API: parts without log-probabilities; when filtered, refusal parts and status `incomplete`."""
    inner = item["response"] if isinstance(item.get("response"), dict) else item
    if inner.get("object") == "response":
        _withhold(inner, likelihoods=likelihoods)
        for output in inner.get("output") or ():
            parts = output.get("content") if isinstance(output, dict) else None
            for part in parts if isinstance(parts, list) else ():
                _rewrite_part(part, filtered=filtered, likelihoods=likelihoods)
        if filtered and inner.get("status") == "completed":
            inner["status"], inner["incomplete_details"] = "incomplete", {"reason": FILTERED}
    for part in (item.get("part"), *((item.get("item") or {}).get("content") or ())):
        _rewrite_part(part, filtered=filtered, likelihoods=likelihoods)
    if filtered and item.get("type") in REFUSAL_EVENTS:
        item["type"] = REFUSAL_EVENTS[item["type"]]
        if "text" in item:
            item["refusal"] = item.pop("text")


def _rewrite_part(part: Any, *, filtered: bool, likelihoods: bool = False) -> None:
    if not isinstance(part, dict) or part.get("type") != "output_text":
        return
    if not likelihoods:
        part["logprobs"] = []
    if filtered:
        text = part.get("text", "")
        part.clear()
        part.update(type="refusal", refusal=text)


def _filter_message(item: dict[str, Any]) -> None:
    """Anthropic's Messages API: the stop reason of a withheld answer is `refusal`."""
    if item.get("type") == "message" and "stop_reason" in item:
        item["stop_reason"] = "refusal"
    if item.get("type") == "message_delta" and isinstance(item.get("delta"), dict):
        item["delta"]["stop_reason"] = "refusal"
