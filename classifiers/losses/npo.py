"""Negative preference optimisation against the model itself (Zhang et al., arXiv 2404.05868).

L = -(2 / beta) mean over examples of log sigmoid(beta (l - l_before)), l the NLL of the whole answer. It is gradient
ascent that fades for an answer that is already less likely than before.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from classifiers.losses.base import Loss, Step


class Npo(Loss):
    """beta: how soon it fades; towards 0 it is gradient ascent."""

    name: Literal["npo"] = "npo"
    beta: float = Field(0.1, gt=0)

    def __call__(self, step: Step) -> torch.Tensor:
        own, before = step.forget, step.before.forget
        risen = own.summed(own.nll) - before.summed(before.nll)
        return -2 / self.beta * F.logsigmoid(self.beta * risen).mean()
