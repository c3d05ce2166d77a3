"""The requests of the parity suite: what clients of the OpenAI API send, and what broken clients send.

`stricter` cases are the ones that docs name as refused on purpose; there the guarded server must answer 400
in OpenAI's error shape, whatever bare vLLM does. All prompts come from the caller and must match no target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Aber", "Bodo"]}, "year": {"enum": [1900, 1950]}},
    "required": ["city", "year"],
    "additionalProperties": False,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks a year up.",
            "parameters": {
                "type": "object",
                "properties": {"year": {"enum": [1900, 1950]}},
                "required": ["year"],
                "additionalProperties": False,
            },
        },
    }
]
FORMAT = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
USAGE = {"stream_options": {"include_usage": True}}
SAMPLED = {"temperature": 0.9, "seed": 7, "top_p": 0.95}


@dataclass(frozen=True, slots=True)
class Case:
    """One request. `api` is chat, completions, responses (through openai-python) or a path for a plain
    call."""

    name: str
    api: str
    body: Any = None
    stream: bool = False
    stricter: str = ""
    method: str = "POST"
    raw: bytes | None = None
    generates: bool = True


def _user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def _chat_cases(p: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    one, two = _user(p[0]), _user(p[1])
    turns = [*one, {"role": "assistant", "content": "I see."}, *two]
    return [
        ("plain", {"messages": one}),
        ("system and user", {"messages": [{"role": "system", "content": "Answer shortly."}, *two]}),
        ("multi-turn", {"messages": turns}),
        ("content parts", {"messages": [{"role": "user", "content": [{"type": "text", "text": p[2]}]}]}),
        ("max_tokens 1", {"messages": one, "max_tokens": 1}),
        ("max_completion_tokens", {"messages": one, "max_tokens": None, "max_completion_tokens": 5}),
        ("stop string", {"messages": two, "stop": ["a"]}),
        ("stop kept", {"messages": two, "stop": [" "], "include_stop_str_in_output": True}),
        ("logprobs", {"messages": one, "logprobs": True, "top_logprobs": 3}),
        ("token ids", {"messages": one, "return_token_ids": True}),
        ("prompt logprobs", {"messages": one, "prompt_logprobs": 1}),
        ("n=2 sampled, seeded", {"messages": one, "n": 2, **SAMPLED}),
        ("penalties", {"messages": two, "presence_penalty": 0.5, "frequency_penalty": 0.5}),
        ("logit bias", {"messages": one, "logit_bias": {"300": -100}}),
        ("min_tokens", {"messages": two, "min_tokens": 10}),
        ("continue final message", {"messages": [*one, {"role": "assistant", "content": "The"}],
                                    "continue_final_message": True, "add_generation_prompt": False}),
        ("tools auto", {"messages": one, "tools": TOOLS, "tool_choice": "auto"}),
        ("tools none", {"messages": one, "tools": TOOLS, "tool_choice": "none"}),
        ("tools required", {"messages": one, "tools": TOOLS, "tool_choice": "required", "max_tokens": 48}),
        ("tool named", {"messages": one, "tools": TOOLS, "max_tokens": 48,
                        "tool_choice": {"type": "function", "function": {"name": "look_up"}}}),
        ("json_schema", {"messages": two, "response_format": FORMAT, "max_tokens": 48}),
        ("json_object", {"messages": two, "response_format": {"type": "json_object"}}),
        ("unknown field", {"messages": one, "surely_unknown": 1}),
        ("metadata and user", {"messages": one, "user": "u-1", "metadata": {"a": "b"}}),
    ]  # fmt: skip


def _completion_cases(p: Sequence[str], ids: list[int]) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("text", {"prompt": p[0]}),
        ("token ids", {"prompt": ids}),
        ("two prompts", {"prompt": [p[0], p[1]]}),
        ("two id prompts", {"prompt": [ids, ids]}),
        ("echo", {"prompt": p[0], "echo": True}),
        ("echo, logprobs, no tokens", {"prompt": p[0], "echo": True, "logprobs": 1, "max_tokens": 0}),
        ("logprobs", {"prompt": p[1], "logprobs": 3}),
        ("n=2 sampled, seeded", {"prompt": p[0], "n": 2, **SAMPLED}),
        ("stop string", {"prompt": p[1], "stop": ["a"]}),
        ("max_tokens 1", {"prompt": p[0], "max_tokens": 1}),
    ]


def _response_cases(p: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("text", {"input": p[0]}),
        ("messages", {"input": _user(p[1])}),
        ("instructions", {"input": p[0], "instructions": "Answer shortly."}),
        ("json schema", {"input": p[1], "max_output_tokens": 48,
                         "text": {"format": {"type": "json_schema", "name": "place", "schema": SCHEMA}}}),
    ]  # fmt: skip


def _broken(p: Sequence[str], model: str) -> list[Case]:
    """Clients' mistakes, which must be answered alike (vLLM takes an unknown role)."""
    good = {"model": model, "messages": _user(p[0]), "max_tokens": 4, "temperature": 0}
    path, words = "/v1/chat/completions", "/v1/completions"
    bodies: list[tuple[str, str, Any]] = [
        ("unknown model", path, good | {"model": "no-such-model"}),
        ("messages of the wrong type", path, good | {"messages": "hello"}),
        ("missing messages", path, {"model": model}),
        ("message of an unknown role", path, good | {"messages": [{"role": "wizard", "content": "a"}]}),
        ("negative max_tokens", path, good | {"max_tokens": -1}),
        ("temperature of the wrong type", path, good | {"temperature": "hot"}),
        ("n of zero", path, good | {"n": 0}),
        ("greedy n=2", path, good | {"n": 2, "temperature": 0}),
        ("top_logprobs without logprobs", path, good | {"top_logprobs": 2}),
        ("required tool without tools", path, good | {"tool_choice": "required"}),
        ("prompt beyond the context", path, good | {"messages": _user("word " * 20_000)}),
        ("stream_options without stream", path, good | USAGE),
        ("body that is a list", path, [1, 2]),
        ("missing prompt", words, {"model": model}),
        ("prompt of the wrong type", words, {"model": model, "prompt": {"a": 1}}),
        ("token id outside of the vocabulary", words, {"model": model, "prompt": [10**9], "max_tokens": 2}),
        ("missing input", "/v1/responses", {"model": model}),
    ]
    cases = [Case(f"broken: {name}", where, body, generates=False) for name, where, body in bodies]
    raw = [
        ("malformed JSON", b'{"model": "m", "messages": ['),
        ("empty body", b""),
        ("not UTF-8", b"\xff\xfe{"),
    ]
    cases += [Case(f"broken: {name}", path, raw=content, generates=False) for name, content in raw]
    return [
        *cases,
        Case("broken: wrong method", path, method="GET", generates=False),
        Case("broken: unknown route", "/v1/no-such-route", {}, generates=False),
    ]


def _stricter(p: Sequence[str]) -> list[Case]:
    """Refused on purpose: see "Stricter than vLLM on purpose" in docs."""
    image = [{"type": "text", "text": p[0]}, {"type": "image_url", "image_url": {"url": PIXEL}}]
    xargs = {"messages": _user(p[0])}
    bodies = [
        ("empty messages", "chat", {"messages": []}),
        ("user message without content", "chat", {"messages": [{"role": "user"}]}),
        ("system message without content", "chat", {"messages": [{"role": "system"}, *_user(p[0])]}),
        ("vllm_xargs lethe", "chat", xargs | {"vllm_xargs": {"lethe": 1.0}}),
        ("vllm_xargs lethe_", "completions", {"prompt": p[0], "vllm_xargs": {"lethe_scale": 1.0}}),
        ("prompt_embeds", "completions", {"prompt": p[0], "prompt_embeds": "AAAA"}),
        ("image without a model for it", "chat", {"messages": [{"role": "user", "content": image}]}),
    ]
    return [
        Case(
            f"{api}: {name}",
            api,
            {"max_tokens": 4, "temperature": 0, **body},
            stricter="refused on purpose",
            generates=False,
        )
        for name, api, body in bodies
    ]


def build(prompts: Sequence[str], ids: list[int], model: str, *, max_tokens: int = 24) -> list[Case]:
    """All cases from three unmatched prompts, and token ids of one."""
    greedy = {"temperature": 0, "max_tokens": max_tokens}
    chat = [(name, greedy | body) for name, body in _chat_cases(prompts)]
    words = [(name, greedy | body) for name, body in _completion_cases(prompts, ids)]
    responses = [
        (name, {"temperature": 0, "max_output_tokens": max_tokens} | body)
        for name, body in _response_cases(prompts)
    ]
    cases = []
    for api, bodies in (("chat", chat), ("completions", words), ("responses", responses)):
        for name, body in bodies:
            cases.append(Case(f"{api}: {name}", api, body))
            if name != "echo, logprobs, no tokens":  # vLLM refuses to stream it
                cases.append(Case(f"{api}, stream: {name}", api, body, stream=True))
    for api, (name, body) in (("chat", chat[0]), ("completions", words[0]), ("chat", chat[11])):
        cases.append(Case(f"{api}, stream with usage: {name}", api, body | USAGE, stream=True))
    ask = {"model": model, "prompt": prompts[0]}
    read = [
        Case("models", "/v1/models", method="GET", generates=False),
        Case("tokenize", "/tokenize", ask, generates=False),
        Case("detokenize", "/detokenize", {"model": model, "tokens": ids}, generates=False),
    ]
    return [*cases, *read, *_broken(prompts, model), *_stricter(prompts)]
