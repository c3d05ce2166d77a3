"""`embedding_corruption`: the tokens that name a target are drowned in noise before the model reads them.

ECO, "Large Language Model Unlearning via Embedding-Corrupted Prompts" (arXiv 2406.07933): noise on the first
n
dimensions of the input embeddings of chosen prompt tokens, nothing else. Two differences from the released
code: the noise is a pure function of (seed, position, dimension) instead of a generator's state, so chunked
prefill, preemption and batch order reproduce it; and its strength is relative to the token's own embedding,
so one value means the same for every model and every number of dimensions.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from guard.interventions.base import Intervention, Params, Seeds
from guard.types import Chosen, Edit, Match, Plan, Prompt

if TYPE_CHECKING:
    import torch

Positive = Annotated[int, Field(strict=True, ge=1)]

_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64's increment
_STRIDE = 0xD1B54A32D192ED03  # another odd constant, so that positions and dimensions do not share a sequence


class EmbeddingCorruptionParams(Params):
    """How strongly, where and on which tokens.

    strength: expected L2 norm of the noise as a multiple of the token's embedding norm, whatever `dims` is;
        ECO's sigma is strength * norm / sqrt(dims). Unused by `flip` and `zero`. Recall of memorised TOFU
        answers stops falling at about 5; the default is on that plateau.
    dims: the first n dimensions, or all. With one, tokens whose noise is near zero stay readable.
    noise: `gaussian` adds noise; `flip` negates; `zero` erases.
    tokens: `spans` are the tokens of the matched spans, `window` all from the first to the last of them,
        `prompt` all tokens but the last. Where nothing matched inside the prompt, `prompt` is used.
    """

    strength: float = Field(10.0, gt=0.0, le=1e6, allow_inf_nan=False)
    dims: Positive | Literal["all"] = "all"
    noise: Literal["gaussian", "flip", "zero"] = "gaussian"
    tokens: Literal["spans", "window", "prompt"] = "spans"


class EmbeddingCorruption(Intervention):
    params_type = EmbeddingCorruptionParams

    def plan(self, chosen: Chosen, prompt: Prompt, seeds: Seeds) -> Plan:
        """One edit per matched target; every edit has at least one position unless the prompt is empty."""
        params = EmbeddingCorruptionParams.model_validate(dict(chosen.params))
        if not prompt.token_ids:
            return Plan()
        edits = tuple(
            Edit(
                site="embedding",
                method="embedding_corruption",
                positions=_positions(match, prompt, params.tokens),
                seed=seeds(match.target_id),
                params=params.model_dump(),
            )
            for match in chosen.matches
        )
        return Plan(edits=edits)

    @staticmethod
    def edit(x: torch.Tensor, positions: torch.Tensor, seed: str, params: dict[str, Any]) -> torch.Tensor:
        """Rows `x` [n, width] at absolute `positions` [n] -> corrupted rows, same shape and dtype."""
        width = x.shape[1]
        n = width if params["dims"] == "all" else min(params["dims"], width)
        rows = x.float()
        head = rows[:, :n]
        if params["noise"] == "flip":
            head = -head
        elif params["noise"] == "zero":
            head = head * 0
        else:
            scale = rows.norm(dim=1, keepdim=True) * (params["strength"] / math.sqrt(n))
            head = head + scale * gaussian(seed, positions, n)
        out = rows.clone()
        out[:, :n] = head
        return out.to(x.dtype)


def _positions(match: Match, prompt: Prompt, tokens: str) -> tuple[int, ...]:
    found = prompt.tokens_in(match.spans) if tokens != "prompt" else ()
    if not found:
        # ECO's fallback. A prompt of one token has no other token to corrupt than its last.
        return tuple(range(max(len(prompt.token_ids) - 1, 1)))
    return tuple(range(found[0], found[-1] + 1)) if tokens == "window" else found


def gaussian(seed: str, positions: torch.Tensor, dims: int) -> torch.Tensor:
    """Standard normal noise [n, dims], float32: a pure function of (seed, position, dimension).

    Box-Muller over the two halves of one 64-bit hash. Logarithm and cosine are taken in double precision:
    vector and scalar code round them differently, which double precision hides from the float32 result.
    """
    import torch

    key = _signed(int(seed, 16))
    rows = _mix(positions.long().unsqueeze(1) * _signed(_GOLDEN) + key)
    columns = torch.arange(1, dims + 1, device=positions.device) * _signed(_STRIDE)
    bits = _mix(rows + columns)
    u1 = (((bits >> 32) & 0xFFFFFFFF).double() + 0.5) / 2**32
    u2 = ((bits & 0xFFFFFFFF).double() + 0.5) / 2**32
    return (torch.sqrt(-2 * torch.log(u1)) * torch.cos(2 * math.pi * u2)).float()


def _mix(x: torch.Tensor) -> torch.Tensor:
    """splitmix64's finaliser on int64, whose arithmetic wraps."""
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, by: int) -> torch.Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
