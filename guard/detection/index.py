"""How near windows are to the texts of targets: exact while these are few, approximate above.

Up to EXACT rows every window is compared with every row. Above, the rows lie in an inverted file (IVF, Sivic and
Zisserman 2003; faiss) of half-precision vectors, which is built in the background and never changed: rows that
came since are compared one by one, rows that are gone are left out of what it finds, and when either are many the
next one is built beside it and takes its place with the next change.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import faiss
import numpy as np

from guard.detection.base import CompiledTarget, Near

logger = logging.getLogger(__name__)

FLOOR = 0.0  # relative similarities below this say nothing, and are counted as this
EXACT = 20_000  # rows
_ROWS_FOUND = 256  # of one window, in the inverted file
_PAIRS_FOUND = 65_536  # of all windows of one prompt; long prompts get fewer each
_FEWEST_FOUND = 32
_LISTS_PROBED = 16
_TRAINED_ON = 40  # rows for each list
_AT_ONCE = 4_000_000  # similarities; bounds the memory that one very long prompt can take
_SHARE_NEW, _SHARE_GONE = 0.02, 0.1  # of the inverted file's rows, from where on it is built anew


def relative(cosines: np.ndarray, ceilings: np.ndarray) -> np.ndarray:
    """Similarity to a row in terms of the row's own near misses: 1 for an equal text, 0.5 for one that is as
    near as the row's ceiling, lower beyond. A row that has close near misses must be met more closely.

    `cosines` [..., rows], `ceilings` [rows] below 1.
    """
    result: np.ndarray = 1.0 - (1.0 - cosines) / (2.0 * (1.0 - ceilings))
    return result


class _Rows:
    """The rows of the targets with the numbers `columns`, one after the other, to be compared one by one."""

    def __init__(self, targets: Sequence[CompiledTarget], columns: np.ndarray) -> None:
        self.columns = columns.astype(np.int64)
        chosen = [targets[i] for i in columns]
        self._counts = np.array([len(target.vectors) for target in chosen], np.int64)
        if chosen:
            self.vectors = np.concatenate([target.vectors for target in chosen]).astype(np.float32)
            self._ceilings = np.concatenate([target.ceilings for target in chosen]).astype(np.float32)
            self._starts = np.cumsum([0, *self._counts[:-1]])

    def scores(self, windows: np.ndarray) -> np.ndarray:
        """[windows, targets], at least FLOOR."""
        out = np.full((len(windows), len(self._counts)), FLOOR, np.float32)
        if not len(self._counts):
            return out
        block = max(1, _AT_ONCE // len(self.vectors))
        for start in range(0, len(windows), block):
            found = relative(windows[start : start + block] @ self.vectors.T, self._ceilings)
            best = np.maximum.reduceat(found, self._starts, axis=1)
            np.maximum(out[start : start + block], best, out=out[start : start + block])
        return out


@dataclass(frozen=True, eq=False)
class _File:
    """An inverted file over the rows of `targets`; row i belongs to `targets[owner[i]]`."""

    targets: tuple[CompiledTarget, ...]
    owner: np.ndarray
    ceilings: np.ndarray
    index: faiss.IndexIVF
    lists_made_for: int


def _file(targets: Sequence[CompiledTarget], before: _File | None) -> _File:
    """Built by one thread and by rows of one target after the other: beside the targets' own vectors, memory is
    taken for the file alone."""
    faiss.omp_set_num_threads(1)
    counts = np.array([len(target.vectors) for target in targets], np.int64)
    total, dim = int(counts.sum()), targets[0].vectors.shape[1]
    if before is not None and total <= 2 * before.lists_made_for:
        quantizer, lists, made_for = before.index.quantizer, before.index.nlist, before.lists_made_for
    else:
        lists, made_for = max(1, round(2 * math.sqrt(total))), total
        sample = np.random.default_rng(0).choice(total, min(total, lists * _TRAINED_ON), replace=False)
        quantizer = faiss.IndexFlatIP(dim)
        quantizer.add(_centroids(_picked(targets, counts, np.sort(sample)), lists))
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.nprobe = min(_LISTS_PROBED, lists)
    index.train(np.zeros((1, dim), np.float32))  # half precision has nothing to learn
    for group in range(0, len(targets), 4_096):
        index.add(np.concatenate([target.vectors for target in targets[group : group + 4_096]]))
    owner = np.repeat(np.arange(len(targets), dtype=np.int32), counts)
    ceilings = np.concatenate([target.ceilings for target in targets]).astype(np.float32)
    return _File(tuple(targets), owner, ceilings, index, made_for)


def _centroids(rows: np.ndarray, lists: int) -> np.ndarray:
    made = faiss.Clustering(rows.shape[1], lists)
    made.niter, made.seed, made.spherical = 6, 0, True
    made.min_points_per_centroid = 1
    quantizer = faiss.IndexFlatIP(rows.shape[1])
    made.train(rows, quantizer)
    centroids: np.ndarray = quantizer.reconstruct_n(0, lists)
    return centroids


def _picked(targets: Sequence[CompiledTarget], counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The vectors with the ascending numbers `rows`."""
    starts = np.cumsum([0, *counts[:-1]])
    owner = np.searchsorted(starts, rows, side="right") - 1
    return np.stack([targets[o].vectors[r - starts[o]] for o, r in zip(owner, rows, strict=True)])


class _Builder:
    """Builds the next inverted file beside what is in use; one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ready: _File | None = None

    def latest(self, before: _File | None) -> _File | None:
        """The newest one that is finished."""
        with self._lock:
            return self._ready or before

    def build(self, targets: Sequence[CompiledTarget], before: _File | None) -> _File:
        """Build one over `targets` now."""
        self.wait()
        made = _file(targets, before)
        with self._lock:
            self._ready = made
        return made

    def start(self, targets: Sequence[CompiledTarget], before: _File | None) -> None:
        """Begin to build one over `targets`, unless one is being built."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, args=(targets, before), daemon=True)
                self._thread.start()

    def wait(self) -> None:
        """Until nothing is being built."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self, targets: Sequence[CompiledTarget], before: _File | None) -> None:
        try:
            made = _file(targets, before)
        except Exception:  # the old one goes on to serve, beside more rows that are compared one by one
            logger.exception(
                "the index of examples could not be built anew; trying again with the next change"
            )
            return
        with self._lock:
            self._ready = made


class Index:
    """The rows of `targets`: those that have any, in the order in which they were given. Immutable; `before` is
    the index of the targets before a change, with which it shares all that is large."""

    def __init__(self, compiled: Sequence[CompiledTarget], before: Index | None = None) -> None:
        self.targets = tuple(target for target in compiled if len(target.vectors))
        self._builder: _Builder = before._builder if before else _Builder()
        self._numbers = {id(target): i for i, target in enumerate(self.targets)}
        self._file: _File | None = self._chosen(before._file if before else None)
        new = np.ones(len(self.targets), bool)
        if self._file:
            self._column = self._columns_of(self._file)
            new[self._column[self._column >= 0]] = False
        self._new = _Rows(self.targets, np.flatnonzero(new))

    @property
    def approximate(self) -> bool:
        """Whether not all rows are compared."""
        return self._file is not None

    def wait(self) -> None:
        """Until no inverted file is being built; what was built is used from the next change on."""
        self._builder.wait()

    def near(self, windows: np.ndarray) -> Near:
        """How near each of `windows` [n, dim] is to the targets. Below EXACT rows to all of them; above, to
        those that own a row among the nearest of any window, and to the newest."""
        new = self._new.scores(windows)
        if self._file is None:
            return Near(self._new.columns, new)
        rows = min(max(_PAIRS_FOUND // max(len(windows), 1), _FEWEST_FOUND), _ROWS_FOUND)
        cosines, found = self.nearest(windows, rows)
        column = np.where(found >= 0, self._column[self._file.owner[found]], -1)
        window, at = np.nonzero(column >= 0)
        scores = relative(cosines[window, at], self._file.ceilings[found[window, at]])
        columns = np.union1d(column[window, at], self._new.columns)
        out = np.full((len(windows), len(columns)), FLOOR, np.float32)
        np.maximum.at(out, (window, np.searchsorted(columns, column[window, at])), scores)
        out[:, np.searchsorted(columns, self._new.columns)] = new
        return Near(columns, out)

    def with_columns(self, near: Near, windows: np.ndarray, columns: Iterable[int]) -> Near:
        """`near` and also the targets with the numbers `columns`."""
        more = np.setdiff1d(np.fromiter(columns, np.int64), near.columns)
        if not len(more):
            return near
        rows = _Rows(self.targets, more)
        order = np.argsort(both := np.concatenate([near.columns, more]), kind="stable")
        return Near(both[order], np.concatenate([near.scores, rows.scores(windows)], axis=1)[:, order])

    def nearest(self, windows: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """[n, rows] cosines and numbers in the inverted file of the rows nearest to `windows`, -1 where there
        are fewer. Those of targets that are gone are among them."""
        assert self._file is not None
        faiss.omp_set_num_threads(1)  # as many prompts as there are threads are judged beside each other
        cosines, found = self._file.index.search(np.ascontiguousarray(windows, np.float32), rows)
        return cosines, found

    def _columns_of(self, file: _File) -> np.ndarray:
        """[file.targets] their numbers here, -1 for those that are gone."""
        return np.array([self._numbers.get(id(target), -1) for target in file.targets], np.int64)

    def _chosen(self, before: _File | None) -> _File | None:
        """The inverted file to use; the next one is begun where it has become a poor one."""
        total = sum(len(target.vectors) for target in self.targets)
        file = self._builder.latest(before)
        if total <= EXACT:
            return None
        held = len(file.owner) if file else 0
        kept = int((self._columns_of(file) >= 0)[file.owner].sum()) if file else 0
        if total - kept > max(total // 2, 4 * EXACT):  # far too many to compare one by one meanwhile
            return self._builder.build(self.targets, file)
        if total - kept > max(EXACT // 2, _SHARE_NEW * held) or held - kept > _SHARE_GONE * held:
            self._builder.start(self.targets, file)
        return file
