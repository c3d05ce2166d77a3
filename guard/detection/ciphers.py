"""Letters that stand for other letters, and letters in another order: shifts of the alphabet (rot13 and the
others), its reverse (Atbash), rot47, digits and signs for letters, look-alike letters, each also backwards.

No alphabet gives these away, so every reading is tried on what does not look like language, and believed where the
language model finds it likelier than what stands there, and likelier than noise, by more than chance gives: the
limit is the one that 1 in 1,000 background prompts that the model has not seen would pass (split-conformal).
"""

from __future__ import annotations

import itertools
import re
import string
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np

from guard.detection.background import background, background_groups
from guard.detection.calibrate import conformal
from guard.detection.codes import Patch, letter_by_letter
from guard.detection.language import (
    NOISE,
    Characters,
    Stretch,
    code_of,
    letters_cost,
    logs,
    logs_of,
    mean_log,
    running,
    stretches,
    unlikeness,
)
from guard.detection.lookalikes import LOOKALIKES
from guard.detection.segments import common

_RATE = 0.001  # of ordinary prompts in which a given reading may be believed
_TRIED = 0.05  # of ordinary prompts on which readings may be tried at all
_ALL_SHIFTS = 100_000  # characters; in longer texts only the readings that people use are tried
_APART = 10_000.0  # evidence that no prompt gathers: ends the running sum of the one before
_KEY = 16  # characters; shorter ones are part numbers and abbreviations
_FAR = 64  # words on either side of a stretch that may belong to it
_AT_ONCE = 65_536  # characters that several readings together are tried on
_UNSURE = 4  # signs of one word that are tried as either of two letters
_LOWER, _UPPER = string.ascii_lowercase, string.ascii_uppercase
_SIGNS = "0123456789@$!|+(\u20ac\u00a3\u00a5\u00a2\u00a7"
_UNSURE_SIGNS, _EITHER = "1!|", "il"
_NUMBER = re.compile(r"[\W\d_]*(?:\d|1st|2nd|3rd|[04-9](?:th|7h))[\W_]*", re.IGNORECASE)
_LEET = {ord(sign): letter for sign, letter in zip(_SIGNS, "oizeasgtbgasiitcelycs", strict=True)}


@dataclass(frozen=True, eq=False)
class Reading:
    """A way of reading: each character as another, and perhaps the whole backwards."""

    mapping: dict[int, str]
    backwards: bool = False
    common: bool = False
    leet: bool = False

    def evidence(self, chars: Characters) -> np.ndarray:
        """[characters] log probability of what is read."""
        return logs(chars.codes(self.mapping), backwards=self.backwards)

    def patch(self, text: str, start: int, end: int) -> Patch:
        piece = text[start:end]
        if self.leet:
            return _leet(piece, start)
        read = piece.translate(self.mapping)
        return _reversed(read, start) if self.backwards else letter_by_letter(start, read)


def _swapped(letters: str) -> dict[int, str]:
    """The alphabet read as `letters`, in both cases."""
    return {ord(a): b for a, b in zip(_LOWER + _UPPER, letters + letters.upper(), strict=True)}


def _readings() -> tuple[Reading, ...]:
    rot47 = {code: chr(33 + (code - 33 + 47) % 94) for code in range(33, 127)}
    alike = {ord(look): latin for look, latin in LOOKALIKES.items() if len(latin) == 1}
    alike |= {ord(chr(look).upper()): a.upper() for look, a in alike.items() if len(chr(look).upper()) == 1}
    made = [Reading({}, backwards=True, common=True)]
    for back in (False, True):
        made += [Reading(_swapped(_LOWER[by:] + _LOWER[:by]), back, common=by == 13) for by in range(1, 26)]
        made += [Reading(_swapped(_LOWER[::-1]), back, common=True), Reading(rot47, back, common=True)]
    return (*made, Reading(_LEET, common=True, leet=True), Reading(alike, common=True))


READINGS = _readings()


@dataclass(frozen=True, eq=False)
class Limits:
    """`evidence` [readings] that a reading needs; `strange`: how far a text must fall behind ordinary text before
    any is tried; `unread`: the unlikeness from which on it is reported."""

    evidence: np.ndarray
    strange: float
    unread: float


@cache
def limits() -> Limits:
    """Measured on the half of the background that the language model was not fitted on."""
    held = [prompt for prompt, group in zip(background(), background_groups(), strict=True) if group % 2 == 0]
    starts = np.cumsum([0, *(len(prompt) + 1 for prompt in held[:-1])])
    chars = Characters("\n".join(held))
    plain = logs(chars.codes())

    def limit(evidence: np.ndarray, rate: float) -> float:
        evidence[starts] = -_APART
        return conformal(np.maximum.reduceat(running(evidence), starts), rate)

    needed = np.array([limit(reading.evidence(chars) - plain, _RATE) for reading in READINGS])
    unread = limit(unlikeness(chars.codes()), _RATE)
    return Limits(needed, limit(mean_log() - plain, _TRIED), unread)


def ciphers(text: str) -> Iterator[Patch]:
    """The likeliest readings of those stretches of `text` that read better than they stand there."""
    chars = Characters(text)
    plain = logs(chars.codes())
    least = limits()
    if not any(stretches(mean_log() - plain, least.strange)):
        return
    found: list[tuple[float, Reading, int, int]] = []
    words = [match.span() for match in re.finditer(r"\S+", text)]
    for reading, needed, read in _promising(chars, plain, least.evidence):
        evidence = read - plain
        for stretch in stretches(evidence, needed):
            place = slice(stretch.start, stretch.end)
            # names and abbreviations inside of it read like noise in any language
            if running((read[place] - NOISE)[evidence[place] != 0]).max() >= needed:
                found.append((stretch.sum, reading, *_whole_words(words, stretch, evidence, needed)))
    taken = bytearray(len(text))
    for _, reading, start, end in sorted(found, key=lambda one: -one[0]):
        if not any(taken[start:end]):
            taken[start:end] = b"\x01" * (end - start)
            yield reading.patch(text, start, end)


def _promising(
    chars: Characters, plain: np.ndarray, needed: np.ndarray
) -> Iterator[tuple[Reading, float, np.ndarray]]:
    """(reading, the evidence that it needs, log probabilities of what it reads) of readings that gather so much
    somewhere in the text."""
    tried = np.array([reading.common or len(plain) <= _ALL_SHIFTS for reading in READINGS])
    codes = np.array([_codes_of(char) for char in chars.distinct], np.int32)
    backwards = np.array([reading.backwards for reading in READINGS])
    size = max(1, _AT_ONCE // max(len(plain), 1))
    for group in np.split(at := np.flatnonzero(tried), range(size, len(at), size)):
        read = logs_of(codes.T[group][:, chars.places], backwards[group])
        highest = running(read - plain).max(axis=1, initial=0.0)
        for one in np.flatnonzero(highest >= needed[group]):
            yield READINGS[group[one]], float(needed[group[one]]), read[one]


@lru_cache(maxsize=8192)
def _codes_of(char: str) -> tuple[int, ...]:
    """What each of the readings makes of a character."""
    return tuple(code_of(char.translate(reading.mapping)) for reading in READINGS)


def _whole_words(
    words: Sequence[tuple[int, int]], stretch: Stretch, evidence: np.ndarray, slack: float
) -> tuple[int, int]:
    """The stretch with the words that it begins and ends in, and with their neighbours as long as these take no
    more than `slack` from the evidence: numbers and names belong to a code as well."""
    first = bisect_right(words, (stretch.start, len(evidence))) - 1
    last = bisect_right(words, (stretch.end - 1, len(evidence))) - 1
    for step, edge in ((-1, 0), (1, len(words) - 1)):
        left = slack
        at = first if step < 0 else last
        for _ in range(_FAR):
            if at == edge:
                break
            left += min(0.0, float(evidence[slice(*words[at + step])].sum()))
            if left <= 0:
                break
            at += step
        first, last = (at, last) if step < 0 else (first, at)
    return words[max(first, 0)][0], words[last][1]


def _reversed(text: str, start: int) -> Patch:
    """`text` backwards; beside it, each of its words backwards by itself."""
    end = start + len(text)
    order = [i for match in re.finditer(r"\S+|\s+", text) for i in reversed(range(*match.span()))]
    worded = "".join(text[i] for i in order)
    each = Patch(start, end, worded, [start + i for i in order], [start + i + 1 for i in order])
    places = range(end - 1, start - 1, -1)
    return Patch(start, end, text[::-1], places, range(end, start, -1), (each,))


def _leet(text: str, start: int) -> Patch:
    """Every word at its likeliest. Beside it the same with the numbers left as they are, for a date is a date; with
    those read that make a common word; and with all signs read as one of the two letters that they may be, for
    nobody knows how a name is spelt."""
    words = re.findall(r"\S+|\s+", text)
    spelt: tuple[Callable[[str], str], ...] = (_likeliest, *map(_reading_as, _EITHER))
    ways = (lambda word: word if _NUMBER.fullmatch(word) else _likeliest(word), *map(_common_or, spelt))
    read = "".join(map(_likeliest, words))
    others = dict.fromkeys("".join(map(way, words)) for way in ways)
    others.pop(read, None)
    return replace(
        letter_by_letter(start, read), others=tuple(letter_by_letter(start, way) for way in others)
    )


def _common_or(way: Callable[[str], str]) -> Callable[[str], str]:
    """As `way` has it; of numbers, those that read as a common word."""

    def read(word: str) -> str:
        if not _NUMBER.fullmatch(word):
            return way(word)
        letters = _likeliest(word)
        return letters if common(letters.lower().strip(string.punctuation)) else word

    return read


def _reading_as(letter: str) -> Callable[[str], str]:
    table = {**_LEET, **dict.fromkeys(map(ord, _UNSURE_SIGNS), letter)}
    return lambda word: word.translate(table)


@lru_cache(maxsize=8192)
def _likeliest(word: str) -> str:
    """The word with its signs read as letters; a sign that is read in two ways in the way that makes a word."""
    core = word.rstrip("!|+") or word  # at the end of a word they are no letters
    unsure = [i for i, char in enumerate(core) if char in _UNSURE_SIGNS][:_UNSURE]
    plain = core.translate(_LEET)
    best = plain
    for choice in itertools.product(_EITHER, repeat=len(unsure)):
        letters = list(plain)
        for i, letter in zip(unsure, choice, strict=True):
            letters[i] = letter
        best = min(best, "".join(letters), key=letters_cost)
    return best + word[len(core) :]


def unreadable(text: str) -> Iterator[tuple[int, int]]:
    """Stretches [start, end) that look like no language: keys, hashes, and ciphers that no reading solves."""
    for stretch in stretches(unlikeness(Characters(text).codes()), limits().unread):
        if stretch.end - stretch.start >= _KEY:
            yield stretch.start, stretch.end
