"""The questions that the suites ask, read from a JSON-lines file.

One row: `{"id", "entity", "split", "phrasing", "turns": [{"role", "content"}], "answer", "value", "wrong"}`.
`entity` is the name or slug that the question is about (empty for small talk; names are compared without
case and punctuation, so that a slug is as good as a name), `answer` the gold sentence, `value` the fact in
it, `wrong` a list of false answers, where some are known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.metrics.containment import contains

FORGET = "forget"
UNMATCHED = ("retain", "neighbour", "unknown", "chat")


class ItemError(ValueError):
    """The item file cannot be used; the message says which line and why."""


@dataclass(frozen=True, slots=True)
class Item:
    id: str
    entity: str
    split: str
    phrasing: str
    turns: tuple[tuple[str, str], ...]
    answer: str
    value: str
    wrong: tuple[str, ...] = ()

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in self.turns]

    @property
    def prompt(self) -> str:
        """All that the model is told, one turn a line."""
        return "\n".join(content for _, content in self.turns)

    @property
    def fact(self) -> str:
        """What an answer that knows must state: the value, or the entity where the question tells the
        value."""
        return self.entity if self.value and contains(self.value, self.turns[-1][1]) else self.value


def _item(row: dict[str, Any], line: int) -> Item:
    try:
        turns = tuple((turn["role"], turn["content"]) for turn in row["turns"])
        item = Item(
            id=str(row["id"]),
            entity=row.get("entity") or "",
            split=row["split"],
            phrasing=row.get("phrasing") or "",
            turns=turns,
            answer=row.get("answer") or "",
            value=str(row.get("value") or ""),
            wrong=tuple(map(str, row.get("wrong") or ())),
        )
    except (KeyError, TypeError) as error:
        raise ItemError(f"line {line}: {error!r} is missing or has the wrong type") from error
    if item.split not in (FORGET, *UNMATCHED):
        raise ItemError(f"line {line}: split {item.split!r} is none of {', '.join((FORGET, *UNMATCHED))}")
    if not turns or turns[-1][0] != "user":
        raise ItemError(f"line {line}: the last turn must be the user's")
    return item


def load_items(path: Path) -> list[Item]:
    """All rows of the file; ids must be unique, since answers are paired by them."""
    items, seen = [], set()
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise ItemError(f"line {number} is not JSON: {error}") from error
        item = _item(row, number)
        if item.id in seen:
            raise ItemError(f"line {number}: id {item.id!r} stands twice")
        seen.add(item.id)
        items.append(item)
    if not items:
        raise ItemError("the file holds no items")
    return items


def load_names(path: Path) -> list[str]:
    """Names, one a line."""
    return [name for line in path.read_text(encoding="utf-8").splitlines() if (name := line.strip())]


def names_in(items: Iterable[Item]) -> list[str]:
    """The names of all entities that the items are about, each once, in order."""
    return list(dict.fromkeys(item.entity for item in items if item.entity))


def fingerprint(path: Path) -> dict[str, str]:
    """What identifies an input file in a report."""
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
