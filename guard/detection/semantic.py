"""Nearest examples: how near each window is to the examples and description sentences of every target."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from guard.detection.base import CompiledTarget, Reading
from guard.types import Detection, Span


class Semantic:
    """Fires where a window is as near to an example or description as the calibrated threshold asks."""

    def __init__(self, compiled: Sequence[CompiledTarget], before: Semantic | None = None) -> None:
        self._targets = [target for target in compiled if len(target.vectors)]
        self._thresholds = np.array([target.semantic_threshold for target in self._targets], np.float32)

    def detect(self, reading: Reading) -> Iterable[Detection]:
        if not any(target.target_id in reading.active for target in self._targets) or not reading.windows:
            return
        near = reading.near
        thresholds = self._thresholds[near.columns]
        for at in np.flatnonzero((near.scores >= thresholds).any(axis=0)):
            target, of = self._targets[near.columns[at]], near.scores[:, at]
            if target.target_id in reading.active:
                fired = np.flatnonzero(of >= thresholds[at])
                score = max(min(float(of.max()), 1.0), target.semantic_threshold)  # float32 rounds
                spans = spans_of(reading, fired, of)
                yield Detection(target.target_id, "semantic", score, target.semantic_threshold, spans)


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
