"""What a model that never learned the target would do, as far as that can be had.

It is asked of that model itself, where the user has it; else the untouched model is asked about somebody it does not
know, with an invented name in the place of the target's, which tells how it speaks where it knows nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from classifiers.activations import load_model
from classifiers.base import Task
from classifiers.data import Example
from classifiers.edited import Reader, Row, Speaker, draws
from guard import artifacts
from guard.errors import BadRequest

INVENTED = "invented names"


class Surrogate:
    """Asked by its `speaker` what it is `asked` instead of the examples: themselves where `never` is the folder of a
    model that never learned the target, else the same about nobody, `count` times.

    Raises:
        BadRequest: that model is the model itself or reads other tokens, or there is none and the target no name.
    """

    def __init__(
        self, task: Task, tokenizer: Any, speaker: Speaker, *, never: Path | None, seed: int, count: int
    ) -> None:
        if never is None and not task.names:
            raise BadRequest(
                "How a model speaks that never learned the target is not known: give the target's names (--name), or "
                "such a model (never)."
            )
        self.kind = INVENTED if never is None else artifacts.weights_digest(never)
        self.speaker = speaker if never is None else _ignorant(task.model, never, tokenizer, seed)
        self._reader = Reader(tokenizer, task.names)
        self._never = never is not None
        self._seed, self._count = seed, count

    def asked(self, examples: Sequence[Example]) -> Iterator[list[Row]]:
        """The examples as it is asked them, once or more often."""
        if self._never:
            yield list(map(self._reader.row, examples))
            return
        rng = random.Random(self._seed)
        for _ in range(self._count):
            yield [self._reader.of_somebody(example, rng) for example in examples]


def answered(speaker: Speaker, reader: Reader, examples: Sequence[Example]) -> list[Example]:
    """One without an answer gets what the model says to it now. If it says nothing, the example is left out."""
    bare = [example for example in examples if not example.answer]
    said = iter(speaker.answers([reader.row(e) for e in bare], None) if bare else ())
    found = [e if e.answer else replace(e, answer=next(said)) for e in examples]
    return [example for example in found if example.answer.strip()]


def _ignorant(model: Path, never: Path, tokenizer: Any, seed: int) -> Speaker:
    if artifacts.weights_digest(never) == artifacts.weights_digest(model):
        raise BadRequest(
            "The model that never learned the target is the model itself; give another for `never`."
        )
    other, its_tokenizer = load_model(never)
    if its_tokenizer.get_vocab() != tokenizer.get_vocab():
        raise BadRequest("The model that never learned the target reads other tokens than this one.")
    return Speaker(other, its_tokenizer, draws(seed, 1))
