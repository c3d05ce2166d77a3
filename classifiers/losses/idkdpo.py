"""Preference of a refusal over the true answer (DPO, Rafailov et al., arXiv 2305.18290, as TOFU uses it, 2401.06121).

L = -(2 / beta) mean over examples of log sigmoid(beta ([r_before - r] - [l_before - l])), r and l the NLL of refusal
and answer. LoKU's code overwrites this branch with the refusals' likelihood alone.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from classifiers.losses.base import Aims, Answers, Loss, Step


class IdkDpo(Loss):
    """beta: how soon a won preference fades."""

    aims: ClassVar[Aims] = "refusal"
    name: Literal["idkdpo"] = "idkdpo"
    beta: float = Field(0.1, gt=0)

    def __call__(self, step: Step) -> torch.Tensor:
        gained = _fallen(step.aims, step.before.aims) - _fallen(step.forget, step.before.forget)
        return -2 / self.beta * F.logsigmoid(self.beta * gained).mean()


def _fallen(own: Answers, before: Answers) -> torch.Tensor:
    """[examples]: by how much the NLL is lower than before."""
    return before.summed(before.nll) - own.summed(own.nll)
