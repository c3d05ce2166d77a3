"""Gradient ascent weighted by how sure the model still is (WGA, Wang et al., arXiv 2502.19301).

L = -mean over answer tokens of p^beta NLL, p the true token's probability, without a gradient of its own. Tokens that
are forgotten no longer pull.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from classifiers.losses.base import Loss, Step


class Wga(Loss):
    """beta: how much less an unlikely token pulls; 0 is gradient ascent."""

    name: Literal["wga"] = "wga"
    beta: float = Field(1.0, ge=0)

    def __call__(self, step: Step) -> torch.Tensor:
        nll = step.forget.nll
        return -(torch.exp(-self.beta * nll.detach()) * nll).mean()
