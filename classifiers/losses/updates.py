"""How the gradients of the two halves meet, and on what slope the forget half goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from classifiers.losses.base import Named

Gradient = list[torch.Tensor]
_TINY = 1e-12


class Update(Named):
    """What becomes of the gradients of both halves before they are weighed and added. What it must remember from step
    to step is in `state`, which is kept with the training. `retain`: whether it cannot do without a retain half."""

    retain: ClassVar[bool] = True

    def __call__(
        self, forget: Gradient, retain: Gradient, state: dict[str, Any]
    ) -> tuple[Gradient, Gradient]:
        raise NotImplementedError


class Sum(Update):
    """As they are."""

    retain: ClassVar[bool] = False
    name: Literal["sum"] = "sum"

    def __call__(
        self, forget: Gradient, retain: Gradient, state: dict[str, Any]
    ) -> tuple[Gradient, Gradient]:
        return forget, retain


class NgDiff(Update):
    """Both of length 1, so that neither drowns the other (NGDiff, Jin et al., arXiv 2410.22086; its forget half is
    gradient ascent, `ga` or `graddiff`). The paper's automatic learning rate is left out: the schedule's holds."""

    name: Literal["ngdiff"] = "ngdiff"

    def __call__(
        self, forget: Gradient, retain: Gradient, state: dict[str, Any]
    ) -> tuple[Gradient, Gradient]:
        return scaled(forget, 1 / (norm(forget) + _TINY)), scaled(retain, 1 / (norm(retain) + _TINY))


class Mudman(Update):
    """Of the forget gradient only what has the sign of the retain gradient's running mean, brought back to the length
    that the forget gradient had in the first step (MUDMAN, Sondej et al., arXiv 2506.12484). The paper masks the
    weights' own gradients and takes the forget gradient from an adversary that relearns; here the adapter's are masked,
    there is no adversary, and one optimiser takes both halves."""

    name: Literal["mudman"] = "mudman"
    momentum: float = Field(0.95, ge=0, lt=1)

    def __call__(
        self, forget: Gradient, retain: Gradient, state: dict[str, Any]
    ) -> tuple[Gradient, Gradient]:
        mean = state.get("mean") or [torch.zeros_like(g) for g in retain]
        mean = [self.momentum * m + (1 - self.momentum) * g for m, g in zip(mean, retain, strict=True)]
        length = state.get("length", norm(forget))
        state.update(mean=mean, length=length)
        masked = [g * (g.sign() == m.sign()) for g, m in zip(forget, mean, strict=True)]
        return scaled(masked, length / (norm(masked) + _TINY)), retain


def slope(loss: torch.Tensor, weights: Sequence[torch.Tensor]) -> Gradient:
    """Of `loss`, 0 for weights that it does not depend on."""
    return list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))


@contextmanager
def uphill(weights: Sequence[torch.Tensor], gradient: Gradient, radius: float) -> Iterator[None]:
    """The weights at the distance `radius` where the loss is worst by its gradient, and then where they were.
    Unlearning that holds there too is harder to undo (sharpness-aware minimisation; Fan et al., arXiv 2502.05374)."""
    kept = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w, step in zip(weights, scaled(gradient, radius / (norm(gradient) + _TINY)), strict=True):
            w.add_(step)
    try:
        yield
    finally:
        with torch.no_grad():
            for w, old in zip(weights, kept, strict=True):
                w.copy_(old)


def norm(gradient: Gradient) -> torch.Tensor:
    """[]: length of all together."""
    return torch.stack([g.norm() for g in gradient]).norm()


def scaled(gradient: Gradient, by: torch.Tensor) -> Gradient:
    return [by * g for g in gradient]
