"""Questions as the forms of `evals.conversations` take them, from TOFU and from the demo's own items."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from evals import corpora
from evals.conversations import Case, description_in, with_pronoun
from evals.corpora import Question, Trial
from evals.items import FORGET, load_items
from guard.targets import slug_of

LARGEST = "forget10"  # holds the authors of the other forget splits


@dataclass(frozen=True, slots=True)
class Cases:
    """Targets to register, cases about them and cases about others, each sort of which is reported apart."""

    trial: Trial
    about: tuple[Case, ...]
    others: tuple[Case, ...]


NAMED, DESCRIBED, NOBODY = "others named", "others described", "about nobody"


def tofu_named(folder: Path, benign: Sequence[Question], seed: int) -> Cases:
    """Rows that name their author: of the forget split those that are not registered, and of the retain split."""
    trial = _largest(folder, described=False)
    asked = [q for q in trial.questions if q.sort == "named"]
    about = [_named(q, trial.targets[str(q.target)].name, seed) for q in asked]
    return Cases(trial, tuple(c for c in about if c), (*_others_named(trial, seed), *_about_nobody(benign)))


def tofu_described(folder: Path, benign: Sequence[Question], seed: int) -> Cases:
    """What the row that describes an author says, in other words for the forget split, in place of the name in the
    other rows; that row is registered too."""
    trial = _largest(folder, described=True)
    about = [
        case
        for row in trial.questions
        if row.sort == "row 0, paraphrased"
        for case in _described(row, _rows_of(trial, row), trial.targets[str(row.target)].name, seed)
    ]
    described = [c for name, rows in _retained(trial) for c in _described(rows[0], rows[1:], name, seed)]
    return Cases(trial, tuple(about), (*_others_named(trial, seed), *described, *_about_nobody(benign)))


def demo(folder: Path, seed: int) -> Cases:
    """Items of one turn that name what they are about."""
    trial = corpora.demo(folder)
    about: list[Case] = []
    others: list[Case] = []
    for item in load_items(folder / "items.jsonl"):
        name = re.search(r"\W+".join(re.split(r"\W+", slug_of(item.entity))), item.prompt, re.IGNORECASE)
        if item.entity and name and len(item.turns) == 1:
            target = slug_of(item.entity) if item.split == FORGET else None
            case = _named(Question(item.id, item.split, item.prompt, target), name[0], seed)
            (about if target else others).extend([case] if case else [])
    return Cases(trial, tuple(about), tuple(others))


def _others_named(trial: Trial, seed: int) -> list[Case]:
    """The rows of the retain split that name their author."""
    made = [_named(row, name, seed) for name, rows in _retained(trial) for row in rows[1:]]
    return [case for case in made if case]


def _about_nobody(benign: Sequence[Question]) -> list[Case]:
    return [Case(question.id, NOBODY, question.text) for question in benign]


def _largest(folder: Path, *, described: bool) -> Trial:
    return next(trial for trial in corpora.tofu(folder, (), described) if trial.name == LARGEST)


def _retained(trial: Trial) -> Iterator[tuple[str, list[Question]]]:
    """(name, rows) of each author of the retain split."""
    retain = [question for question in trial.questions if question.sort == "retain"]
    for _, group in groupby(retain, key=lambda q: int(q.id.split(".")[1]) // corpora.ROWS_PER_AUTHOR):
        rows = list(group)
        yield corpora.name_in([row.text for row in rows]), rows


def names_of_retained(trial: Trial) -> dict[str, str]:
    """Question -> the author whom it is about, of the retain split."""
    return {row.text: name for name, rows in _retained(trial) for row in rows}


def _rows_of(trial: Trial, row: Question) -> list[Question]:
    return [q for q in trial.questions if q.sort == "named" and q.target == row.target]


def _named(question: Question, name: str, seed: int) -> Case | None:
    follow_up = with_pronoun(question.text, name, random.Random(f"{seed}\x00{question.id}"))
    if follow_up == question.text or name in follow_up:
        return None
    sort = NAMED if question.target is None else "named"
    return Case(question.id, sort, question.text, name, follow_up, question.target)


def _described(row: Question, others: Sequence[Question], name: str, seed: int) -> Iterator[Case]:
    """The other rows with the description of `row` for the name."""
    description = description_in(row.text)
    if description is None or name in description:
        return
    sort = DESCRIBED if row.target is None else "described"
    for other in others:
        case = _named(other, name, seed)
        if case is not None:
            asked = case.asked.replace(f"{name}'s", f"{description}'s").replace(name, description)
            yield Case(f"{row.id}/{other.id}", sort, asked, description, case.follow_up, row.target)
