"""A canary: one prompt asked without edits and with them. An edit that the model's answer does not show is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from guard.types import AppliedEdit, Edit

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

    from guard.engine.client import GuardedAsyncLLM

TEXT = "A canary sings in the mine, and everybody listens."
_LEAST = 1e-6
_TIMES = 10.0


@dataclass(frozen=True, slots=True)
class Effect:
    """What the engine counted for the edits, by how much they changed a log-probability, and by how much the
    clean prompt's own change from one run to the next."""

    applied: tuple[AppliedEdit, ...]
    moved: float
    shaken: float

    @property
    def shows(self) -> bool:
        return self.moved > max(_TIMES * self.shaken, _LEAST)


async def effect(
    engine: GuardedAsyncLLM, token_ids: list[int], edits: tuple[Edit, ...], *, tokens: int = 1
) -> Effect:
    """The effect of `edits` on the first `tokens` of the answer to `token_ids`.

    Raises:
        GuardUnavailable: the engine could not vouch for the edits.
    """
    from vllm.sampling_params import SamplingParams

    def params(**more: int) -> SamplingParams:
        return SamplingParams(temperature=0.0, max_tokens=tokens, logprobs=5, **more)

    clean, _ = await engine.canary(token_ids, params(prompt_logprobs=1))
    again, _ = await engine.canary(token_ids, params())
    edited, applied = await engine.canary(token_ids, params(), edits)
    return Effect(applied, _distance(clean, edited), _distance(clean, again))


def _distance(a: RequestOutput, b: RequestOutput) -> float:
    """Largest difference between log-probabilities of the same tokens, as long as both answers are the same;
    infinite where an answer ends earlier or the best tokens are all others."""
    left, right = ((o.outputs[0].logprobs or []) for o in (a, b))
    found = 0.0 if len(left) == len(right) and left else float("inf")
    for one, other, s, t in zip(left, right, a.outputs[0].token_ids, b.outputs[0].token_ids, strict=False):
        shared = one.keys() & other.keys()
        if not shared:
            return float("inf")
        found = max(found, *(abs(one[token].logprob - other[token].logprob) for token in shared))
        if s != t:
            break
    return found
