"""How much a piece of text looks like language, by its letters alone.

A model of letter trigrams with Witten-Bell interpolation (Witten and Bell 1991), fitted on the background
prompts. It is there to tell text from code: a reading of a cipher is believed where it is more like language than
what stands there. Evidence is summed along the text by a running sum that never falls below zero (CUSUM, Page
1954), so that no amount of text around a coded sentence hides it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from guard.detection.background import background, background_groups
from guard.detection.lookalikes import LOOKALIKES

BOUNDARY, ODD, SYMBOLS = 0, 27, 28
"""Codes of characters: 1 to 26 are letters, `ODD` digits, letters of other scripts and signs that stand for
letters, `BOUNDARY` everything else."""

NOISE = float(-np.log(SYMBOLS))
"""Log probability of a character that could be any."""

_ODD_SIGNS = frozenset("@$|+#\u20ac\u00a3\u00a2\u00a5\u00a7")


@lru_cache(maxsize=65_536)
def code_of(char: str) -> int:
    """The code of one character; case and diacritics do not count."""
    base = unicodedata.normalize("NFKD", char)[:1].lower()
    if not base.isascii() and unicodedata.name(base, "").startswith("LATIN"):
        base = LOOKALIKES.get(base, base)[:1]
    if "a" <= base <= "z":
        return ord(base) - 96
    return ODD if char.isalnum() or char in _ODD_SIGNS else BOUNDARY


class Characters:
    """A text as an array of its characters: `distinct` ones, and for each place which of them stands there."""

    def __init__(self, text: str) -> None:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        if len(points) < 512:
            found, self.places = np.unique(points, return_inverse=True)
            self.distinct = "".join(map(chr, found))
        else:  # a sort of millions of characters would take longer than all the rest
            at = np.zeros(0x110000, np.int64)
            at[points] = 1
            self.distinct = "".join(map(chr, np.flatnonzero(at)))
            at[at > 0] = np.arange(len(self.distinct))
            self.places = at[points]

    def codes(self, mapping: dict[int, str] | None = None) -> np.ndarray:
        """[characters] codes, each character first replaced as `mapping` says (by one character)."""
        read = self.distinct.translate(mapping) if mapping else self.distinct
        return np.array([code_of(char) for char in read], np.int32)[self.places]


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """[28 * 28 * 28] log probabilities of a character after (and, read backwards, before) two others."""
    return _fit(prompt for prompt, group in zip(background(), background_groups(), strict=True) if group % 2)


def _fit(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    counts = np.zeros((SYMBOLS, SYMBOLS, SYMBOLS))
    for text in texts:
        codes = Characters(f"  {text}  ").codes()
        np.add.at(counts, (codes[:-2], codes[1:-1], codes[2:]), 1)
    one = _interpolated(counts.sum((0, 1)), np.full(SYMBOLS, 1 / SYMBOLS))
    two = _interpolated(counts.sum(0), one)
    log = np.log(_interpolated(counts, two)).astype(np.float32)
    return log.ravel(), log.transpose(2, 1, 0).ravel().copy()


def _interpolated(counts: np.ndarray, shorter: np.ndarray) -> np.ndarray:
    """Probabilities [..., next], each context trusting the `shorter` one by as much as it is varied."""
    varied = np.maximum((counts > 0).sum(-1, keepdims=True), 1)
    result: np.ndarray = (counts + varied * shorter) / (counts.sum(-1, keepdims=True) + varied)
    return result


def cost(before: np.ndarray, last: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """-log probabilities of `codes`, each after the two codes that stand before it."""
    result: np.ndarray = -_tables()[0][before * (SYMBOLS * SYMBOLS) + last * SYMBOLS + codes]
    return result


def logs(codes: np.ndarray, *, backwards: bool = False) -> np.ndarray:
    """[characters] log probability of each character after the two before it; 0 for the first two."""
    out = np.zeros(len(codes), np.float32)
    if len(codes) > 2:
        index = codes[:-2] * (SYMBOLS * SYMBOLS)
        index += codes[1:-1] * SYMBOLS
        index += codes[2:]
        out[2:] = _tables()[backwards][index]
    return out


def logs_of(codes: np.ndarray, backwards: np.ndarray) -> np.ndarray:
    """[texts, characters] the same for several texts `codes` [texts, characters], some of them `backwards` [texts]."""
    out = np.zeros(codes.shape, np.float32)
    if codes.shape[1] > 2:
        index = codes[:, :-2] * (SYMBOLS * SYMBOLS)
        index += codes[:, 1:-1] * SYMBOLS
        index += codes[:, 2:]
        index += np.where(backwards, SYMBOLS**3, 0).astype(np.int32)[:, None]
        out[:, 2:] = _both_tables()[index]
    return out


@cache
def _both_tables() -> np.ndarray:
    return np.concatenate(_tables())


_MOST = 1.0  # evidence of one character: a product's number is no cipher
_VOWELS = np.isin(np.arange(SYMBOLS), [ord(char) - 96 for char in "aeiouy"])
_KINDS = np.where(
    _VOWELS, 1, np.where(np.isin(np.arange(SYMBOLS), (BOUNDARY, ODD)), 0, 2)
)  # none, vowel, consonant


@cache
def _vowel_logs() -> np.ndarray:
    """[3, 3] log probability of a vowel and [..., 1] of a consonant, after two characters of these kinds."""
    counts = np.ones((3, 3, 3))
    for prompt, group in zip(background(), background_groups(), strict=True):
        if group % 2:
            kinds = _KINDS[Characters(f"  {prompt}  ").codes()]
            np.add.at(counts, (kinds[:-2], kinds[1:-1], kinds[2:]), 1)
    letters = counts[..., 1:]
    result: np.ndarray = np.log(letters / letters.sum(-1, keepdims=True))
    return result


def unlikeness(codes: np.ndarray) -> np.ndarray:
    """[characters] evidence that text is in no language at all.

    The letters of a language are not ours to know, but in all of them vowels and consonants take turns: letters
    count by how much likelier their turn is for letters drawn at random. Digits and signs between letters count by
    how far they fall behind noise, as far again as language lies before it."""
    out = np.zeros(len(codes), np.float32)
    if len(codes) < 3:
        return out
    kinds = _KINDS[codes]
    before, last, kind = kinds[:-2], kinds[1:-1], kinds[2:]
    drawn = np.log(np.array([1.0, 6 / 26, 20 / 26]))
    expected = _vowel_logs()[before, last, np.maximum(kind - 1, 0)]
    letters = np.where(kind > 0, drawn[kind] - expected, 0.0)
    odd = codes == ODD
    mixed = odd[:-2] | odd[1:-1] | odd[2:]
    signs = 2 * NOISE - mean_log() - logs(codes)[2:]
    out[2:] = np.clip(np.where(mixed, signs, letters), -_MOST, _MOST)
    return out


@cache
def mean_log() -> float:
    """Log probability of an ordinary character, measured on the half of the background that was not fitted on."""
    held = (prompt for prompt, group in zip(background(), background_groups(), strict=True) if group % 2 == 0)
    return float(logs(Characters("\n".join(held)).codes()).mean())


@dataclass(frozen=True, slots=True)
class Stretch:
    """Characters [start, end) with the evidence that they gather."""

    start: int
    end: int
    sum: float


def running(evidence: np.ndarray) -> np.ndarray:
    """[..., characters] the running sum of `evidence` that never falls below zero."""
    total = np.cumsum(evidence, axis=-1, dtype=np.float64)
    result: np.ndarray = total - np.minimum(np.minimum.accumulate(total, axis=-1), 0.0)
    return result


def stretches(evidence: np.ndarray, least: float) -> Iterator[Stretch]:
    """Where the running sum of `evidence` [characters] climbs to `least` (above 0) or more: from the zero that it
    started from to its highest point."""
    sums = running(evidence)
    high = np.flatnonzero(sums >= least)
    if not len(high):
        return
    zeros = np.concatenate([[-1], np.flatnonzero(sums <= 0.0), [len(sums)]])
    for number in np.unique(np.searchsorted(zeros, high)):
        start, end = int(zeros[number - 1]) + 1, int(zeros[number])
        top = start + int(sums[start:end].argmax())
        yield Stretch(start, top + 1, float(sums[top]))


@lru_cache(maxsize=65_536)
def letters_cost(word: str) -> float:
    """-log probability of the letters of a word between two boundaries."""
    codes = np.array([BOUNDARY, BOUNDARY, *map(code_of, word), BOUNDARY], np.int32)
    return -float(logs(codes).sum())
