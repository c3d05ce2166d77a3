"""Forget data only: a template answer against the true one by an f-divergence (FLAT, Wang et al., arXiv 2410.11143).

L = mean over examples of -g(P_t) + f(g(P_f)), P the mean probability of the answer's tokens, of the template (here the
likeliest refusal) and of the true answer. No reference and no retain half. Published code takes these means over
padding too, where the probability counts as 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from classifiers.losses.base import Aims, Answers, Loss, Step

Form = Literal["tv", "kl", "js", "pearson"]

DIVERGENCES: dict[Form, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "tv": lambda template, true: (torch.tanh(true) - torch.tanh(template)) / 2,
    "kl": lambda template, true: torch.exp(true - 1) - template,
    "js": lambda template, true: F.softplus(-template) + true + F.softplus(-true) - 2 * math.log(2),
    "pearson": lambda template, true: true**2 / 4 + true - template,
}


class Flat(Loss):
    """divergence: `tv` (total variation), `kl`, `js` or `pearson`."""

    aims: ClassVar[Aims] = "refusal"
    half: ClassVar[str] = "none"
    name: Literal["flat"] = "flat"
    divergence: Form = Field("tv")

    def __call__(self, step: Step) -> torch.Tensor:
        return DIVERGENCES[self.divergence](_probability(step.aims), _probability(step.forget)).mean()


def _probability(answers: Answers) -> torch.Tensor:
    """[examples]: mean over the answer's tokens."""
    return answers.averaged(torch.exp(-answers.nll))
