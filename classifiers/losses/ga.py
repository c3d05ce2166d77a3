"""Gradient ascent: the likelihood of the forget answers, turned round (Jang et al., arXiv 2210.01504; TOFU,
2401.06121).

L = -mean over answer tokens of NLL. It has no floor, so it goes on after everything is forgotten, and has nothing to
hold the rest: use it for comparison.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from classifiers.losses.base import Loss, Step


class Ga(Loss):
    half: ClassVar[str] = "none"
    name: Literal["ga"] = "ga"

    def __call__(self, step: Step) -> torch.Tensor:
        return -step.forget.nll.mean()
