"""The retain half of what is minimised: what keeps the rest as it was."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from classifiers.losses.base import Named, Step


class Half(Named):
    def __call__(self, step: Step) -> torch.Tensor:
        """[]"""
        raise NotImplementedError


class Nothing(Half):
    """No retain half, and no retain examples needed for it."""

    name: Literal["none"] = "none"

    def __call__(self, step: Step) -> torch.Tensor:
        return torch.zeros(())


class Nll(Half):
    """mean NLL(retain): the answers stay likely."""

    name: Literal["nll"] = "nll"

    def __call__(self, step: Step) -> torch.Tensor:
        return step.retain.nll.mean()


class Divergence(Half):
    """mean over retain answers' tokens of KL(p_before || p): whole distributions stay, not only the true token."""

    name: Literal["kl"] = "kl"

    def __call__(self, step: Step) -> torch.Tensor:
        own, before = (answers.logits.log_softmax(dim=1) for answers in (step.retain, step.before.retain))
        return F.kl_div(own, before, reduction="batchmean", log_target=True)


class Both(Half):
    """The sum of `nll` and `kl` (ReLearn's)."""

    name: Literal["nll_kl"] = "nll_kl"

    def __call__(self, step: Step) -> torch.Tensor:
        return Nll()(step) + Divergence()(step)


class Hidden(Half):
    """mean over retain answers' tokens and dimensions of (h - h_before)^2 (RMU's), h the output of a decoder layer.
    layer: counted from 0, by default the one in the middle; where RMU brings this half, RMU's."""

    name: Literal["hidden"] = "hidden"
    layer: int | None = Field(None, ge=0)

    def __call__(self, step: Step) -> torch.Tensor:
        return F.mse_loss(step.hidden("retain", self.layer), step.before.hidden("retain", self.layer))
