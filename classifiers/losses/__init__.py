"""The losses of unlearning, each in a file of its own, and the tables that name them.

total = gamma * L_forget + retain_weight * L_retain. A forget half is one of `LOSSES`, a retain half one of `HALVES`,
and `UPDATES` are the ways in which their gradients meet. Each is chosen by its bare name, or by an object of its name
and parameters.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from classifiers.losses.base import Loss, by_name, table
from classifiers.losses.flat import Flat
from classifiers.losses.ga import Ga
from classifiers.losses.graddiff import GradDiff
from classifiers.losses.idk import Idk
from classifiers.losses.idkdpo import IdkDpo
from classifiers.losses.ihl import Ihl
from classifiers.losses.kl import Kl
from classifiers.losses.memorise import Memorise
from classifiers.losses.npo import Npo
from classifiers.losses.relearn import ReLearn
from classifiers.losses.retain import Both, Divergence, Half, Hidden, Nll, Nothing
from classifiers.losses.rmu import Rmu
from classifiers.losses.simnpo import SimNpo
from classifiers.losses.undial import Undial
from classifiers.losses.updates import Mudman, NgDiff, Sum, Update
from classifiers.losses.wga import Wga

_Losses = (
    Ga | GradDiff | Kl | Npo | SimNpo | Idk | IdkDpo | ReLearn | Rmu | Flat | Ihl | Undial | Wga | Memorise
)
_Halves = Nll | Divergence | Both | Hidden | Nothing
_Updates = Sum | NgDiff | Mudman

LOSSES: dict[str, type[Loss]] = table(*get_args(_Losses))
HALVES: dict[str, type[Half]] = table(*get_args(_Halves))
UPDATES: dict[str, type[Update]] = table(*get_args(_Updates))

ChosenLoss = Annotated[Annotated[_Losses, Field(discriminator="name")], by_name(_Losses, tuple(LOSSES))]
ChosenHalf = Annotated[Annotated[_Halves, Field(discriminator="name")], by_name(_Halves, tuple(HALVES))]
ChosenUpdate = Annotated[Annotated[_Updates, Field(discriminator="name")], by_name(_Updates, tuple(UPDATES))]

__all__ = [
    "HALVES",
    "LOSSES",
    "UPDATES",
    "ChosenHalf",
    "ChosenLoss",
    "ChosenUpdate",
    "Half",
    "Idk",
    "Loss",
    "Nothing",
    "Sum",
    "Update",
]
