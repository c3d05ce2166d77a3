"""The prompt classifier of one target (guard.detection.trained): a logistic head on the index encoder's vectors, or
with `encoder` a transformers model that is fine-tuned (classifiers.finetuning).

ECO (arXiv 2406.07933) fine-tunes an encoder on forget and retain prompts. The light head leaves the encoder as it is:
it needs no memory of its own, and every window is embedded once for all targets. It learns from the near misses too,
which a classifier of forget and retain prompts alone mistakes for the target.

Each score that counts, for the threshold and for the choice of `strength`, comes from a head that knew neither the
window nor what says the same (cross-validation by source), so the thresholds are cross-conformal (Vovk 2015)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from classifiers.base import Params, Task, Trainer
from classifiers.data import digest
from classifiers.prompts import Made, Material, embedded, gather, measured, require_sources, threshold_of
from guard import artifacts
from guard.artifacts import Artifact
from guard.detection.trained import LogisticHead

_FOLDS = 5
_STRENGTHS = (1.0, 10.0, 100.0)  # of the fit against the penalty on its weights


class ClassifierParams(Params):
    """fpr: rate at which prompts that must not match may, near misses among them. near: near misses to learn from.
    encoder: folder of a transformers model that is fine-tuned instead, for at most so many `epochs`, in steps of
    `batch` windows."""

    fpr: float = Field(0.01, gt=0.0, le=0.5)
    near: int = Field(200, ge=0, le=5_000)
    encoder: Path | None = None
    epochs: int = Field(10, ge=1, le=1_000)
    batch: int = Field(32, ge=2, le=1_024)
    learning_rate: float = Field(5e-5, gt=0.0, le=0.1)


class PromptClassifier(Trainer):
    params_type = ClassifierParams
    reads = "encoder"

    def train(self, task: Task, params: ClassifierParams) -> Artifact:
        require_sources(task)
        encoder = task.encoder.load()
        task.progress.report(0.0, "reading the examples")
        material = gather(task, encoder, fpr=params.fpr, near=params.near, seed=params.seed)
        if params.encoder is None:
            made = _light(task, params, material, embedded(material, encoder, task.encoder.folder))
        else:
            from classifiers.finetuning import (  # torch and transformers take seconds to import
                Plan,
                fine_tuned,
            )

            plan = Plan(params.seed, params.epochs, params.batch, params.learning_rate)
            made = fine_tuned(task, params.encoder, plan, material)
        return artifacts.write(
            task.out,
            "trained",
            encoder.digest,
            tensors=made.tensors,
            facts=made.facts,
            measured=made.measured,
            trained={
                "trainer": "classifier",
                "params": params.model_dump(exclude={"encoder"}),
                "forget": digest(task.forget),
                "retain": digest(task.retain),
            },
        )


def _light(task: Task, params: ClassifierParams, material: Material, rows: Mapping[str, np.ndarray]) -> Made:
    strength, threshold, scores = _chosen(material, rows, params.seed, task)
    weights, bias = _fit(rows, {name: np.ones(len(of), bool) for name, of in rows.items()}, strength)
    head = LogisticHead(threshold, weights, bias)
    own = material.own.highest(scores["own"], float(scores["own"].min()))
    told = measured(material.strata(scores), own, threshold, head.shown)
    facts = {"bias": bias, "threshold": threshold}
    return Made(_tensors(head), facts, {"windows": len(rows["own"]), "strength": strength, **told})


def _chosen(
    material: Material, rows: Mapping[str, np.ndarray], seed: int, task: Task
) -> tuple[float, float, dict[str, np.ndarray]]:
    """The strength that misses the fewest forget prompts at the threshold that it needs, the smallest of equals; that
    threshold, and the scores of all windows by heads that do not know them."""
    folds = {name: of.folds(_FOLDS, seed) for name, of in material.sorts.items()}
    tried = []
    for number, strength in enumerate(_STRENGTHS):
        task.progress.report(0.3 + 0.6 * number / len(_STRENGTHS), "fitting")
        scores = _left_out(rows, folds, strength)
        threshold = threshold_of(material.strata(scores))
        own = material.own.highest(scores["own"], float(scores["own"].min()))
        tried.append(((own < threshold).mean(), strength, threshold, scores))
    _, strength, threshold, scores = min(tried, key=lambda one: one[:2])
    return strength, threshold, scores


def _left_out(
    rows: Mapping[str, np.ndarray], folds: Mapping[str, np.ndarray], strength: float
) -> dict[str, np.ndarray]:
    """[windows] of each sort, scored by the head that was fitted without their fold."""
    scores = {name: np.zeros(len(of)) for name, of in rows.items()}
    for fold in range(_FOLDS):
        weights, bias = _fit(rows, {name: of != fold for name, of in folds.items()}, strength)
        for name, of in folds.items():
            scores[name][of == fold] = rows[name][of == fold] @ weights + bias
    return scores


def _fit(
    rows: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray], strength: float
) -> tuple[np.ndarray, float]:
    """Weights [dim] and bias from the rows that are `kept`; the target's own and the others weigh the same."""
    from sklearn.linear_model import LogisticRegression

    own = rows["own"][kept["own"]]
    others = np.concatenate([of[kept[name]] for name, of in rows.items() if name != "own"])
    labels = np.repeat([1, 0], [len(own), len(others)])
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1_000)
    model.fit(np.concatenate([own, others]), labels)
    return model.coef_[0].astype(np.float32), float(model.intercept_[0])


def _tensors(head: LogisticHead) -> dict[str, Any]:
    import torch

    return {"weights": torch.from_numpy(head.weights)}
