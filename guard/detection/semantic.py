"""Nearest examples: how near each window is to those texts of a target that hold no name or fact to tell it by.

A text that does is judged with what it holds (guard.detection.classifier): by its meaning alone, the same question
about anybody else is the same question."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from guard.detection.base import CompiledTarget, Reading
from guard.detection.calibrate import HIGHEST
from guard.detection.evidence import named, unknown
from guard.detection.index import FLOOR, relative
from guard.types import Detection, Span

_ROUNDED = 0.05  # what the index may be wrong by; whoever comes so near is looked at exactly


class Semantic:
    """Fires where a window is as near to an example or description as the calibrated threshold asks."""

    def __init__(self, compiled: Sequence[CompiledTarget], before: Semantic | None = None) -> None:
        self._targets = [target for target in compiled if len(target.vectors)]
        least = [target.semantic_threshold - _ROUNDED for target in self._targets]
        self._thresholds = np.array(least, np.float32)

    def detect(self, reading: Reading) -> Iterable[Detection]:
        if not any(target.target_id in reading.active for target in self._targets) or not reading.windows:
            return
        near = reading.near
        thresholds = self._thresholds[near.columns]
        for at in np.flatnonzero((near.scores >= thresholds).any(axis=0)):
            target = self._targets[near.columns[at]]
            if target.target_id not in reading.active:
                continue
            of = _to_plain(reading, target)
            fired = np.flatnonzero(of >= target.semantic_threshold)
            if len(fired):
                score = max(min(float(of.max()), 1.0), target.semantic_threshold)  # float32 rounds
                spans = spans_of(reading, fired, of)
                yield Detection(target.target_id, "semantic", score, target.semantic_threshold, spans)


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


def spans_of(reading: Reading, fired: np.ndarray, scores: np.ndarray, limit: int = 16) -> tuple[Span, ...]:
    """Where the windows `fired` lie, the best `limit` of them, in order; smaller windows stand for larger
    ones. A window over several turns lies in several places."""
    best = sorted(fired, key=lambda i: -scores[i])[:limit]
    places = {places for i in best if (places := reading.spans(int(i)))}
    kept = {span for one in places for span in one if not any(_less(other, one) for other in places)}
    return tuple(sorted(kept, key=lambda span: (span.start, span.end)))


def _less(one: Sequence[Span], other: Sequence[Span]) -> bool:
    """Whether all of `one` lies in `other`, and something of `other` outside of `one`."""
    return _inside(one, other) and not _inside(other, one)


def _inside(inner: Sequence[Span], outer: Sequence[Span]) -> bool:
    return all(any(o.start <= i.start and i.end <= o.end for o in outer) for i in inner)
