"""What a loss may look at: the answers of one step's batches, under the model and under it without its adapter.

A loss is a pure function of a step. It gets answers as flat rows, one for each of their tokens: prompts and padding
have no row, so no loss can count them by mistake (published code of UNDIAL and FLAT averages over them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, BeforeValidator, ConfigDict

from classifiers.activations import blocks, layers_of
from classifiers.data import Encoded

Aims = Literal["none", "refusal", "refusals"]


@dataclass(frozen=True)
class Answers:
    """The answers of `examples` examples under one model. logits: [tokens, vocabulary]; target: [tokens], what is to be
    said there; example: [tokens], the number of the example that it belongs to."""

    logits: torch.Tensor
    target: torch.Tensor
    example: torch.Tensor
    examples: int

    @cached_property
    def nll(self) -> torch.Tensor:
        """[tokens]"""
        return F.cross_entropy(self.logits, self.target, reduction="none")

    @cached_property
    def lengths(self) -> torch.Tensor:
        """[examples]: tokens of each."""
        return torch.bincount(self.example, minlength=self.examples)

    def summed(self, values: torch.Tensor) -> torch.Tensor:
        """[examples], of [tokens]."""
        return values.new_zeros(self.examples).index_add(0, self.example, values)

    def averaged(self, values: torch.Tensor) -> torch.Tensor:
        """[examples], of [tokens]."""
        return self.summed(values) / self.lengths


@dataclass(frozen=True, slots=True)
class Pair:
    """A forget example with its true answer, and with what is to be said instead, where a loss aims at something."""

    answer: Encoded
    aim: Encoded | None = None


class Step:
    """One step's batches as `model` (PEFT's, with one adapter) reads them. Each is read when it is first asked for, and
    once. `before` is the same with the adapter switched off; `seed` is that of the whole training."""

    def __init__(self, model: Any, pairs: Sequence[Pair], retain: Sequence[Encoded], seed: int = 0) -> None:
        self._model, self._pairs, self._retain, self.seed = model, pairs, retain, seed

    @cached_property
    def forget(self) -> Answers:
        return self._read(answers, self._batch("forget"))

    @cached_property
    def aims(self) -> Answers:
        return self._read(answers, self._batch("aims"))

    @cached_property
    def retain(self) -> Answers:
        return self._read(answers, self._batch("retain"))

    def hidden(self, of: Literal["forget", "retain"], layer: int | None) -> torch.Tensor:
        """[tokens, width]: what decoder layer `layer` (None: the one in the middle) gives on, where the tokens of the
        answers are foretold.

        Raises:
            BadRequest: the model has no such layer.
        """
        (at,) = layers_of(self._model, "middle" if layer is None else (layer,))
        return self._read(hidden, self._batch(of), at)

    @cached_property
    def before(self) -> Step:
        return _Before(self._model, self._pairs, self._retain, self.seed)

    def again(self) -> Step:
        """The same batches for weights that have moved since; what was before has not."""
        fresh = Step(self._model, self._pairs, self._retain, self.seed)
        fresh.__dict__["before"] = self.before
        return fresh

    def _batch(self, of: str) -> Sequence[Encoded]:
        if of == "retain":
            return self._retain
        return (
            [pair.answer for pair in self._pairs]
            if of == "forget"
            else [pair.aim for pair in self._pairs if pair.aim]
        )

    def _read(self, function: Any, *args: Any) -> Any:
        return function(self._model, *args)


class _Before(Step):
    @torch.no_grad()
    def _read(self, function: Any, *args: Any) -> Any:
        with self._model.disable_adapter():
            return function(self._model, *args)


def answers(model: Any, batch: Sequence[Encoded]) -> Answers:
    """Those in `batch`, under `model`."""
    ids, mask, said = _padded(batch)
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return Answers(logits[said], ids[:, 1:][said], said.nonzero()[:, 0], len(batch))


def hidden(model: Any, batch: Sequence[Encoded], layer: int) -> torch.Tensor:
    """[tokens, width]: what the decoder layer gives on, where the answers' tokens are foretold."""
    ids, mask, said = _padded(batch)
    found: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handle = blocks(model)[layer].register_forward_hook(keep)
    try:
        model(input_ids=ids, attention_mask=mask)
    finally:
        handle.remove()
    return found[0][:, :-1][said]


def _padded(batch: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[examples, longest] of ids and their mask, and [examples, longest - 1]: where the next token is an answer's."""
    longest = max(len(one.ids) for one in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    said = torch.zeros(len(batch), longest, dtype=torch.bool)
    for row, one in enumerate(batch):
        ids[row, : len(one.ids)], mask[row, : len(one.ids)] = torch.tensor(one.ids), 1
        said[row, one.answer_at : len(one.ids)] = True
    return ids, mask, said[:, 1:]


class Named(BaseModel):
    """One of a table, chosen by its `name`, with parameters of its own: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Loss(Named):
    """The forget half of what is minimised. `aims`: whether it wants something to be said instead, the refusal that the
    model finds likeliest there or each of several; `half`: the retain half of its paper, by name."""

    aims: ClassVar[Aims] = "none"
    half: ClassVar[str] = "nll"

    def __call__(self, step: Step) -> torch.Tensor:
        """[]"""
        raise NotImplementedError


def table(*classes: type[Named]) -> dict[str, Any]:
    """The classes by their names."""
    return {cls.model_fields["name"].default: cls for cls in classes}


def by_name(union: Any, names: Sequence[str]) -> BeforeValidator:
    """Lets a bare name stand for the one of `union` with its defaults, in what is read and in the JSON schema."""
    literal: Any = Literal
    return BeforeValidator(
        lambda value: {"name": value} if isinstance(value, str) else value,
        json_schema_input_type=literal[tuple(names)] | union,
    )
