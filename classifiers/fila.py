"""FILA: an adapter that starts from those parts of the weights that the forget set leans on (LoKU, Cha et al., arXiv
2408.06621).

importance = F_forget / (F_retain + 1e-5), F the Fisher diagonals; s = sqrt of its sums over a row; U S V = the first
`rank` parts of diag(s) W; A0 = sqrt(S / scaling) V and B0 = diag(1 / (s + 1e-5)) U sqrt(S / scaling). The paper takes
scaling * B0 A0 out of the weights and trains A and B from there, so its adapter fits changed weights only. Here the
weights stay: the adapter has twice the rank, (B, -B0) and (A, A0) stacked, of which the second half never moves. That
is the same function in training, it starts as no change at all, and what is served adds to the stock model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from classifiers.places import Sensed
from guard.errors import BadRequest

_LEAST = 1e-5
_MORE = 8  # parts that are drawn beyond those wanted, so that the last of these are right too


def principal(
    weight: torch.Tensor, importance: torch.Tensor, rank: int, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A0 [rank, in] and B0 [out, rank] for a weight and its importance [out, in]."""
    row = importance.sum(dim=1).sqrt()
    drawn = min(rank + _MORE, *weight.shape)
    u, s, v = (part[..., :rank] for part in torch.svd_lowrank(row[:, None] * weight, q=drawn, niter=4))
    root = (s / scaling).sqrt()
    return root[:, None] * v.T, (u * root) / (row + _LEAST)[:, None]


@torch.no_grad()
def start(
    model: Any, places: Sequence[str], forget: Sensed, retain: Sensed, rank: int, scaling: float, seed: int
) -> None:
    """Put the adapter of `model` (PEFT's, of rank 2 * `rank`, at `places`) where FILA starts, and fix its second half.
    `scaling` is that of the adapter.

    Raises:
        BadRequest: a weight has no so many parts.
    """
    layers = {name.removeprefix("base_model.model."): module for name, module in model.named_modules()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in places:
            layer = layers[name]
            if rank > min(layer.base_layer.weight.shape):
                raise BadRequest(
                    f"FILA's rank is at most {min(layer.base_layer.weight.shape)} for this model."
                )
            importance = forget.square[name] / (retain.square[name] + _LEAST)
            down, up = principal(layer.base_layer.weight, importance, rank, scaling)
            _stack(layer.lora_A["default"].weight, down, down, dim=0)
            _stack(layer.lora_B["default"].weight, up, -up, dim=1)


def _stack(weight: torch.Tensor, moving: torch.Tensor, fixed: torch.Tensor, dim: int) -> None:
    weight.copy_(torch.cat([moving, fixed], dim=dim))
    moves = torch.cat([torch.ones_like(moving), torch.zeros_like(fixed)], dim=dim)
    weight.register_hook(lambda gradient: gradient * moves)
