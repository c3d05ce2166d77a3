"""Nearest examples: one index over the examples and description sentences of every target, asked per
window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import faiss
import numpy as np

from guard.detection.base import CompiledTarget, Reading
from guard.types import Detection, Span

_HITS_AT_ONCE = 1_000_000  # bounds the memory that one very long prompt can take


def relative(cosines: np.ndarray, ceilings: np.ndarray) -> np.ndarray:
    """Similarity to a row in terms of the row's own near misses: 1 for an equal text, 0.5 for one that is as
    near as the row's ceiling, lower beyond. A row that has close near misses must be met more closely.

    `cosines` [..., rows], `ceilings` [rows] below 1.
    """
    result: np.ndarray = 1.0 - (1.0 - cosines) / (2.0 * (1.0 - ceilings))
    return result


class Nearest:
    """How near windows are to the nearest row of each target, for those with a relative similarity of at
    least `floor`."""

    def __init__(self, compiled: Sequence[CompiledTarget], floor: float) -> None:
        with_vectors = [target for target in compiled if len(target.vectors)]
        self._floor = floor
        self.count = len(with_vectors)
        self._owner = np.repeat(
            np.arange(len(with_vectors)), [len(target.vectors) for target in with_vectors]
        )
        if with_vectors:
            rows = np.concatenate([target.vectors for target in with_vectors]).astype(np.float32)
            self._ceilings = np.concatenate([target.ceilings for target in with_vectors])
            self._radius = float(1.0 - 2.0 * (1.0 - floor) * (1.0 - self._ceilings.min()))
            self._index = faiss.IndexFlatIP(rows.shape[1])
            self._index.add(rows)

    def best(self, windows: np.ndarray) -> np.ndarray:
        """[windows, targets] float32: relative similarity to the nearest row, `floor` where none is
        nearer."""
        out = np.full((len(windows), self.count), self._floor, np.float32)
        if not self.count:
            return out
        block = max(1, _HITS_AT_ONCE // len(self._owner))
        for start in range(0, len(windows), block):
            limits, cosines, rows = self._index.range_search(windows[start : start + block], self._radius)
            window = start + np.repeat(np.arange(len(limits) - 1), np.diff(limits.astype(np.int64)))
            np.maximum.at(out, (window, self._owner[rows]), relative(cosines, self._ceilings[rows]))
        return out


class Semantic:
    """Fires where a window is as near to an example or description as the calibrated threshold asks."""

    def __init__(self, compiled: Sequence[CompiledTarget]) -> None:
        self._targets = [target for target in compiled if len(target.vectors)]
        self._thresholds = np.array([target.semantic_threshold for target in self._targets], np.float32)
        floor = float(self._thresholds.min()) if self._targets else 1.0
        self._nearest = Nearest(self._targets, floor - 1e-3)

    def detect(self, reading: Reading) -> Iterable[Detection]:
        if not any(target.target_id in reading.active for target in self._targets) or not reading.windows:
            return
        scores = self._nearest.best(reading.vectors)
        for column in np.flatnonzero((scores >= self._thresholds).any(axis=0)):
            target, of = self._targets[column], scores[:, column]
            if target.target_id in reading.active:
                fired = np.flatnonzero(of >= self._thresholds[column])
                score = max(min(float(of.max()), 1.0), target.semantic_threshold)  # float32 rounds
                spans = spans_of(reading, fired, of)
                yield Detection(target.target_id, "semantic", score, target.semantic_threshold, spans)


def spans_of(reading: Reading, fired: np.ndarray, scores: np.ndarray, limit: int = 16) -> tuple[Span, ...]:
    """Where the windows `fired` lie, the best `limit` of them, in order; smaller windows stand for larger
    ones."""
    best = sorted(fired, key=lambda i: -scores[i])[:limit]
    spans = sorted({span for i in best for span in reading.spans(int(i))}, key=lambda s: (s.start, s.end))
    return tuple(s for s in spans if not any(s != o and s.start <= o.start and o.end <= s.end for o in spans))
