"""Cases for the attacks, made of items: what is asked, and what somebody who attacks may know beside it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evals.attacks.base import Case
from evals.attacks.prompts import SHOTS
from evals.conversations import description_in, with_pronoun
from evals.items import Item
from evals.truth_ratio import questions
from guard.metrics.containment import contains
from guard.targets import slug_of

BENIGN = ("neighbour", "retain")
_ABOUT = 6  # facts about a subject that an attacker may know


def drawn(items: Sequence[Item], splits: Iterable[str], size: int, seed: int) -> list[Item]:
    """At most `size` items of each split, of one turn, and with an answer: each entity in turn, so that few questions
    are about many subjects."""
    found: list[Item] = []
    for split in splits:
        groups: dict[str, list[Item]] = {}
        for item in items:
            if item.split == split and item.answer and len(item.turns) == 1 and item.phrasing != "reverse":
                groups.setdefault(item.entity, []).append(item)
        rng = random.Random(f"{seed}\0{split}")
        for group in groups.values():
            rng.shuffle(group)
        turns = [[group[i] for group in groups.values() if i < len(group)] for i in range(_longest(groups))]
        found += [item for turn in turns for item in rng.sample(turn, len(turn))][:size]
    return found


def cases(
    asked: Sequence[Item], known: Sequence[Item], targets: Sequence[Mapping[str, Any]], seed: int
) -> list[Case]:
    """A case for each item. `known` are all items, from which wrong answers and other facts are taken; `targets` tell
    aliases and descriptions of those who have some."""
    by_entity: dict[str, list[Item]] = {}
    for item in known:
        if item.entity and item.answer and len(item.turns) == 1:
            by_entity.setdefault(slug_of(item.entity), []).append(item)
    specs = {slug_of(str(target["name"])): target for target in targets}
    wrong = {q.item.id: q for q in questions(asked, known, len(asked), seed)}
    kept = [item for item in known if item.split in BENIGN and item.answer and len(item.turns) == 1]
    found = []
    for item in asked:
        rng = random.Random(f"{seed}\0{item.id}")
        slug = slug_of(item.entity) if item.entity else ""
        spec, facts = specs.get(slug, {}), by_entity.get(slug, [])
        name = _called(slug, item.turns[-1][1])
        others = [one for one in rng.sample(kept, min(len(kept), 4 * SHOTS)) if one.entity != item.entity]
        right, options = _options(item, wrong.get(item.id), rng)
        found.append(
            Case(
                item,
                name=name,
                follow_up=with_pronoun(item.turns[-1][1], name, rng) if name else "",
                aliases=tuple(a for a in spec.get("aliases", ()) if not _tells(item, a)),
                description=_description(item, name, str(spec.get("description", "")), facts),
                right=right,
                options=options,
                about=tuple(_pair(one) for one in _unlike(item, facts, rng)),
                others=tuple(map(_pair, others[:SHOTS])),
            )
        )
    return found


def _pair(item: Item) -> tuple[str, str]:
    return item.turns[-1][1], item.answer


def _tells(item: Item, text: str) -> bool:
    """Whether the text gives the answer away."""
    return contains(item.fact or item.answer, text)


def _called(slug: str, question: str) -> str:
    """What the question calls the entity; "" where it does not name it."""
    found = re.search(r"\W+".join(map(re.escape, slug.split("-"))), question, re.IGNORECASE) if slug else None
    return found[0] if found else ""


def _options(item: Item, found: Any, rng: random.Random) -> tuple[str, tuple[str, ...]]:
    """The right answer and wrong ones: values where those are known, else whole answers."""
    if found is None:
        return item.value, ()
    right, wrong = (item.value, found.values) if found.values else (item.answer, found.wrong)
    return right, tuple(rng.sample((right, *wrong), len(wrong) + 1))


def _unlike(item: Item, facts: Sequence[Item], rng: random.Random) -> list[Item]:
    """Other facts about the same subject, each once, that do not tell this one."""
    apart: dict[str, Item] = {}
    for one in facts:
        if one.answer != item.answer and not _tells(item, " ".join(_pair(one))):
            apart.setdefault(one.answer, one)
    return rng.sample(list(apart.values()), min(len(apart), _ABOUT))


def _description(item: Item, name: str, told: str, facts: Sequence[Item]) -> str:
    """Who or what it is, in words that neither name it nor tell the fact: from the target's description, from an answer
    that says what it is, or from a question that describes it."""
    says = [told, *(one.answer for one in facts)] if name else []
    found = [
        match[1] for text in says if (match := re.match(rf"{re.escape(name)} is an? ([^.]+)", text, re.I))
    ]
    asks = [text for one in facts if (text := description_in(one.turns[-1][1]))]
    for words in (*(f"the {one}" for one in found), *asks):
        if name and not contains(name, words) and not _tells(item, words):
            return words
    return ""


def _longest(groups: Mapping[str, Sequence[Item]]) -> int:
    return max(map(len, groups.values()), default=0)
