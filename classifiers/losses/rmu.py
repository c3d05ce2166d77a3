"""Representation misdirection: inside the model, the forget answers become one random direction (RMU, Li et al., arXiv
2403.03218).

L = mean over answer tokens and dimensions of (h - c u)^2, h the output of a decoder layer and u a random vector of
length 1, uniform in [0, 1) before; retain half `hidden`, which keeps h on retain answers. The paper trains three
matrices of full rank up to that layer and takes all tokens of a text; here the adapter's places are trained, and the
places where answer tokens are foretold count.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from classifiers.losses.base import Loss, Step


class Rmu(Loss):
    """layer: counted from 0, by default the one in the middle; c: length of what h is drawn to."""

    half: ClassVar[str] = "hidden"
    name: Literal["rmu"] = "rmu"
    layer: int | None = Field(None, ge=0)
    c: float = Field(2.0, gt=0)

    def __call__(self, step: Step) -> torch.Tensor:
        own = step.hidden("forget", self.layer)
        u = torch.rand(own.shape[1], generator=torch.Generator().manual_seed(step.seed))
        return F.mse_loss(own, (self.c * u / u.norm()).expand_as(own))
