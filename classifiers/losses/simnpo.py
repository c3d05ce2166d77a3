"""NPO by token and without a reference (SimNPO, Fan et al., arXiv 2410.07163).

L = -(2 / beta) mean over examples of log sigmoid(beta (l / tokens - delta)), l the NLL of the whole answer. The paper
weighs it with gamma 0.125 against the retain half.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from classifiers.losses.base import Loss, Step


class SimNpo(Loss):
    """beta: how soon it fades; delta: from which NLL a token on."""

    name: Literal["simnpo"] = "simnpo"
    beta: float = Field(4.5, gt=0)
    delta: float = Field(0.0, ge=0)

    def __call__(self, step: Step) -> torch.Tensor:
        own = step.forget
        return -2 / self.beta * F.logsigmoid(self.beta * (own.averaged(own.nll) - self.delta)).mean()
