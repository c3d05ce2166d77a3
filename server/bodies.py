"""What the gate reads in a request body: who said what, what else reaches the model, and what is refused outright.

The judgement itself is made on the prompt that vLLM renders; what is read here sharpens it and never replaces it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from guard.errors import BadRequest
from guard.types import Message

ASIDE_KEYS = (
    "stop",
    "bad_words",
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_choice",
    "guided_regex",
    "guided_grammar",
    "documents",
    "chat_template_kwargs",
    "tools",
    "text",
    "suffix",
)
"""Fields whose strings can steer an answer without standing in the rendered prompt."""

MEDIA_PARTS = frozenset(
    {"image_url", "input_image", "image", "input_audio", "audio_url", "video_url", "image_embeds"}
)
CONTENT_ROLES = frozenset({"user", "system", "developer"})
MAX_ASIDES = 2_000  # strings that are judged one by one; those behind them are judged as one text


@dataclass(frozen=True, slots=True)
class Facts:
    """The parts of a body that the request context carries."""

    model: str | None
    stream: bool
    messages: tuple[Message, ...]
    asides: tuple[str, ...]
    must_parse: bool
    tools: bool


def parse(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`.

    Raises:
        BadRequest: not JSON, or not an object.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "it cannot be decoded")
        raise BadRequest(f"The request body is not valid JSON: {reason}.") from None
    if not isinstance(body, dict):
        raise BadRequest("The request body must be a JSON object.")
    return body


def facts(body: dict[str, Any], *, max_n: int) -> Facts:
    """Check what the guard is strict about, and read what it needs.

    Raises:
        BadRequest: what docs call "stricter than vLLM on purpose"; `param` names the field.
    """
    _refuse_bypasses(body)
    for key in ("n", "best_of"):
        wanted = body.get(key)
        if isinstance(wanted, int) and wanted > max_n:
            raise BadRequest(f"{key} is {wanted}; this server answers at most {max_n} choices.", param=key)
    model = body.get("model")
    return Facts(
        model=model if isinstance(model, str) else None,
        stream=body.get("stream") is True,
        messages=tuple(_messages(body)),
        asides=_asides({key: body[key] for key in ASIDE_KEYS if key in body}),
        must_parse=_must_parse(body),
        tools=bool(body.get("tools")),
    )


def _refuse_bypasses(body: dict[str, Any]) -> None:
    if body.get("prompt_embeds") is not None:
        raise BadRequest("prompt_embeds cannot be judged and are not accepted.", param="prompt_embeds")
    for key in body.get("vllm_xargs") or () if isinstance(body.get("vllm_xargs"), dict) else ():
        if key == "lethe" or key.startswith("lethe_"):
            raise BadRequest(f"vllm_xargs key '{key}' is reserved.", param="vllm_xargs")
    if "messages" in body:
        _refuse_empty(body["messages"])
    for part in _parts(body.get("messages"), body.get("input")):
        if part.get("type") in MEDIA_PARTS:
            raise BadRequest(
                "This server takes text only; image, audio and video parts are not accepted.",
                param="messages",
            )


def _refuse_empty(messages: Any) -> None:
    if not isinstance(messages, list):
        return  # vLLM says what is wrong with its type
    if not messages:
        raise BadRequest("messages is empty; give at least one message.", param="messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in CONTENT_ROLES:
            continue
        if not message.get("content"):
            raise BadRequest(f"messages[{i}] has no content.", param=f"messages[{i}].content")


def _parts(*lists: Any) -> Iterator[dict[str, Any]]:
    for items in lists:
        for item in items if isinstance(items, list) else ():
            content = item.get("content") if isinstance(item, dict) else None
            yield from (p for p in content if isinstance(p, dict)) if isinstance(content, list) else ()


def _messages(body: dict[str, Any]) -> Iterator[Message]:
    """Turns in the order of the rendered prompt, in whichever of the four wire forms they came."""
    for key in ("system", "instructions"):
        if body.get(key):
            yield Message("system", _text(body[key]))
    for key in ("messages", "input"):
        items = body.get(key)
        if isinstance(items, str):
            yield Message("user", items)
        for item in items if isinstance(items, list) else ():
            if isinstance(item, str):
                yield Message("user", item)
            elif isinstance(item, dict):
                yield Message(str(item.get("role") or item.get("type") or "user"), _text(item))
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        yield Message("user", prompt)


def _text(item: Any) -> str:
    """All text of one message: its content, or, for tool calls and results, every string in it."""
    if isinstance(item, str):
        return item
    if isinstance(item, dict) and isinstance(item.get("content"), str):
        return item["content"]
    content = item.get("content", item) if isinstance(item, dict) else item
    if isinstance(content, list):
        return "".join(
            p.get("text") or "" if isinstance(p, dict) and "text" in p else " ".join(strings(p))
            for p in content
        )
    return " ".join(strings(content))


def _asides(fields: dict[str, Any]) -> tuple[str, ...]:
    """Every string in `fields`; none is left out, however many there are."""
    found = tuple(strings(fields))
    rest = found[MAX_ASIDES:]
    return (*found[:MAX_ASIDES], "\n".join(rest)) if rest else found


def strings(value: Any) -> Iterator[str]:
    """Every string inside a JSON value, keys included: property names of a schema are text too."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            if item.strip():
                yield item
        elif isinstance(item, dict):
            stack.extend(part for pair in reversed(item.items()) for part in reversed(pair))
        elif isinstance(item, list):
            stack.extend(reversed(item))


def _must_parse(body: dict[str, Any]) -> bool:
    """Whether prose would break what the client asked for: structured output or a forced tool call."""
    response_format = body.get("response_format")
    if isinstance(response_format, dict) and response_format.get("type") not in (None, "text"):
        return True
    text = body.get("text")
    if (
        isinstance(text, dict)
        and isinstance(text.get("format"), dict)
        and text["format"].get("type") != "text"
    ):
        return True
    if body.get("structured_outputs") or any(key.startswith("guided_") and body[key] for key in body):
        return True
    choice = body.get("tool_choice")
    return choice == "required" or (isinstance(choice, dict) and choice.get("type") not in ("auto", "none"))
