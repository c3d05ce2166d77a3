"""Inverted hinge loss: the true token gives way to the next best one, and to no other (LoKU, Cha et al., arXiv
2408.06621).

L = mean over answer tokens of 1 + p(true) - max over other tokens of p. It lies in [0, 2], so it ends where gradient
ascent goes on. LoKU starts the adapter with FILA: `init: fila`.
"""

from __future__ import annotations

from typing import Literal

import torch

from classifiers.losses.base import Loss, Step


class Ihl(Loss):
    name: Literal["ihl"] = "ihl"

    def __call__(self, step: Step) -> torch.Tensor:
        own = step.forget
        true, chances = own.target[:, None], own.logits.softmax(dim=1)
        best = chances.scatter(1, true, -1.0).amax(dim=1)
        return (1 + chances.gather(1, true)[:, 0] - best).mean()
