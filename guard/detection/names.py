"""The ways in which a name is written, and names of the same shape for somebody else."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from guard.detection.background_words import COMPANY_ENDS, FIRST, LAST, TITLE_HEADS, TITLE_TAILS
from guard.detection.base import Form
from guard.detection.codes import rot13
from guard.detection.sounds import spellings, transliterated
from guard.detection.text import fold
from guard.targets import TargetSpec

DERIVED = 0.95  # score of a way of writing that nobody registered
MISSPELT = 0.9
_LONG_ENOUGH = 10  # letters of a name of several words that may be misspelt by one without meaning another
_SHORTEST_CODED = 8  # letters; shorter names turn up by chance when written backwards or without spaces
_TITLES = frozenset(
    (
        "mr",
        "mrs",
        "ms",
        "miss",
        "dr",
        "prof",
        "professor",
        "sir",
        "dame",
        "lord",
        "lady",
        "rev",
        "st",
        "saint",
        "president",
        "king",
        "queen",
    )
)
_COMPANY = frozenset(
    (
        "inc",
        "ltd",
        "llc",
        "plc",
        "gmbh",
        "ag",
        "sa",
        "co",
        "corp",
        "corporation",
        "company",
        "limited",
        "incorporated",
    )
)
_UMLAUTS = str.maketrans(
    {"ä": "ae", "ö": "oe", "ü": "ue", "ø": "oe", "å": "aa", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "Ø": "Oe"}
)


def forms(spec: TargetSpec) -> tuple[Form, ...]:
    """Registered names with score 1.0, then what is derived from them, each folded text once."""
    found: dict[str, float] = {}
    for name in spec.names():
        found.setdefault(fold(name).text, 1.0)
    for name in spec.names():
        for variant in _variants(name, spec.kind == "entity"):
            found.setdefault(variant, DERIVED)
    for text in list(found):
        if found[text] == 1.0:
            for variant in _misspelt(text):
                found.setdefault(variant, MISSPELT)
    for name in spec.names():
        for variant in spellings(name):
            found.setdefault(variant, MISSPELT)
    return tuple(Form(text, score) for text, score in found.items() if text)


def _misspelt(text: str) -> Iterator[str]:
    """One letter left out, written twice or exchanged with its neighbour; the first letter is never wrong."""
    if " " not in text or len(text) < _LONG_ENOUGH or not text.isascii():
        return
    for i in range(1, len(text)):
        before, letter, after = text[:i], text[i], text[i + 1 :]
        if letter != " " and before[-1] != " ":
            yield before + after
            yield before + letter + letter + after
            if after[:1].strip():
                yield before + after[0] + letter + after[1:]


def _variants(name: str, entity: bool) -> Iterator[str]:
    """Folded derived forms of one name."""
    text = fold(name).text
    if latin := transliterated(name):
        yield fold(latin).text
    last, comma, first = name.partition(",")
    if comma and entity and first.strip() and len(name.split()) <= 5:
        yield fold(f"{first} {last}").text
    if name.translate(_UMLAUTS) != name:
        yield fold(name.translate(_UMLAUTS)).text
    if len(text) >= 4 and not text.endswith("s"):
        yield f"{text}s"
    units = _units(name)
    if entity and len(units) >= 2:
        yield from _shortened(units)
    yield _initials_joined(text)
    yield from _coded(text)


def _initials_joined(text: str) -> str:
    """ "j k rowling" as "jk rowling"."""
    words: list[str] = []
    for i, word in enumerate(text.split()):
        if i and len(word) == 1 and len(text.split()[i - 1]) == 1:
            words[-1] += word
        else:
            words.append(word)
    return " ".join(words)


def _units(name: str) -> list[str]:
    """Folded words of a name, double names kept together, without titles before and company endings after
    it."""
    units = [fold(word).text for word in name.replace(",", " ").split()]
    units = [unit for unit in units if unit]
    while len(units) > 2 and units[0] in _TITLES:
        units = units[1:]
    while len(units) > 1 and units[-1] in _COMPANY:
        units = units[:-1]
    return units


def _shortened(units: Sequence[str]) -> Iterator[str]:
    """First and last name, initials for what is between, last name first. Only for two to four words."""
    yield " ".join(units)
    if units[0] in ("the", "a", "an"):
        if len(units) > 2:
            yield " ".join(units[1:])
        return
    if len(units) > 4 or min(len(units[0]), len(units[-1])) < 2:
        return
    yield f"{units[-1]} {' '.join(units[:-1])}"
    if len(units) > 2:
        yield f"{units[0]} {units[-1]}"
        yield f"{units[0]} {' '.join(unit[0] for unit in units[1:-1])} {units[-1]}"


def _coded(text: str) -> Iterator[str]:
    """Without spaces, backwards and in rot13: what a few letters of code do to a name."""
    joined = text.replace(" ", "")
    if len(joined) >= _SHORTEST_CODED and joined.isascii():
        yield joined
        yield joined[::-1]
        yield text[::-1]
        yield rot13(text)


def like(name: str, rng: random.Random) -> str:
    """An invented name of the same shape: a person, a company, a title, or words of as many syllables."""
    words = name.split()
    folded = [fold(word).text for word in words]
    if folded[-1] in _COMPANY or folded[-1] in {end.lower() for end in COMPANY_ENDS}:
        return f"{_invented(words[0], rng)} {words[-1]}"
    if folded[0] in ("the", "a", "an"):
        middle = f"{rng.choice(TITLE_HEADS)} {rng.choice(TITLE_TAILS)}"
        return f"{words[0]} {middle}"
    # capitalised words may name a person or a thing: half of the replacements are of either sort
    if 2 <= len(words) <= 4 and all(word[:1].isupper() for word in words) and rng.random() < 0.5:
        first = " ".join(rng.sample(FIRST, len(words) - 1))
        return f"{first} {rng.choice(LAST)}"
    return " ".join(_invented(word, rng) for word in words)


def _invented(word: str, rng: random.Random) -> str:
    """A pronounceable word that is about as long as `word`, with its capital."""
    length = max(2, (len(word) + 1) // 3)
    made = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(length)) + rng.choice(
        ("", "n", "r", "x")
    )
    return made.capitalize() if word[:1].isupper() else made
