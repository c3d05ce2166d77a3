"""A light logistic head per target over window vectors and evidence, trained when the target is
registered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import ahocorasick
import numpy as np

from guard.detection.base import CompiledTarget, Head, Near, Reading, Terms
from guard.detection.evidence import names_other, scaled, strangers
from guard.detection.layers import Layers
from guard.detection.semantic import spans_of
from guard.detection.text import bounded
from guard.types import Detection

_PREPARED = 4_096  # heads; of more, only those of targets near the prompt are judged
_RARE = 64  # owners of a term in one layer; a term of more says too little to judge all of their heads
_NEVER = Head(np.zeros(0, np.float32), np.zeros(5, np.float32), -1e9, 0.5)


@dataclass(frozen=True, eq=False)
class _Finder:
    """Finds the terms of some targets in one pass; `owners` are the targets of each."""

    automaton: ahocorasick.Automaton
    owners: Mapping[str, tuple[CompiledTarget, ...]]

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Where terms lie in folded `text`."""
        if self.owners:
            for last, length in self.automaton.iter(text):
                yield last + 1 - length, last + 1


def _finder(targets: Sequence[CompiledTarget]) -> _Finder:
    owners: dict[str, list[CompiledTarget]] = {}
    for target in targets:
        for term in {*target.terms.parts, *target.terms.strong, *target.terms.weak}:
            owners.setdefault(term, []).append(target)
    automaton = ahocorasick.Automaton()
    for term in owners:
        automaton.add_word(term, len(term))
    if owners:
        automaton.make_automaton()
    return _Finder(automaton, {term: tuple(of) for term, of in owners.items()})


@dataclass(frozen=True, eq=False)
class _Found:
    """Terms in the windows of one prompt: `windows` of each term, terms of each target's number in `own`, and
    the `common` ones, whose targets are too many to be listed."""

    windows: Mapping[str, frozenset[int]]
    own: Mapping[int, frozenset[str]]
    common: frozenset[str]

    def of(self, column: int, terms: Terms) -> dict[int, set[str]]:
        """Window -> what it holds of one target's `terms`."""
        held: dict[int, set[str]] = defaultdict(set)
        own = self.own.get(column, frozenset())
        if self.common:
            own = (
                own | self.common & terms.strong | self.common & terms.weak | self.common & terms.parts.keys()
            )
        for term in own:
            for window in self.windows[term]:
                held[window].add(term)
        return held


class Classifier:
    """Fires where the head's probability of a window reaches its calibrated threshold.

    Scores are first computed for all windows without the evidence against (another name in the window), which
    can only lower them; that evidence is looked up where the threshold would be reached. Judged are all targets
    where the index compares with all of them; else those that are near a window or share a rare term with it.
    """

    def __init__(self, compiled: Sequence[CompiledTarget], before: Classifier | None = None) -> None:
        self._targets = [target for target in compiled if len(target.vectors)]
        dim = self._targets[0].vectors.shape[1] if self._targets else 0
        never = replace(_NEVER, weights=np.zeros(dim, np.float32))
        self._heads = [target.head or never for target in self._targets]
        self._column = {target.target_id: i for i, target in enumerate(self._targets)}
        self._near = np.array([head.coefficients[0] for head in self._heads], np.float32)
        self._bias = np.array([head.bias for head in self._heads], np.float32)
        self._logits = logit(np.array([head.threshold for head in self._heads])).astype(np.float32)
        few = 0 < len(self._heads) <= _PREPARED
        self._prepared = np.stack([head.weights for head in self._heads], axis=1) if few else None
        with_head = [target for target in self._targets if target.head is not None]
        self._terms: Layers[_Finder] = (before._terms if before else Layers(_finder)).renewed(with_head)

    def detect(self, reading: Reading) -> Iterable[Detection]:
        if not any(target.target_id in reading.active for target in self._targets) or not reading.windows:
            return
        found = self._found(reading)
        near = reading.near_with(found.own)
        thresholds = self._logits[near.columns]
        logits = self._scores(reading.vectors, near, found)
        for at in np.flatnonzero((logits >= thresholds).any(axis=0)):
            column = int(near.columns[at])
            target, of = self._targets[column], logits[:, at].copy()
            if target.target_id not in reading.active:
                continue
            self._against(reading, column, of)
            fired = np.flatnonzero(of >= thresholds[at])
            if len(fired):
                score = max(float(sigmoid(of[fired].max())), self._heads[column].threshold)  # float32 rounds
                spans = spans_of(reading, fired, of)
                yield Detection(target.target_id, "classifier", score, self._heads[column].threshold, spans)

    def _scores(self, vectors: np.ndarray, near: Near, found: _Found) -> np.ndarray:
        """[windows, near.columns] logits, evidence for the target included and evidence against it left out."""
        columns = near.columns
        weights = self._prepared
        if weights is None:
            weights = np.stack([self._heads[column].weights for column in columns], axis=1)
        logits: np.ndarray = vectors @ weights + near.scores * self._near[columns] + self._bias[columns]
        for at, column in enumerate(columns):
            terms, coefficients = self._targets[column].terms, self._heads[column].coefficients
            for window, held in found.of(int(column), terms).items():
                logits[window, at] += float(np.dot(coefficients[1:4], scaled(terms, held)))
        return logits

    def _found(self, reading: Reading) -> _Found:
        """The terms that the windows hold, and the targets for which they are looked up."""
        windows: dict[str, set[int]] = {}
        piece_of = np.array([piece for piece, _ in reading.windows])
        starts = np.array([window.span.start for _, window in reading.windows])
        ends = np.array([window.span.end for _, window in reading.windows])
        for at, piece in enumerate(reading.pieces):
            if piece.form != "text":
                continue
            text = piece.folded.text
            for begin, end in {found for finder in self._terms for found in finder.find(text)}:
                if bounded(text, begin, end):
                    span = piece.folded.span(begin, end)
                    inside = (piece_of == at) & (starts <= span.start) & (ends >= span.end)
                    windows.setdefault(text[begin:end], set()).update(np.flatnonzero(inside).tolist())
        own: dict[int, set[str]] = {}
        common: set[str] = set()
        for term in windows:
            owners = [
                o for finder in self._terms for o in finder.owners.get(term, ()) if self._terms.holds(o)
            ]
            if self._prepared is None and len(owners) > _RARE:
                common.add(term)
            else:
                for owner in owners:
                    own.setdefault(self._column[owner.target_id], set()).add(term)
        return _Found(
            {term: frozenset(of) for term, of in windows.items()},
            {column: frozenset(of) for column, of in own.items()},
            frozenset(common),
        )

    def _against(self, reading: Reading, column: int, logits: np.ndarray) -> None:
        """Lower `logits` [windows] of one target where a window names somebody else."""
        vocabulary = self._targets[column].terms.vocabulary
        for window in np.flatnonzero(logits >= self._logits[column]):
            if names_other(strangers(reading.windows[window][1].text), vocabulary):
                logits[window] += self._heads[column].coefficients[4]


def sigmoid(z: np.ndarray | float) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -40.0, 40.0))))


def logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return np.asarray(np.log(p / (1 - p)))


def fit(vectors: np.ndarray, evidence: np.ndarray, labels: np.ndarray, weights: np.ndarray, c: float) -> Head:
    """A head by L2-regularised logistic regression. `vectors` [n, dim], `evidence` [n, 5], `labels` and
    sample `weights` [n]. Deterministic: the loss is convex and starts at zero. The threshold is left at
    0.5."""
    from sklearn.linear_model import LogisticRegression

    rows = np.concatenate([vectors, evidence], axis=1)
    model = LogisticRegression(C=c, max_iter=200, tol=1e-3).fit(rows, labels, sample_weight=weights)
    coefficients = model.coef_[0].astype(np.float32)
    dim = vectors.shape[1]
    of_evidence = coefficients[dim:].copy()
    of_evidence[:4] = np.maximum(of_evidence[:4], 0.0)  # evidence for can only raise a score,
    of_evidence[4] = min(of_evidence[4], 0.0)  # evidence against only lower it
    return Head(coefficients[:dim], of_evidence, float(model.intercept_[0]), 0.5)


def logits_of(head: Head, vectors: np.ndarray, evidence: np.ndarray) -> np.ndarray:
    """[n] logits of a head."""
    result: np.ndarray = vectors @ head.weights + evidence @ head.coefficients + head.bias
    return result
