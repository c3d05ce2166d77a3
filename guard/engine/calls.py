"""One call of the engine client: what it was given, what was said of it, what its context keeps of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.context import RequestContext
from guard.engine import rewriting
from guard.engine.answers import Disguise
from guard.engine.rewriting import Salts
from guard.types import Admission, AppliedEdit, Prompt

CUT = "cut"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of `generate`: `params` are already ours to change, `options` go to the engine as they are."""

    prompt: dict[str, Any]
    read: Prompt
    params: SamplingParams
    request_id: str
    options: dict[str, Any]
    disguise: Disguise
    context: RequestContext | None
    beam: bool

    @property
    def can_begin(self) -> bool:
        """Whether the run of this call may be begun and given up: a step of a beam search has its verdict, inputs
        beside text are costly, and blocks that other engines wait for are handed over but once."""
        transfers = rewriting.transfers(self.params)
        return not self.beam and self.prompt.get("type") == "token" and not transfers

    @property
    def can_go_on(self) -> bool:
        """Whether an answer of which a part has left can be gone on with by another request, without breaking what the
        client wants to parse or count on."""
        context, params = self.context, self.params
        parsed = context is not None and (context.must_parse or context.tools)
        return not (self.beam or parsed or params.n > 1 or params.stop or params.structured_outputs) and (
            params.detokenize and self.prompt.get("type") == "token" and params.max_tokens is not None
        )

    def behind(self, read: Prompt, said: int, number: int) -> Call:
        """This call again, behind the `said` tokens of its answer that `read` ends with; its answer comes as ids."""
        params = copy(self.params)
        params.max_tokens = max((params.max_tokens or 0) - said, 1)
        params.min_tokens = max(params.min_tokens - said, 0)
        params.detokenize = False
        prompt = {**self.prompt, "prompt_token_ids": list(read.token_ids)}
        return replace(
            self, prompt=prompt, read=read, params=params, request_id=f"{self.request_id}-again{number}"
        )

    def salt(self, salts: Salts, marks: str | None = None) -> str | None:
        """The cache salt of this call, clean or with the fingerprint `marks` of its edits."""
        own, tenant = self.prompt.get("cache_salt"), self.context.tenant if self.context else None
        return salts.clean(own, tenant) if marks is None else salts.edited(own, tenant, marks)


@dataclass(frozen=True, slots=True)
class Verdict:
    """An admission, and how many tokens of the call's prompt it was given on: beams go on behind them."""

    admission: Admission
    judged: int


def salted(prompt: dict[str, Any], salt: str | None) -> dict[str, Any]:
    """A copy of `prompt` whose blocks are kept under `salt`."""
    return {**prompt, "cache_salt": salt} if salt is not None else {**prompt}


def note(context: RequestContext | None, admission: Admission, applied: Sequence[AppliedEdit]) -> None:
    """Tell the request's context what was done, once it has been."""
    if context is not None:
        methods = [c.method for c in admission.decision.chosen] or ["refusal"]
        context.applied += [m for m in methods if m not in context.applied]
        context.edits += applied


def note_usage(call: Call, output: RequestOutput, kind: RequestOutputKind) -> None:
    """Tell the request's context what its client is told of this output. Steps of a beam search are no answers."""
    if call.context is None or call.beam:
        return
    usage = call.context.usage
    for answer in output.outputs:
        if kind is not RequestOutputKind.CUMULATIVE or answer.finished():
            usage.output_tokens += len(answer.token_ids)
        if answer.finish_reason is not None:
            usage.finish_reasons.append(answer.finish_reason)
    if output.finished:
        usage.input_tokens += len(call.read.token_ids)


async def metered(
    call: Call, outputs: AsyncGenerator[RequestOutput, None]
) -> AsyncGenerator[RequestOutput, None]:
    """The deltas of a call, counted as the client sees them: its own prompt, and the tokens that leave. What a method
    puts into a prompt, and runs that were given up, cost nobody anything."""
    spend = call.context.spend if call.context else None
    async with aclosing(outputs):
        if spend is not None and not (
            call.beam and call.context and call.read.token_ids in call.context.beams
        ):
            spend(len(call.read.token_ids))
        async for output in outputs:
            if spend is not None:
                spend(sum(len(sample.token_ids) for sample in output.outputs))
            yield output


def remember_beams(call: Call, verdict: Verdict, output: RequestOutput) -> None:
    """The prompts of the next beam step: this one with any token that it was told a likelihood of.

    Only prompts that the engine itself has proposed inherit a verdict. A client that sends a prompt which
    begins with another one of the same request does not get that one's verdict.
    """
    if call.beam and call.context:
        for likelihoods in output.outputs[0].logprobs or ():
            for token in likelihoods:
                call.context.beams[(*call.read.token_ids, token)] = (verdict.admission, verdict.judged)
