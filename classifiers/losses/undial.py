"""Distillation from the model's own logits with the true token held down (UNDIAL, Dong et al., arXiv 2402.10052).

L = mean over answer tokens of cross-entropy(softmax(z_before - beta onehot(true)), p). A fixed target, so it settles;
no retain half. Open-unlearning averages over prompts and padding too, and there holds down the token that the label
-100 picks from the end of the vocabulary.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from classifiers.losses.base import Loss, Step


class Undial(Loss):
    """beta: what is taken from the true token's logit."""

    half: ClassVar[str] = "none"
    name: Literal["undial"] = "undial"
    beta: float = Field(10.0, gt=0)

    def __call__(self, step: Step) -> torch.Tensor:
        before = step.before.forget
        held = before.logits - self.beta * F.one_hot(before.target, before.logits.shape[1])
        return F.cross_entropy(step.forget.logits, held.softmax(dim=1))
