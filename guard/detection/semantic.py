"""Nearest examples: how near each window is to those texts of a target that hold no name or fact to tell it by.

A text that does is judged with what it holds (guard.detection.classifier): by its meaning alone, the same question
about anybody else is the same question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from guard.detection.base import CompiledTarget, Finding, Reading
from guard.detection.calibrate import HIGHEST
from guard.detection.evidence import named, unknown
from guard.detection.index import FLOOR, relative
from guard.detection.layers import Layers
from guard.detection.windows import wording
from guard.types import Span

_ROUNDED = 0.05  # what the index may be wrong by; whoever comes so near is looked at exactly


class Semantic:
    """Fires where a window is as near to an example or description as the calibrated threshold asks. Where no target
    has texts to be met by their meaning, that are the windows with the words of an example."""

    def __init__(self, compiled: Sequence[CompiledTarget], before: Semantic | None = None) -> None:
        self._targets = [target for target in compiled if len(target.vectors)]
        least = [target.semantic_threshold - _ROUNDED for target in self._targets]
        self._thresholds = np.array(least, np.float32)
        self._plain = frozenset(target.target_id for target in self._targets if target.plain.any())
        self._wordings: Layers[frozenset[bytes]] = (
            before._wordings if before else Layers(_wordings)
        ).renewed(self._targets)

    def detect(self, reading: Reading) -> Iterable[Finding]:
        asked = self._asked(reading)
        if not len(asked):
            return
        near = reading.near(asked)
        thresholds = self._thresholds[near.columns]
        for at in np.flatnonzero((near.scores >= thresholds).any(axis=0)):
            target = self._targets[near.columns[at]]
            if target.target_id not in reading.active:
                continue
            of = _to_plain(reading, asked, target)
            least = target.semantic_threshold
            for unit, best, spans in fired(reading, asked, of, least):
                score = max(min(best, 1.0), least)  # float32 rounds
                yield Finding(unit, target.target_id, score, least, spans)

    def _asked(self, reading: Reading) -> list[int]:
        """The windows that can match."""
        if not reading.active.isdisjoint(self._plain):
            return list(range(len(reading.windows)))
        if not any(target.target_id in reading.active for target in self._targets):
            return []
        known = [wordings for wordings in self._wordings if wordings]
        return [
            at
            for at, (_, window) in enumerate(reading.windows)
            if any(wording(window.text) in wordings for wordings in known)
        ]


def _wordings(targets: Sequence[CompiledTarget]) -> frozenset[bytes]:
    return frozenset(wording(text) for target in targets for text in target.texts)


def _to_plain(reading: Reading, asked: Sequence[int], target: CompiledTarget) -> np.ndarray:
    """[asked] relative similarity to the nearest plain row of the target, or to any row that it equals. What asks
    about somebody by name does not ask about an entity that goes without."""
    scores = relative(reading.vectors(asked) @ target.vectors.T, target.ceilings)
    result: np.ndarray = np.where(target.plain | (scores >= HIGHEST), scores, FLOOR).max(axis=1)
    if target.spec.kind in ("entity", "work"):
        for at in np.flatnonzero((result >= target.semantic_threshold) & (result < HIGHEST)):
            if unknown(target.terms, named(reading.windows[asked[at]][1].text)):
                result[at] = FLOOR
    return result


def fired(
    reading: Reading, asked: Sequence[int], scores: np.ndarray, least: float, limit: int = 16
) -> Iterator[tuple[int, float, tuple[Span, ...]]]:
    """(unit, best score, spans of the best `limit` windows) wherever the `scores` of the windows `asked` reach
    `least`."""
    high = {asked[at]: float(scores[at]) for at in np.flatnonzero(scores >= least)}
    for unit, windows in reading.by_unit(high).items():
        best = sorted(windows, key=lambda window: -high[window])[:limit]
        yield unit, high[best[0]], tuple(dict.fromkeys(map(reading.span, best)))
