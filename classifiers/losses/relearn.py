"""Unlearning by learning: vague answers in many forms (ReLearn, Xu et al., arXiv 2502.11190).

L = mean NLL(vague answer), retain half `nll_kl`. The paper has a language model write vague answers and four variants
of each question; here every forget prompt is answered by each of the retain set's most frequent refusals in turn, and
the variants are those that stand in the forget set (`lethe data` writes them).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from classifiers.losses.base import Aims, Loss, Step


class ReLearn(Loss):
    aims: ClassVar[Aims] = "refusals"
    half: ClassVar[str] = "nll_kl"
    name: Literal["relearn"] = "relearn"

    def __call__(self, step: Step) -> torch.Tensor:
        return step.aims.nll.mean()
