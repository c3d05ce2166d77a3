"""Texts that must not be said: the names of targets and the `answers` registered for them, found as they are written.

A text is found whatever its case, accents, look-alike letters or signs between words (guard.detection.text), between
word boundaries. The search is for streams: it tells how much of what was said so far can no longer become a part of
a forbidden text, whatever comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import ahocorasick

from guard.detection.base import CompiledTarget
from guard.detection.layers import Layers
from guard.detection.text import Folded, beginnings, bounded, fold, plain_words, separates, undecided

_HEAD = 3  # letters by which most words are known to begin nothing that is forbidden
CONTEXT = 16  # characters in front of a text that are read to see whether a word begins there


@dataclass(frozen=True, slots=True)
class Hit:
    """A forbidden text at characters [start, end); `named` tells a target's name from one of its answers, `meant` what
    says in other words what the target states."""

    target_id: str
    start: int
    end: int
    named: bool
    meant: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What a look at the text so far says: characters from `safe` on must wait; the first forbidden text, if any."""

    safe: int
    hit: Hit | None = None


class Ending(IntEnum):
    """Whether a text is at its end: not yet, by itself, or where somebody wanted it cut, who may have chosen the place
    to see all but the last letters of what is forbidden."""

    NOT_YET = 0
    OWN = 1
    CHOSEN = 2


Owner = tuple[CompiledTarget, bool]
"""A target that forbids a text, and whether the text is a name of it."""
Forbids = Callable[[CompiledTarget, bool], bool]


class Literals:
    """All forbidden texts of `compiled`. Immutable; shares with `before` what a change leaves alone."""

    def __init__(self, compiled: Sequence[CompiledTarget], before: Literals | None = None) -> None:
        self._finders: Layers[_Finder] = (before._finders if before else Layers(_finder)).renewed(compiled)
        found = [finder for finder in self._finders if finder.heads]
        self._all = tuple(finder.automaton for finder in found)
        self._heads: frozenset[str] = frozenset().union(*(finder.heads for finder in found))

    def said_in(self, text: str) -> frozenset[tuple[str, bool]]:
        """(target id, whether by name) of all that `text` says."""
        folded = fold(text)
        return frozenset((target.target_id, named) for _, _, target, named in self._bounded(folded.text))

    def without_names(self, text: str) -> str:
        """`text` with blanks in the place of all names of targets: as long as before."""
        folded = fold(text)
        for start, end, _, named in self._bounded(folded.text):
            if named:
                span = folded.span(start, end)
                text = text[: span.start] + " " * (span.end - span.start) + text[span.end :]
        return text

    def look(self, text: str, begun: int, forbids: Forbids, *, ended: int) -> Found:
        """How far `text` can leave, of which the characters in front of `begun` have left.

        Args:
            forbids: whether a target forbids its names (True) or its answers (False) here.
            ended: whether nothing comes behind `text`, and why (`Ending`, or a bool). At an end that was chosen, a
                text counts as said when more than half of it has been, and its last word has begun.
        """
        if self._begins_nothing(text, begun):
            return Found(len(text))
        folded = fold(text)
        first: Hit | None = None
        for start, end, target, named in self._bounded(folded.text):
            span = folded.span(start, end)
            # Behind the last word another letter may still come, and make it another word.
            whole = ended or end < len(folded.text) or separates(text[span.end :])
            sooner = first is None or (span.start, -span.end) < (first.start, -first.end)
            if span.start >= begun and whole and sooner and forbids(target, named):
                first = Hit(target.target_id, span.start, span.end, named)
        if ended == Ending.CHOSEN and first is None:
            first = next(self._nearly(folded, begun, forbids), None)
        if ended:
            return Found(first.start if first else len(text), first)
        waits = next(self._begun(folded, begun), None)
        safe = min(len(text) if waits is None else folded.starts[waits], undecided(text))
        return Found(first.start, first) if first and first.start <= safe else Found(safe)

    def _begins_nothing(self, text: str, begun: int) -> bool:
        """Whether the first letters of words tell that no forbidden text begins at `begun` or behind it, as they mostly
        do: answers are judged with every token."""
        words = plain_words(text, begun)
        if not words:
            return words is not None
        return words.pop()[:_HEAD] not in self._heads and self._heads.isdisjoint(map(_head, words))

    def _bounded(self, text: str) -> Iterator[tuple[int, int, CompiledTarget, bool]]:
        """(start, end, target, whether it is a name) of every forbidden text in folded `text`."""
        for finder in self._all:
            for last, (length, owners) in finder.iter(text):
                start, end = last + 1 - length, last + 1
                if bounded(text, start, end):
                    yield from ((start, end, *owner) for owner in owners if self._finders.holds(owner[0]))

    def _nearly(self, folded: Folded, begun: int, forbids: Forbids) -> Iterator[Hit]:
        """Forbidden texts that `folded` ends within, with more than half of them and a part of their last word."""
        for start in self._begun(folded, begun):
            span, rest = folded.span(start, len(folded.text)), folded.text[start:]
            for finder in self._all:
                for whole in finder.keys(rest):
                    if len(rest) > max(len(whole) / 2, whole.rfind(" ") + 1):
                        for target, named in finder.get(whole)[1]:
                            if self._finders.holds(target) and forbids(target, named):
                                yield Hit(target.target_id, span.start, span.end, named)

    def _begun(self, folded: Folded, begun: int) -> Iterator[int]:
        """Where in `folded` a forbidden text may have begun, at the original character `begun` or behind it, that goes
        on behind its end; first come first."""
        for start in beginnings(folded.text):
            if folded.starts[start] >= begun:
                rest = folded.text[start:]
                if any(finder.match(rest) for finder in self._all):
                    yield start


@dataclass(frozen=True, eq=False)
class _Finder:
    """Forbidden texts, and with what they begin: their first letters, fewer where a text may yet go on."""

    automaton: ahocorasick.Automaton
    heads: frozenset[str]


def _head(word: str) -> str:
    """What a text begins with that begins with the whole word."""
    return f"{word} "[:_HEAD]


def _finder(targets: Sequence[CompiledTarget]) -> _Finder:
    owners: dict[str, list[Owner]] = {}
    for target in targets:
        for text, named in _texts(target):
            owners.setdefault(text, []).append((target, named))
    made = ahocorasick.Automaton()
    for text, found in owners.items():
        made.add_word(text, (len(text), tuple(found)))
    if owners:
        made.make_automaton()
    heads = frozenset(_head(text)[:length] for text in owners for length in range(1, _HEAD + 1))
    return _Finder(made, heads)


def _texts(target: CompiledTarget) -> Iterable[tuple[str, bool]]:
    """The target's names as they are registered, and its answers."""
    for form in target.forms:
        if form.score == 1.0:
            yield form.text, True
    for answer in target.spec.answers:
        if text := fold(answer).text:
            yield text, False
