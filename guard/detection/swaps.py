"""Near misses of a target, made from its own examples: the same questions about somebody or something else.

A sentence encoder sees "in which genre does X write" as one question for every X. Only negatives that differ
from the examples in nothing but the entity tell a head, and a threshold, what the target's part of a question
is."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from functools import cache

from guard.detection.background import fill, slot
from guard.detection.background_templates import FAMILIES
from guard.detection.background_words import POOLS
from guard.detection.evidence import ordinary, proper, words
from guard.detection.names import like
from guard.targets import TargetSpec
from guard.types import Span

_NAME_SLOT = re.compile(r"\{(?:person|company|title)\}")
_NUMBERS = re.compile(r"(?<!\w)\d{2,4}(?!\w)")


def near_misses(
    spec: TargetSpec, own: Sequence[str], others: Sequence[str], budget: int, rng: random.Random
) -> list[str]:
    """At most `budget` texts that do not speak of the target, spread evenly over its `own` texts that they are made
    from: swaps first, each source once per round."""
    makers = [_variants(text, spec, others, rng) for text in own]
    if any(mentions(text, name) for text in own for name in spec.names()):
        beside = [_without(text, spec.names()) for text in (*own, *spec.answers)]
        makers += [
            _related(list(dict.fromkeys(phrase for text in beside for phrase in proper(text))), rng)
        ] * 2
    found: dict[str, None] = {}
    while makers and len(found) < budget:
        left = []
        for maker in makers:
            text = next(maker, None)
            if text is not None:
                left.append(maker)
                if text not in own:
                    found.setdefault(text)
        makers = left
    return list(found)[:budget]


def _variants(text: str, spec: TargetSpec, others: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Endless for a text that names the target or holds other replaceable parts, else empty."""
    named = [name for name in sorted(spec.names(), key=len, reverse=True) if mentions(text, name)]
    if not named and swap_slots(text, (), rng) == text:
        return
    yield _swap(text, named, spec.name, others, rng)
    if named:
        if swap_slots(text, named, rng) == text:
            # without name and without anything else of the target's, it is anybody's question
            yield _without(text, named)
        if len(named[0].split()) > 1:
            half = halved(named[0], rng)
            yield swap_slots(replace(text, named[0], half), (half,), rng)
    for _ in range(64):
        yield _swap(text, named, spec.name, others, rng)
        # what many have in common, a place or a year, is not yet the target
        yield _swap(text, named, spec.name, others, rng, shared=True)


def _related(phrases: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Ordinary questions about what is named beside the target: it has a life of its own."""
    for _ in range(64 if phrases else 0):
        template = rng.choice(_about_one())
        yield fill(_NAME_SLOT.sub(lambda match: rng.choice(phrases), template), rng)


@cache
def _about_one() -> list[str]:
    """Templates of the background that ask about one person, company or work."""
    return [text for family in FAMILIES.values() for text in family if len(_NAME_SLOT.findall(text)) == 1]


def mentions(text: str, name: str) -> bool:
    return _find(name).search(text) is not None


def places(text: str, name: str) -> list[Span]:
    """Where the name stands in the text."""
    return [Span(*match.span()) for match in _find(name).finditer(text)]


def replace(text: str, name: str, by: str) -> str:
    return _find(name).sub(lambda match: by, text)


def _find(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)


def _swap(
    text: str,
    named: Sequence[str],
    shape: str,
    others: Sequence[str],
    rng: random.Random,
    shared: bool = False,
) -> str:
    """Every name by one other name, and what else could identify the target by something of its sort; all of it but
    one thing if that is `shared`."""
    other = rng.choice(others) if others and rng.random() < 0.3 else like(named[0] if named else shape, rng)
    for name in named:
        text = replace(text, name, other)
    slots = [found for found in _slots(text) if found not in other]
    kept = [rng.choice(slots)] if shared and len(slots) > 1 else []
    return swap_slots(text, (other, *kept), rng)


def _slots(text: str) -> list[str]:
    """Capitalised names and numbers that can be replaced, longer names first."""
    names = sorted(set(proper(text)), key=len, reverse=True)
    # an ordinary word may be capital only because a sentence begins there
    sure = [name for name in names if not words(name) <= ordinary()]
    return [*sure, *dict.fromkeys(_NUMBERS.findall(text))]


def swap_slots(text: str, keep: Sequence[str], rng: random.Random) -> str:
    """Other names for those in `text`, and other numbers of as many digits."""
    for found in _slots(text):
        if not any(found in kept or kept in found for kept in keep):
            by = _number(found, rng) if found.isdigit() else _instead_of(found, rng)
            text = replace(text, found, by)
    return text


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


def halved(name: str, rng: random.Random) -> str:
    """Somebody who shares one word of the name."""
    words, other = name.split(), like(name, rng).split()
    return " ".join([*words[:-1], other[-1]] if rng.random() < 0.5 else [other[0], *words[1:]])
