"""Fits a target's head and scores everything that it must and must not match, each text by a head that has
not seen it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from guard.detection.background import background_groups
from guard.detection.base import Head
from guard.detection.classifier import fit, logits_of
from guard.detection.material import Material, Texts

_FOLDS = 3
_C = 10.0  # inverse strength of L2; unit vectors differ by little, so weights must be allowed to be large
_SOME_BACKGROUND = 600  # of the background prompts each head is trained on; calibration uses all


@dataclass(frozen=True, eq=False)
class Trained:
    """The final head, and held-out logits of each stratum of negatives and of the own texts."""

    head: Head
    negatives: dict[str, np.ndarray]
    own: np.ndarray


@dataclass(frozen=True, eq=False)
class _Part:
    """One sort of texts with its label, its total weight in the fit, and the fold of each row. Prompts of one
    background template share a fold: a head that saw one has as good as seen the others."""

    texts: Texts
    label: int
    weight: float
    fold: np.ndarray


def train(material: Material, background: Texts, c: float = _C) -> Trained | None:
    """Cross-fitted scores and a head fitted on everything. None without texts of the target's own."""
    if len(material.own.texts) < 2:
        return None
    parts = {
        "own": _part(material.own, 1, 1.0),
        "partial": _part(material.partial, 1, 0.3),
        "background": _Part(background, 0, 0.5, np.array(background_groups()) % _FOLDS),
        "near": _part(material.near, 0, 1.0),
        "others": _part(material.others, 0, 0.5),
        "retain": _part(material.retain, 0, 1.0),
    }
    scores = {name: np.zeros(len(part.texts.texts), np.float32) for name, part in parts.items()}
    for held in range(_FOLDS):
        head = _fit([(p, p.fold != held) for p in parts.values()], c)
        for name, part in parts.items():
            rows = part.fold == held
            scores[name][rows] = logits_of(head, part.texts.vectors[rows], part.texts.evidence[rows])
    final = _fit([(p, np.ones(len(p.fold), bool)) for p in parts.values()], c)
    negatives = {name: scores[name] for name, part in parts.items() if part.label == 0 and len(part.fold)}
    return Trained(final, negatives, scores["own"])


def _part(texts: Texts, label: int, weight: float) -> _Part:
    return _Part(texts, label, weight, np.arange(len(texts.texts)) % _FOLDS)


def _fit(parts: Sequence[tuple[_Part, np.ndarray]], c: float) -> Head:
    """A head on the chosen rows of each part. Each part's rows share its weight, whatever their number."""
    vectors: list[np.ndarray] = []
    evidence: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    total = sum(len(rows) for _, rows in parts)
    for part, rows in parts:
        chosen = np.flatnonzero(rows)[:_SOME_BACKGROUND]
        if len(chosen):
            vectors.append(part.texts.vectors[chosen])
            evidence.append(part.texts.evidence[chosen])
            labels.append(np.full(len(chosen), part.label))
            weights.append(np.full(len(chosen), part.weight * min(total, 500) / 3.0 / len(chosen)))
    return fit(
        np.concatenate(vectors),
        np.concatenate(evidence),
        np.concatenate(labels),
        np.concatenate(weights),
        c,
    )
