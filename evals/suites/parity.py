"""Parity: for prompts that match nothing, the guarded server answers as bare vLLM with the same arguments
does.

Every case goes to both servers, through openai-python where it can send it, one at a time, so that both
engines see the same batches. Bodies are compared field by field after identifiers and times are taken out;
a streamed answer is compared collapsed. Generations must carry `x-lethe-decision-id` on the guarded server.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import openai
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import ValidationError
from tqdm import tqdm

from evals.client import DECISION_HEADER, Client
from evals.items import UNMATCHED, Item, ItemError
from evals.normalise import DONE, clean, collapse, differences
from evals.report import Report
from evals.suites.parity_cases import Case, build

SAME, DOCUMENTED, DIFFERENT = "same", "documented difference", "DIFFERENT"
# Arguments of openai-python's methods; everything else of a body travels in `extra_body`.
_PARAMS = {
    "chat": {"messages", "max_tokens", "max_completion_tokens", "stop", "logprobs", "top_logprobs", "n",
             "seed", "temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "tools",
             "tool_choice", "response_format", "user", "metadata", "stream_options"},
    "completions": {"prompt", "max_tokens", "stop", "logprobs", "n", "seed", "temperature", "top_p", "echo",
                    "stream_options"},
    "responses": {"input", "instructions", "max_output_tokens", "temperature", "text"},
}  # fmt: skip
_WHOLE = {"chat": ChatCompletion, "completions": Completion}
_CHUNK = {"chat": ChatCompletionChunk, "completions": Completion}


@dataclass(frozen=True, slots=True)
class Seen:
    """What one server answered to one case, ready to be compared."""

    status: int
    body: Any
    content_type: str
    decision_id: str | None
    sdk_error: str | None = None


class Server:
    """One of the two servers, called through openai-python and, for broken requests, plainly."""

    def __init__(self, client: Client, key: str | None):
        self.client = client
        self._sdk = openai.AsyncOpenAI(
            base_url=f"{client.root}/v1", api_key=key or "none", max_retries=0, timeout=300.0
        )

    async def close(self) -> None:
        await self._sdk.close()

    def _method(self, api: str) -> Any:
        where = {"chat": self._sdk.chat.completions, "completions": self._sdk.completions}
        return where.get(api, self._sdk.responses).with_streaming_response.create

    async def see(self, case: Case) -> Seen:
        model = await self.client.model()
        if case.api not in _PARAMS:
            options = {"content": case.raw} if case.raw is not None else {"json": case.body}
            options = (
                {} if case.method == "GET" else options | {"headers": {"Content-Type": "application/json"}}
            )
            response = await self.client.call(case.method, case.api, **options)
            return _seen(response.status_code, response.headers, response.text, model)
        known = {k: v for k, v in case.body.items() if k in _PARAMS[case.api]}
        extra = {k: v for k, v in case.body.items() if k not in known}
        if case.stream:
            known["stream"] = True
        try:
            async with self._method(case.api)(model=model, extra_body=extra or None, **known) as response:
                text = await response.text()
        except openai.APIStatusError as error:
            return _seen(error.status_code, error.response.headers, error.response.text, model)
        return _seen(response.status_code, response.headers, text, model, case)


def _seen(status: int, headers: httpx.Headers, text: str, model: str, case: Case | None = None) -> Seen:
    """The comparable form of a response; a success is also read with openai-python's own types."""
    kind = headers.get("content-type", "").split(";")[0]
    problem, body = None, text
    if kind == "text/event-stream":
        datas = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
        body = collapse(datas, model)
        shapes = [(_CHUNK, data) for data in datas if data != DONE]
    else:
        try:
            body = clean(json.loads(text), model)
        except json.JSONDecodeError:
            body = text
        shapes = [(_WHOLE, text)]
    for table, data in shapes if case is not None else ():
        try:
            if case.api in table:
                table[case.api].model_validate_json(data)
        except ValidationError as error:
            problem = f"openai-python cannot read it: {error.errors()[0]['loc']} {error.errors()[0]['msg']}"
    return Seen(status, body, kind, headers.get(DECISION_HEADER), problem)


def _openai_error(body: Any) -> bool:
    error = body.get("error") if isinstance(body, dict) else None
    return isinstance(error, dict) and {"message", "type", "code"} <= error.keys()


def judge(case: Case, bare: Seen, guarded: Seen, *, expect_header: bool) -> tuple[str, list[str]]:
    """The verdict on one case and what supports it."""
    found = []
    if expect_header and case.generates and guarded.status == 200 and not guarded.decision_id:
        found.append(f"no {DECISION_HEADER} header")
    if case.stricter and expect_header:
        if guarded.status == 400 and _openai_error(guarded.body):
            return DOCUMENTED, [case.stricter, f"bare answers {bare.status}, guarded 400"]
        return DIFFERENT, [f"must be 400 in OpenAI's error shape, not {guarded.status}"]
    if bare.status >= 500 and 400 <= guarded.status < 500 and _openai_error(guarded.body):
        return DOCUMENTED, [f"bare answers {bare.status} to a client's mistake, guarded {guarded.status}"]
    if 400 <= bare.status == guarded.status and not _openai_error(bare.body) and _openai_error(guarded.body):
        return DOCUMENTED, ["errors always have OpenAI's shape"]
    junk = case.name.startswith("broken") and 400 <= bare.status == guarded.status < 500
    shaped = _openai_error(bare.body) and _openai_error(guarded.body)
    if junk and shaped and differences(bare.body, guarded.body):
        return DOCUMENTED, ["the gate reads bodies before vLLM does: same status and shape, its own words"]
    if bare.status != guarded.status:
        found.append(f"status {bare.status} against {guarded.status}")
    if bare.content_type != guarded.content_type:
        found.append(f"content-type {bare.content_type!r} against {guarded.content_type!r}")
    if guarded.sdk_error and guarded.sdk_error != bare.sdk_error:
        found.append(guarded.sdk_error)
    found += differences(bare.body, guarded.body)
    return (DIFFERENT if found else SAME), found


def pick_prompts(items: Sequence[Item]) -> list[str]:
    """Three unmatched single-turn questions, spread over the splits."""
    single = [i.turns[0][1] for split in UNMATCHED for i in items if i.split == split and len(i.turns) == 1]
    if len(single) < 3:
        raise ItemError("parity needs at least three unmatched single-turn items")
    return [single[0], single[len(single) // 2], single[-1]]


async def run(
    prompts: Sequence[str],
    guarded: Server,
    bare: Server,
    *,
    expect_header: bool = True,
    max_tokens: int = 24,
) -> Report:
    """Runs every case on both servers. Without `expect_header` (bare against bare) all cases must be the
    same."""
    model = await bare.client.model()
    asked = await bare.client.call("POST", "/tokenize", json={"model": model, "prompt": prompts[0]})
    cases = build(prompts, asked.json()["tokens"], model, max_tokens=max_tokens)
    report = Report("parity", n=len(cases), params={"max_tokens": max_tokens, "expect_header": expect_header})
    table = []
    for case in tqdm(cases, desc="parity", unit="case", disable=None):
        seen_bare, seen_guarded = await bare.see(case), await guarded.see(case)
        verdict, why = judge(case, seen_bare, seen_guarded, expect_header=expect_header)
        table.append([case.name, seen_bare.status, seen_guarded.status, verdict, "; ".join(why[:2])[:160]])
        report.rows.append(
            {"id": case.name, "verdict": verdict, "why": why[:20]}
            | {"status": [seen_bare.status, seen_guarded.status]}
            | ({"bare": seen_bare.body, "guarded": seen_guarded.body} if verdict == DIFFERENT else {})
        )
    counts = {v: sum(row["verdict"] == v for row in report.rows) for v in (SAME, DOCUMENTED, DIFFERENT)}
    report.table("Parity", ["case", "bare", "guarded", "verdict", "why"], table)
    report.criterion(
        "cases that differ without being documented", counts[DIFFERENT], 0, not counts[DIFFERENT]
    )
    report.results = counts
    report.versions = {
        "engine of guarded": await guarded.client.version(),
        "engine of bare": await bare.client.version(),
    }
    return report
