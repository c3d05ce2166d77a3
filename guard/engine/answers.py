"""Outputs: deltas folded into what the caller asked for, replies without the engine, and what matched ones
show.

Inside, every answer is a stream of deltas. A matched request shows its client nothing of the edited prompt:
the ids are those it sent, nothing was cached, and likelihoods are placeholders (the chosen token, 0.0) that
keep vLLM's response builders working and are removed on the wire.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence, Set
from copy import copy
from dataclasses import dataclass
from typing import Any

from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

_REASONING = (("<think>", "</think>"),)
_CALLS = (("{", "}"), ("[", "]"), ("<tool_call>", "</tool_call>"), ("<function", "</function"))


def folded(deltas: AsyncIterator[RequestOutput], kind: RequestOutputKind) -> AsyncIterator[RequestOutput]:
    """`deltas` as the caller asked for them: as they are, everything so far each time, or once at the end."""
    return deltas if kind is RequestOutputKind.DELTA else _gathered(deltas, kind)


async def _gathered(
    deltas: AsyncIterator[RequestOutput], kind: RequestOutputKind
) -> AsyncIterator[RequestOutput]:
    whole: RequestOutput | None = None
    async for delta in deltas:
        if whole is None:
            whole = delta
        else:
            whole.add(delta, aggregate=True)
            whole.metrics = delta.metrics
        whole.outputs.sort(key=lambda o: o.index)
        if kind is RequestOutputKind.CUMULATIVE:
            yield _snapshot(whole)
    if whole is not None and kind is RequestOutputKind.FINAL_ONLY:
        yield whole


def unfinished(prompt: str, said: str, *, tools: bool) -> bool:
    """Whether an answer that ends here ends within its reasoning, or, where the client offers tools, within a call."""
    if prompt.rstrip().endswith("<think>") and "</think>" not in said:
        return bool(said)
    pairs = (*_REASONING, *(_CALLS if tools else ()))
    return any(said.count(begin) > said.count(end) for begin, end in pairs)


def cut(last: RequestOutput, params: SamplingParams, ended: Set[int]) -> RequestOutput:
    """The end of an answer whose `last` delta has been given away: its choices that have not `ended` stop here."""
    likelihoods: list[Any] | None = [] if params.logprobs is not None else None
    end = copy(last)
    end.outputs = [
        CompletionOutput(i, "", [], None, likelihoods, finish_reason="stop")
        for i in range(params.n)
        if i not in ended
    ]
    end.finished = True
    return end


@dataclass(frozen=True, slots=True)
class Disguise:
    """How the outputs of one matched request look to its client.

    `logprobs` and `prompt_logprobs` say whether the client asked for them.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    logprobs: bool
    prompt_logprobs: bool
    tokenizer: Any

    @classmethod
    def of(
        cls, request_id: str, prompt_ids: tuple[int, ...], params: SamplingParams, tokenizer: Any
    ) -> Disguise:
        asked = params.logprobs is not None or bool(params.logprob_token_ids)
        return cls(request_id, prompt_ids, asked, params.prompt_logprobs is not None, tokenizer)

    def put_on(self, output: RequestOutput, *, first: bool, likelihoods: bool = False) -> RequestOutput:
        """Change `output`, a delta of the engine, in place; the first one tells of the prompt's likelihoods. Those of
        its answer stay if `likelihoods` may be told."""
        output.request_id = self.request_id
        output.prompt = ""
        output.prompt_token_ids = list(self.prompt_ids)
        output.prompt_logprobs = self._prompt_placeholders() if first else None
        output.prompt_token_id_logprobs = None
        output.num_cached_tokens = 0
        output.num_cache_creation_tokens = 0
        output.kv_transfer_params = output.ec_transfer_params = None
        for completion in output.outputs:
            if not likelihoods:
                completion.logprobs = self._placeholders(completion.token_ids) if self.logprobs else None
                completion.cumulative_logprob = 0.0
            completion.sampling_mask = completion.routed_experts = None
        return output

    def reply(self, text: str, token_ids: Sequence[int], n: int, finish_reason: str | None) -> RequestOutput:
        """A finished answer of `n` equal choices that the engine had no part in."""
        choices = [
            CompletionOutput(i, text, list(token_ids), 0.0, None, finish_reason=finish_reason)
            for i in range(n)
        ]
        return self.put_on(RequestOutput(self.request_id, "", [], None, choices, finished=True), first=True)

    def _placeholders(self, token_ids: Sequence[int]) -> list[dict[int, Logprob]]:
        return [{t: Logprob(0.0, rank=1, decoded_token=self.tokenizer.decode([t]))} for t in token_ids]

    def _prompt_placeholders(self) -> list[dict[int, Logprob] | None] | None:
        """As vLLM does, the first token has none: nothing predicts it."""
        return [None, *self._placeholders(self.prompt_ids[1:])] if self.prompt_logprobs else None


def _snapshot(whole: RequestOutput) -> RequestOutput:
    """A copy that later deltas do not change."""
    shot = copy(whole)
    shot.outputs = [copy(o) for o in whole.outputs]
    for completion in shot.outputs:
        completion.token_ids = list(completion.token_ids)
        completion.logprobs = copy(completion.logprobs)
    return shot
