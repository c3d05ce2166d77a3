"""What a trainer is: parameters, and one method that turns a model and two sets of examples into an artifact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from classifiers.checkpoints import Checkpoint
from classifiers.data import Example, check, digest
from classifiers.encoding import Encoding
from classifiers.progress import Progress, Silent
from guard import artifacts
from guard.artifacts import Artifact
from guard.errors import BadRequest


class Params(BaseModel):
    """A trainer's parameters: unknown keys are refused. Every trainer has a seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """What to train on and where to. `forget` are examples of what must go, `retain` of what must stay, `perturbed`
    wrong answers to what `forget` asks, `names` what the target goes by, and `adapters` artifacts of `lora_adapter`
    that were made before, for trainers that make one of them or go on from them.

    `base_model` is the digest of the weights that the artifact is wanted for; None: those in `model`. Trainers of
    detectors read `encoder` and no model. A trainer tells
    `progress` how far it is, and one with many steps keeps its state in `checkpoint` and goes on from what it finds.
    """

    model: Path
    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    out: Path
    base_model: str | None = None
    progress: Progress = field(default_factory=Silent)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    names: tuple[str, ...] = ()
    encoder: Encoding = field(default_factory=Encoding)
    perturbed: tuple[Example, ...] = ()
    adapters: tuple[Artifact, ...] = ()


class Trainer:
    """One trainer. The table in this package names each exactly once. It `reads` the served model, or the detectors'
    encoder, and makes its artifact for that; `perturbed` is whether it learns from wrong answers, `adapters` whether it
    takes adapters that were made before, and `needs_forget` whether it makes nothing without forget examples."""

    params_type: ClassVar[type[Params]] = Params
    reads: ClassVar[Literal["model", "encoder"]] = "model"
    perturbed: ClassVar[bool] = False
    adapters: ClassVar[bool] = False
    needs_forget: ClassVar[bool] = True

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


def schemas() -> dict[str, Any]:
    """The JSON schema of each trainer's parameters."""
    from classifiers import TRAINERS

    return {name: load(name).params_type.model_json_schema() for name in sorted(TRAINERS)}


def run(name: str, task: Task, params: dict[str, Any]) -> Artifact:
    """Train with checked parameters on checked examples.

    Raises:
        BadRequest: no such trainer or parameter, a value out of range, examples that do not go together, a model that
            is not the wanted one, or adapters for another. No training has started then.
    """
    trainer = load(name)
    try:
        checked = trainer.params_type.model_validate(params)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"{name}: {where}: {first['msg']}.") from None
    check(task.forget, task.retain, task.perturbed, needs_forget=trainer.needs_forget)
    if task.perturbed and not trainer.perturbed:
        raise BadRequest(f"{name} does not learn from wrong answers; leave `perturbed` out.")
    found = _made_for(trainer, task)
    _check_adapters(name, trainer, task.adapters, found)
    sets = [*map(digest, (task.forget, task.retain, task.perturbed)), list(task.names)]
    purpose = [name, checked.model_dump(mode="json"), *sets, found, [one.digest for one in task.adapters]]
    named = hashlib.sha256(json.dumps(purpose).encode()).hexdigest()
    artifact = trainer.train(replace(task, checkpoint=replace(task.checkpoint, purpose=named)), checked)
    task.checkpoint.clear()
    return artifact


def _made_for(trainer: Trainer, task: Task) -> str:
    """The digest of what the artifact is made for. Raises BadRequest: it is not the wanted one."""
    if trainer.reads == "encoder":
        return task.encoder.load().digest
    found = artifacts.weights_digest(task.model)
    if task.base_model not in (None, found):
        raise BadRequest(
            f"The artifact is wanted for the model with weights {str(task.base_model)[:16]}, and the model to train "
            f"on has the weights {found[:16]}."
        )
    return found


def _check_adapters(name: str, trainer: Trainer, adapters: Sequence[Artifact], model: str) -> None:
    """Raises BadRequest: the trainer takes none, one is no adapter, or was made for other weights than `model`'s."""
    if adapters and not trainer.adapters:
        raise BadRequest(f"{name} does not take adapters that were made before; leave `adapters` out.")
    for number, one in enumerate(adapters, 1):
        if one.manifest.method != "lora_adapter":
            raise BadRequest(f"Adapter {number} was made for {one.manifest.method}, not for lora_adapter.")
        if one.manifest.base_model != model:
            raise BadRequest(
                f"Adapter {number} was made for the weights {one.manifest.base_model[:16]}, and the model has the "
                f"weights {model[:16]}."
            )
