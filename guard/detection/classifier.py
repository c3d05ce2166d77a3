"""A light logistic head per target over window vectors and evidence, trained when the target is
registered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import ahocorasick
import numpy as np

from guard.detection.base import CompiledTarget, Head, Reading
from guard.detection.evidence import names_other, scaled, strangers
from guard.detection.semantic import Nearest, spans_of
from guard.detection.text import bounded
from guard.types import Detection

FLOOR = 0.0  # relative similarities below this say nothing, and are counted as this


class Classifier:
    """Fires where the head's probability of a window reaches its calibrated threshold.

    Scores are first computed for all windows and targets without the evidence against (another name in the
    window), which can only lower them; that evidence is looked up where the threshold would be reached.
    """

    def __init__(self, compiled: Sequence[CompiledTarget]) -> None:
        with_head = [(target, target.head) for target in compiled if target.head is not None]
        self._targets = [target for target, _ in with_head]
        self._heads = [head for _, head in with_head]
        self._nearest = Nearest(self._targets, FLOOR)
        if self._heads:
            self._weights = np.stack([head.weights for head in self._heads], axis=1)
            self._near = np.array([head.coefficients[0] for head in self._heads], np.float32)
            self._bias = np.array([head.bias for head in self._heads], np.float32)
            self._logits = np.array([logit(head.threshold) for head in self._heads], np.float32)
        owners: dict[str, list[int]] = {}
        for column, target in enumerate(self._targets):
            for term in {*target.terms.parts, *target.terms.strong, *target.terms.weak}:
                owners.setdefault(term, []).append(column)
        self._finder = ahocorasick.Automaton()
        for term, columns in owners.items():
            self._finder.add_word(term, (term, tuple(columns)))
        if owners:
            self._finder.make_automaton()

    def detect(self, reading: Reading) -> Iterable[Detection]:
        if not any(target.target_id in reading.active for target in self._targets) or not reading.windows:
            return
        logits = self._scores(reading)
        for column in np.flatnonzero((logits >= self._logits).any(axis=0)):
            target = self._targets[column]
            if target.target_id not in reading.active:
                continue
            of = logits[:, column].copy()
            self._against(reading, column, of)
            fired = np.flatnonzero(of >= self._logits[column])
            if len(fired):
                score = max(float(sigmoid(of[fired].max())), self._heads[column].threshold)  # float32 rounds
                spans = spans_of(reading, fired, of)
                yield Detection(target.target_id, "classifier", score, self._heads[column].threshold, spans)

    def _scores(self, reading: Reading) -> np.ndarray:
        """[windows, targets] logits, evidence for the target included and evidence against it left out."""
        vectors = reading.vectors
        logits: np.ndarray = vectors @ self._weights + self._nearest.best(vectors) * self._near + self._bias
        for (window, column), found in self._terms(reading).items():
            amounts = scaled(self._targets[column].terms, found)
            logits[window, column] += float(np.dot(self._heads[column].coefficients[1:4], amounts))
        return logits

    def _terms(self, reading: Reading) -> dict[tuple[int, int], set[str]]:
        """(window, target) -> the target's terms that the window holds."""
        found: dict[tuple[int, int], set[str]] = {}
        piece_of = np.array([piece for piece, _ in reading.windows])
        starts = np.array([window.span.start for _, window in reading.windows])
        ends = np.array([window.span.end for _, window in reading.windows])
        for at, piece in enumerate(reading.pieces):
            if piece.form != "text" or not len(self._finder):
                continue
            text = piece.folded.text
            for last, (term, columns) in self._finder.iter(text):
                begin = last + 1 - len(term)
                if not bounded(text, begin, last + 1):
                    continue
                span = piece.folded.span(begin, last + 1)
                for window in np.flatnonzero((piece_of == at) & (starts <= span.start) & (ends >= span.end)):
                    for column in columns:
                        found.setdefault((int(window), column), set()).add(term)
        return found

    def _against(self, reading: Reading, column: int, logits: np.ndarray) -> None:
        """Lower `logits` [windows] of one target where a window names somebody else."""
        vocabulary = self._targets[column].terms.vocabulary
        for window in np.flatnonzero(logits >= self._logits[column]):
            if names_other(strangers(reading.windows[window][1].text), vocabulary):
                logits[window] += self._heads[column].coefficients[4]


def sigmoid(z: np.ndarray | float) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(z, -40.0, 40.0))))


def logit(p: float) -> float:
    p = min(max(p, 1e-12), 1 - 1e-12)
    return float(np.log(p / (1 - p)))


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
