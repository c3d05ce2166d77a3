"""The answers are learned better: no unlearning, but the task vector that NegMerge takes away (arXiv 2410.05583)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from classifiers.losses.base import Loss, Step


class Memorise(Loss):
    name: Literal["memorise"] = "memorise"
    half: ClassVar[str] = "none"

    def __call__(self, step: Step) -> torch.Tensor:
        return step.forget.nll.mean()
