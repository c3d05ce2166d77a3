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
from guard.types import Span

_ROUNDED = 0.05  # what the index may be wrong by; whoever comes so near is looked at exactly


class Semantic:
    """Fires where a window is as near to an example or description as the calibrated threshold asks."""

    def __init__(self, compiled: Sequence[CompiledTarget], before: Semantic | None = None) -> None:
        self._targets = [target for target in compiled if len(target.vectors)]
        least = [target.semantic_threshold - _ROUNDED for target in self._targets]
        self._thresholds = np.array(least, np.float32)

    def detect(self, reading: Reading) -> Iterable[Finding]:
        if not any(target.target_id in reading.active for target in self._targets) or not reading.windows:
            return
        near = reading.near
        thresholds = self._thresholds[near.columns]
        for at in np.flatnonzero((near.scores >= thresholds).any(axis=0)):
            target = self._targets[near.columns[at]]
            if target.target_id not in reading.active:
                continue
            of = _to_plain(reading, target)
            least = target.semantic_threshold
            for unit, best, spans in fired(reading, of, least):
                score = max(min(best, 1.0), least)  # float32 rounds
                yield Finding(unit, target.target_id, score, least, spans)


def _to_plain(reading: Reading, target: CompiledTarget) -> np.ndarray:
    """[windows] relative similarity to the nearest plain row of the target, or to any row that it equals. What asks
    about somebody by name does not ask about an entity that goes without."""
    scores = relative(reading.vectors @ target.vectors.T, target.ceilings)
    result: np.ndarray = np.where(target.plain | (scores >= HIGHEST), scores, FLOOR).max(axis=1)
    if target.spec.kind in ("entity", "work"):
        for window in np.flatnonzero((result >= target.semantic_threshold) & (result < HIGHEST)):
            if unknown(target.terms, named(reading.windows[window][1].text)):
                result[window] = FLOOR
    return result


def fired(
    reading: Reading, scores: np.ndarray, least: float, limit: int = 16
) -> Iterator[tuple[int, float, tuple[Span, ...]]]:
    """(unit, best score, spans of the best `limit` windows) wherever `scores` [windows] reach `least`."""
    for unit, windows in reading.by_unit(np.flatnonzero(scores >= least)).items():
        best = sorted(windows, key=lambda window: -scores[window])[:limit]
        yield unit, float(scores[best[0]]), tuple(dict.fromkeys(map(reading.span, best)))
