"""Near misses of a target, made from its own examples: the same questions about somebody or something else.

A sentence encoder sees "in which genre does X write" as one question for every X. Only negatives that differ
from the examples in nothing but the entity tell a head, and a threshold, what the target's part of a question
is."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from guard.detection.background import slot
from guard.detection.background_words import POOLS
from guard.detection.evidence import proper
from guard.detection.names import like
from guard.targets import TargetSpec

Role = Literal["own", "partial", "swap", "nameless"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A text made from row `source` of the target's own texts. `own` and `partial` (the last word of the name
    instead of all) speak of the target, `swap` and `nameless` do not."""

    text: str
    role: Role
    source: int


def near_misses(
    spec: TargetSpec, own: Sequence[str], others: Sequence[str], budget: int, rng: random.Random
) -> list[Sample]:
    """At most `budget` samples, spread evenly over the sources: swaps first, each source once per round."""
    makers = [_variants(i, text, spec, others, rng) for i, text in enumerate(own)]
    found: dict[str, Sample] = {}
    while makers and len(found) < budget:
        left = []
        for maker in makers:
            sample = next(maker, None)
            if sample is not None:
                left.append(maker)
                if sample.text not in own:
                    found.setdefault(sample.text, sample)
        makers = left
    return list(found.values())[:budget]


def _variants(
    source: int, text: str, spec: TargetSpec, others: Sequence[str], rng: random.Random
) -> Iterator[Sample]:
    """Endless for a text that names the target or holds other replaceable parts, else empty."""
    named = [name for name in sorted(spec.names(), key=len, reverse=True) if mentions(text, name)]
    if not named and _swap_slots(text, (), rng) == text:
        return
    yield Sample(_swap(text, named, spec.name, others, rng), "swap", source)
    if named:
        if _swap_slots(text, named, rng) == text:
            # without name and without anything else of the target's, it is anybody's question
            yield Sample(_without(text, named), "nameless", source)
        last = named[0].split()[-1]
        if spec.kind == "entity" and len(named[0].split()) > 1 and len(last) >= 3:
            yield Sample(replace(text, named[0], last), "partial", source)
            half = _halved(named[0], rng)
            yield Sample(_swap_slots(replace(text, named[0], half), (half,), rng), "swap", source)
    for _ in range(64):
        yield Sample(_swap(text, named, spec.name, others, rng), "swap", source)


def mentions(text: str, name: str) -> bool:
    return _find(name).search(text) is not None


def replace(text: str, name: str, by: str) -> str:
    return _find(name).sub(lambda match: by, text)


def _find(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)


def _swap(text: str, named: Sequence[str], shape: str, others: Sequence[str], rng: random.Random) -> str:
    """Every name by one other name, and what else could identify the target by something of its sort."""
    other = rng.choice(others) if others and rng.random() < 0.3 else like(named[0] if named else shape, rng)
    for name in named:
        text = replace(text, name, other)
    return _swap_slots(text, (other,), rng)


def _swap_slots(text: str, keep: Sequence[str], rng: random.Random) -> str:
    """Other capitalised names for those in `text`, and other numbers of as many digits."""
    for phrase in sorted(set(proper(text)), key=len, reverse=True):
        # the first word may be capital only because a sentence begins there
        alone = " " not in phrase and text.startswith(phrase)
        if not alone and not any(phrase in kept or kept in phrase for kept in keep):
            text = replace(text, phrase, _instead_of(phrase, rng))
    return re.sub(r"(?<!\w)\d{2,4}(?!\w)", lambda match: _number(match.group(), rng), text)


def _instead_of(phrase: str, rng: random.Random) -> str:
    for sort in ("month", "day"):
        if phrase in POOLS[sort]:
            return slot(sort, rng)
    return like(phrase, rng) if " " in phrase else slot("place", rng)


def _number(digits: str, rng: random.Random) -> str:
    if len(digits) == 4:
        return slot("year", rng)
    return str(rng.randint(10 ** (len(digits) - 1), 10 ** len(digits) - 1))


def _without(text: str, named: Sequence[str]) -> str:
    for name in named:
        text = re.sub(
            rf"(?<!\w)(?:the\s+)?{re.escape(name)}['\u2019]s(?!\w)", "their", text, flags=re.IGNORECASE
        )
        text = re.sub(rf"(?<!\w)(?:the\s+)?{re.escape(name)}(?!\w)", "this one", text, flags=re.IGNORECASE)
    return text


def _halved(name: str, rng: random.Random) -> str:
    """Somebody who shares one word of the name."""
    words, other = name.split(), like(name, rng).split()
    return " ".join([*words[:-1], other[-1]] if rng.random() < 0.5 else [other[0], *words[1:]])
