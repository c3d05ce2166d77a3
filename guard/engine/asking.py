"""Whole answers to rendered prompts, for those who ask in the server's own process."""

from __future__ import annotations

import uuid
from contextlib import aclosing
from dataclasses import dataclass

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from guard.engine.client import GuardedAsyncLLM
from guard.errors import GuardUnavailable
from guard.types import Prompt, Spoken


@dataclass(frozen=True)
class Asking:
    """Greedy answers of `engine`."""

    engine: GuardedAsyncLLM

    async def guarded(self, prompt: Prompt, max_tokens: int) -> Spoken:
        """The answer that the guard lets out, judged, edited and watched as that of a request with the current context.

        Raises:
            GuardUnavailable: the guard cannot vouch for an answer.
        """
        given = {"type": "token", "prompt_token_ids": list(prompt.token_ids)}
        request_id = f"lethe-asked-{uuid.uuid4().hex}"
        last: RequestOutput | None = None
        async with aclosing(self.engine.generate(given, _params(max_tokens), request_id)) as outputs:
            async for output in outputs:
                last = output
        if last is None:
            raise GuardUnavailable("The answer did not come; try again.", reason="engine")
        return _spoken(last)

    async def unguarded(self, prompt: Prompt, max_tokens: int) -> Spoken:
        """What the model says as it is. No route of the inference API leads here; whoever calls it writes a decision
        record of it."""
        output, _ = await self.engine.canary(list(prompt.token_ids), _params(max_tokens))
        return _spoken(output)


def _params(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, output_kind=RequestOutputKind.FINAL_ONLY)


def _spoken(output: RequestOutput) -> Spoken:
    answer = output.outputs[0]
    return Spoken(answer.text, answer.finish_reason or "stop", len(answer.token_ids))
