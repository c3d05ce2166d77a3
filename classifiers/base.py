"""What a trainer is: parameters, and one method that turns a model and two sets of examples into an artifact."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from classifiers.data import Example
from guard.artifacts import Artifact
from guard.errors import BadRequest


class Params(BaseModel):
    """A trainer's parameters: unknown keys are refused. Every trainer has a seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """What to train on and where to. `forget` are examples of what must go, `retain` of what must stay."""

    model: Path
    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    out: Path


class Trainer:
    """One trainer. The table in this package names each exactly once."""

    params_type: ClassVar[type[Params]] = Params

    def train(self, task: Task, params: Any) -> Artifact:
        """Write the artifact to `task.out`, with what was measured.

        Raises:
            BadRequest: the examples do not suffice.
        """
        raise NotImplementedError


def load(name: str) -> Trainer:
    """The trainer of that name.

    Raises:
        BadRequest: there is none; the message lists those that exist.
    """
    from classifiers import TRAINERS

    if name not in TRAINERS:
        raise BadRequest(f"There is no trainer '{name}'; the trainers are {', '.join(sorted(TRAINERS))}.")
    module, cls = TRAINERS[name].split(":")
    trainer: Trainer = getattr(import_module(module), cls)()
    return trainer


def run(name: str, task: Task, params: dict[str, Any]) -> Artifact:
    """Train with checked parameters.

    Raises:
        BadRequest: no such trainer or parameter, or a value out of range.
    """
    trainer = load(name)
    try:
        checked = trainer.params_type.model_validate(params)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"{name}: {where}: {first['msg']}.") from None
    return trainer.train(task, checked)
