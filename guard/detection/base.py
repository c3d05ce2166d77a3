"""What a detector is, what it reads, and what it is built from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import numpy as np

from guard.artifacts import Artifact
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
class Screen:
    """Tells without the encoder which windows the texts of a target cannot be near enough to match: those whose gist
    (guard.detection.gist) is less alike than `least` [rows] to that of the text, `gists` [rows, dim]."""

    gists: np.ndarray
    least: np.ndarray


class Head(Protocol):
    """What was trained to find one target, for one encoder. Called from many threads. Where it does not tell the target
    from others by itself (`tells`), a window counts only if it names nobody whom the target's texts do not know."""

    tells: ClassVar[bool]

    @classmethod
    def read(cls, artifact: Artifact, encoder: Encoder) -> Head:
        """The head of an artifact that was made for this encoder.

        Raises:
            ArtifactError: it is not what the detector reads.
        """
        ...

    @property
    def threshold(self) -> float:
        """From where on a window speaks of the target."""
        ...

    def scores(self, reading: Reading, asked: Sequence[int]) -> np.ndarray:
        """[asked] how surely each of the windows with these numbers speaks of the target, in a measure of its own."""
        ...

    def shown(self, score: float) -> float:
        """A score as users see it, in [0, 1]; it never falls where scores rise."""
        ...


@dataclass(frozen=True, eq=False)
class CompiledTarget:
    """Everything that the detectors need of one target. `vectors` [rows, dim] are those of `texts`: windows
    of its examples and sentences of its description; `ceilings` [rows] are the similarities of their nearest
    near misses, and `plain` [rows] says which come from a text without name or fact to tell the target by.
    `evidence_threshold` is in nats, None where there is nothing to weigh. `spoken` is the target as answers are judged
    by it (guard.detection.statements), None where they are judged by its names and answers alone. `heads` were trained
    to find it in prompts. `screen` tells which windows need not be embedded for it, None: each is."""

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
    heads: tuple[Head, ...] = ()
    screen: Screen | None = None

    def with_heads(self, heads: Sequence[Head]) -> CompiledTarget:
        """The same target, found by these heads too."""
        return replace(self, heads=tuple(heads))


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
    """Units of a prompt prepared for the detectors: their pieces, the windows of these, and the vectors of those
    windows that a detector asks for. The encoder is what judging costs, so a detector asks for a window only where its
    vector could change the judgement.

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
        self._rows: dict[int, np.ndarray] = {}
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

    def vectors(self, windows: Sequence[int]) -> np.ndarray:
        """[len(windows), dim] of the windows with these numbers; one call of the encoder for those that are new.
        Raises TimeoutError."""
        new = [window for window in windows if window not in self._rows]
        vectors = self._encoder.encode([self.windows[window][1].text for window in new], self._until)
        self._rows.update(zip(new, vectors, strict=True))
        return np.stack([self._rows[window] for window in windows]) if len(windows) else vectors

    def alike(self, screen: Screen) -> np.ndarray:
        """[windows, rows] how alike the gists of windows and of the screen are."""
        assert self._encoder.gist is not None  # it made the screen
        found: np.ndarray = (
            self._encoder.gist.of([window.text for _, window in self.windows]) @ screen.gists.T
        )
        return found

    def hidden(self, windows: Sequence[int]) -> np.ndarray:
        """[len(windows), depth * dim] of the encoder's hidden states. Raises TimeoutError."""
        return self._encoder.hidden.encode([self.windows[window][1].text for window in windows], self._until)

    def near(self, windows: Sequence[int], columns: Iterable[int] = ()) -> Near:
        """How near these windows are to the examples of the targets; of many targets to those that are nearest, and to
        those with the numbers `columns` of the index."""
        vectors = self.vectors(windows)
        return self._index.with_columns(self._index.near(vectors), vectors, columns)

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
