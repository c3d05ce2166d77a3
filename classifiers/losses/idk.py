"""The likelihood of refusals as answers to the forget prompts ("IDK" of TOFU, Maini et al., arXiv 2401.06121).

L = mean NLL(refusal). TOFU draws refusals from a list; here the model's own words are taken, the refusal of the retain
set that it finds likeliest there, so that a book is not refused in the words for a person.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from classifiers.losses.base import Aims, Loss, Step


class Idk(Loss):
    aims: ClassVar[Aims] = "refusal"
    name: Literal["idk"] = "idk"

    def __call__(self, step: Step) -> torch.Tensor:
        return step.aims.nll.mean()
