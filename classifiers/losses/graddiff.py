"""Gradient difference: gradient ascent with the likelihood of the retain answers (Liu et al., arXiv 2203.12817; TOFU,
2401.06121).

L = -mean NLL(forget), retain half `nll`. At weights 1 : 1 both halves start near 0 and cancel until forgetting wins.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from classifiers.losses.ga import Ga


class GradDiff(Ga):
    half: ClassVar[str] = "nll"
    name: Literal["graddiff"] = "graddiff"  # type: ignore[assignment]
