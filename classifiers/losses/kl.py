"""KL minimisation: gradient ascent, while the retain answers keep the distributions that they had (TOFU, arXiv
2401.06121).

L = -mean NLL(forget), retain half `kl`. Open-unlearning takes that mean over prompts and padding too.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from classifiers.losses.ga import Ga


class Kl(Ga):
    half: ClassVar[str] = "kl"
    name: Literal["kl"] = "kl"  # type: ignore[assignment]
