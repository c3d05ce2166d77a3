"""Makes two servers' bodies comparable: identifiers and times out, streams collapsed, then field by field.

How a stream is cut into chunks depends on timing, so the pieces are joined per choice, and what must hold
of the chunks whatever the cutting (role first, one finish reason, usage where it belongs, `[DONE]`) becomes
facts of their own that are compared too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

VOLATILE = frozenset(
    {"id", "created", "created_at", "completed_at", "system_fingerprint", "request_id", "item_id", "call_id",
     "response_id", "permission", "sequence_number", "metrics", "kv_transfer_params", "ec_transfer_params"}
)  # fmt: skip
TOLERANCE = 1e-3
_IDS = re.compile(r"\b(?:chatcmpl-tool|chatcmpl|cmpl|resp|msg|call|fc|rs)[-_][0-9a-zA-Z_-]{6,}")
DONE = "[DONE]"


def clean(value: Any, model: str) -> Any:
    """`value` without identifiers and times, and with the served model's name as MODEL."""
    if isinstance(value, dict):
        return {k: clean(v, model) for k, v in value.items() if k not in VOLATILE}
    if isinstance(value, list):
        return [clean(v, model) for v in value]
    if isinstance(value, str):
        text = _IDS.sub("<id>", value)
        return text.replace(model, "MODEL") if len(model) > 3 else ("MODEL" if text == model else text)
    return value


def differences(first: Any, second: Any, path: str = "$") -> list[str]:
    """Every place where the two values differ; numbers may differ by `TOLERANCE` (log-probabilities)."""
    if isinstance(first, dict) and isinstance(second, dict):
        found = []
        for key in sorted(first.keys() | second.keys()):
            if key not in first or key not in second:
                found.append(f"{path}.{key}: only in the {'guarded' if key in second else 'bare'} body")
            else:
                found += differences(first[key], second[key], f"{path}.{key}")
        return found
    if isinstance(first, list) and isinstance(second, list):
        if len(first) != len(second):
            return [f"{path}: {len(first)} against {len(second)} entries"]
        pairs = enumerate(zip(first, second, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}[{i}]")]
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (first, second))
    if numbers and float in (type(first), type(second)):
        same = math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    else:
        same = type(first) is type(second) and first == second
    return [] if same else [f"{path}: {_short(first)} against {_short(second)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else text[:117] + "..."


def _join(into: dict[str, Any], delta: dict[str, Any]) -> None:
    """Adds a chunk's fields: strings and lists are joined, tool calls by their index, the rest is
    replaced."""
    for key, value in delta.items():
        if key == "tool_calls":
            calls = into.setdefault(key, {})
            for call in value or ():
                _join(
                    calls.setdefault(str(call.get("index", 0)), {}), {"function": call.get("function") or {}}
                )
        elif isinstance(value, str) and key not in ("role", "type", "finish_reason"):
            into[key] = (into.get(key) or "") + value
        elif isinstance(value, list):
            into[key] = (into.get(key) or []) + value
        elif isinstance(value, dict):
            _join(into.setdefault(key, {}), value)
        elif value is not None:
            into[key] = value


def _collapse_choices(chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    choices: dict[str, dict[str, Any]] = {}
    role_first: dict[str, bool] = {}
    finishes: dict[str, int] = {}
    for chunk in chunks:
        for choice in chunk.get("choices") or ():
            index, delta = str(choice.get("index", 0)), choice.get("delta") or {}
            role_first.setdefault(index, bool(delta.get("role")))
            finishes[index] = finishes.get(index, 0) + bool(choice.get("finish_reason"))
            rest = {
                k: v for k, v in choice.items() if k not in ("delta", "index", "token_ids") and v is not None
            }
            # The role-only first chunk and the answer's first chunk are cut differently with the load.
            _join(choices.setdefault(index, {}), delta | rest)
    return {"choices": choices, "role_first": role_first, "finish_reasons": finishes}


def collapse(datas: Sequence[str], model: str) -> dict[str, Any]:
    """The events of one stream as one comparable value."""
    chunks = [json.loads(data) for data in datas if data != DONE]
    facts: dict[str, Any] = {"done": bool(datas) and datas[-1] == DONE, "dones": datas.count(DONE)}
    if any("type" in chunk for chunk in chunks):
        return clean(facts | _collapse_events(chunks), model)
    usages = [i for i, chunk in enumerate(chunks) if chunk.get("usage")]
    facts["usage_chunks"] = "every" if len(usages) == len(chunks) else len(usages)
    facts["usage_last"] = bool(usages) and usages[-1] == len(chunks) - 1 and not chunks[-1].get("choices")
    facts["usage"] = chunks[usages[-1]]["usage"] if usages else None
    facts["objects"] = sorted({chunk.get("object", "") for chunk in chunks})
    facts["errors"] = [chunk["error"] for chunk in chunks if "error" in chunk]
    return clean(facts | _collapse_choices(chunks), model)


def _collapse_events(chunks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A Responses stream: the order of event types with repetitions as one, the joined text, the last
    body."""
    kinds: list[str] = []
    text = ""
    for chunk in chunks:
        if not kinds or kinds[-1] != chunk["type"]:
            kinds.append(chunk["type"])
        if chunk["type"].endswith("output_text.delta"):
            text += chunk.get("delta") or ""
    last = next((chunk["response"] for chunk in reversed(chunks) if "response" in chunk), None)
    return {"events": kinds, "text": text, "response": last}
