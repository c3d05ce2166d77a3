"""What a detector is, what it reads, and what it is built from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from guard.detection.encoder import Encoder
from guard.detection.units import Unit
from guard.detection.windows import Window
from guard.targets import TargetSpec
from guard.types import Scope, Span

WINDOW_CHARS = 250


@dataclass(frozen=True, slots=True)
class Form:
    """A folded way to write a target's name, and the score of finding it: 1.0 as registered, less when
    derived."""

    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Terms:
    """The folded words of a target's texts: `weights` are nats of evidence for the target of those that are rare
    elsewhere, `vocabulary` are all of them. Words that come together, as those of one name do, are one fact: `stands`
    gives the one that stands for each, and "" for ordinary words, which together say no more than `ordinary` nats."""

    weights: Mapping[str, float] = field(default_factory=dict)
    stands: Mapping[str, str] = field(default_factory=dict)
    vocabulary: frozenset[str] = frozenset()
    ordinary: float = 0.0

    def nats(self, held: Iterable[str], at_most: Mapping[str, float] = MappingProxyType({})) -> float:
        """The evidence of a text that holds these words: of each fact, that of its rarest word. `at_most` are nats of
        words that have become frequent."""
        facts: dict[str, float] = {}
        common = 0.0
        for word in held:
            weight = min(self.weights.get(word, 0.0), at_most.get(word, math.inf))
            if fact := self.stands.get(word, word):
                facts[fact] = max(facts.get(fact, 0.0), weight)
            else:
                common += weight
        return sum(facts.values()) + min(common, self.ordinary)


@dataclass(frozen=True, eq=False)
class Exemption:
    """Tells windows that name the target but ask for what must stay answerable: `retain` [m, dim] against the
    target's examples `own` [n, dim]. A window is exempt when its nearest retain prompt is `margin` nearer
    than any example, and at least `floor` near."""

    retain: np.ndarray
    own: np.ndarray
    margin: float
    floor: float


@dataclass(frozen=True, eq=False)
class CompiledTarget:
    """Everything that the detectors need of one target. `vectors` [rows, dim] are those of `texts`: windows
    of its examples and sentences of its description; `ceilings` [rows] are the similarities of their nearest
    near misses, and `plain` [rows] says which come from a text without name or fact to tell the target by.
    `evidence_threshold` is in nats, None where there is nothing to weigh. `spoken` is the target as answers are judged
    by it (guard.detection.statements), None where they are judged by its names and answers alone."""

    target_id: str
    version: int
    spec: TargetSpec
    scope: Scope
    forms: tuple[Form, ...]
    terms: Terms
    texts: tuple[str, ...]
    vectors: np.ndarray
    ceilings: np.ndarray
    plain: np.ndarray
    lexical_threshold: float
    semantic_threshold: float
    evidence_threshold: float | None
    exemption: Exemption | None
    calibration: Mapping[str, Any]
    spoken: CompiledTarget | None = None


@dataclass(frozen=True, eq=False)
class Near:
    """`scores` [windows, columns]: relative similarity of each window to the nearest text of each target, 0 where
    none is nearer. `columns` are the targets' numbers, ascending, among those that have vectors."""

    columns: np.ndarray
    scores: np.ndarray


class Neighbours(Protocol):
    """Knows what is near a window (guard.detection.index.Index)."""

    def near(self, windows: np.ndarray) -> Near: ...

    def with_columns(self, near: Near, windows: np.ndarray, columns: Iterable[int]) -> Near: ...


@dataclass(frozen=True, slots=True)
class Finding:
    """A target that reached its threshold in one unit, whose number is `unit`. `spans` are characters of the unit, the
    best first."""

    unit: int
    target_id: str
    score: float
    threshold: float
    spans: tuple[Span, ...]


class Reading:
    """Units of a prompt prepared for the detectors: their pieces, the windows of these, and the window vectors on first
    use.

    `active` are the ids of the targets in scope, `count` is how many units there are. A reading belongs to one call;
    it is not shared by threads.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        active: frozenset[str],
        encoder: Encoder,
        index: Neighbours,
        until: float | None = None,
    ) -> None:
        self.active = active
        self._encoder = encoder
        self._index = index
        self._until = until
        self._limit = window_chars(encoder)
        self.count = len(units)
        self.pieces = tuple(piece for i, unit in enumerate(units) for piece in unit.pieces(i))

    @property
    def unread(self) -> Iterator[tuple[int, Span]]:
        """(unit, characters of it) that look like code that could not be read."""
        return ((piece.number, span) for piece in self.pieces for span in piece.unread)

    @cached_property
    def windows(self) -> tuple[tuple[int, Window], ...]:
        """(index of the piece, window): every word of every piece of text is in some window."""
        return tuple(
            (i, window)
            for i, piece in enumerate(self.pieces)
            if piece.form == "text"
            for window in piece.windows(self._limit)
        )

    @cached_property
    def vectors(self) -> np.ndarray:
        """[windows, dim], in the order of `windows`; one call of the encoder. Raises TimeoutError."""
        return self._encoder.encode([window.text for _, window in self.windows], self._until)

    @cached_property
    def near(self) -> Near:
        """How near the windows are to the examples of the targets."""
        return self._index.near(self.vectors)

    def near_with(self, columns: Iterable[int]) -> Near:
        """`near`, where that leaves out targets with these numbers of the index also to them."""
        return self._index.with_columns(self.near, self.vectors, columns)

    def by_unit(self, windows: Iterable[int]) -> dict[int, list[int]]:
        """These windows by the number of their unit."""
        grouped: dict[int, list[int]] = {}
        for window in windows:
            grouped.setdefault(self.pieces[self.windows[window][0]].number, []).append(int(window))
        return grouped

    def span(self, window: int) -> Span:
        """Where a window stands in its unit."""
        piece, found = self.windows[window]
        return self.pieces[piece].span(found.span)


def window_chars(encoder: Encoder) -> int:
    """The longest window that the encoder reads as a whole."""
    return min(WINDOW_CHARS, encoder.max_tokens - 6)


class Detector(Protocol):
    """One way of finding targets. Built once from the compiled targets, sharing what it can with the detector of
    the targets `before` a change; `detect` is called from many threads."""

    def __init__(self, compiled: Sequence[CompiledTarget], before: Any = None) -> None: ...

    def detect(self, reading: Reading) -> Iterable[Finding]:
        """What reached its target's threshold among `reading.active`, at most one finding per target and unit."""
        ...
