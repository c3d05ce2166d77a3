"""The out-of-distribution detector of O3 (arXiv 2407.10223) for one target: see guard.detection.ood.

Only the forget examples fit it. Those scores that must not know the window that they judge come from fits without it
and without what says the same (cross-validation by source). Near misses, retain examples and the background set the
threshold and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from classifiers.base import Params, Task, Trainer
from classifiers.data import digest
from classifiers.prompts import embedded, gather, measured, require_sources, threshold_of
from guard import artifacts
from guard.artifacts import Artifact
from guard.detection.ood import Layers, OodHead, squeezed, states_of
from guard.types import Kind

_FOLDS = 10
_LEAST = 1e-6  # of variances and deviations: equal windows have none


class OodParams(Params):
    """fpr: rate at which prompts that must not match may. nu: share of the forget windows that the one-class SVM may
    leave outside. near: near misses that the threshold is measured on. kind: of the target; where it is a person or a
    work, windows that name somebody else are left out of account."""

    fpr: float = Field(0.01, gt=0.0, le=0.5)
    nu: float = Field(0.1, gt=0.0, lt=1.0)
    near: int = Field(200, ge=0, le=5_000)
    kind: Kind = "entity"


class OutOfDistribution(Trainer):
    params_type = OodParams
    reads = "encoder"

    def train(self, task: Task, params: OodParams) -> Artifact:
        require_sources(task)
        encoder = task.encoder.load()
        task.progress.report(0.0, "reading the examples")
        material = gather(task, encoder, kind=params.kind, fpr=params.fpr, near=params.near, seed=params.seed)
        states = {
            name: states_of(rows, encoder.hidden.depth)
            for name, rows in embedded(material, encoder.hidden, task.encoder.folder).items()
        }
        folds = material.own.folds(_FOLDS, params.seed)
        task.progress.report(0.2, "fitting")
        head, held_out = fit(states["own"], folds, params.nu)
        task.progress.report(0.6, "scoring what must not match")
        strata = material.strata({name: head.of(states[name]) for name in material.others})
        threshold = threshold_of(strata)
        own = material.own.highest(held_out, float(held_out.min()))
        return artifacts.write(
            task.out,
            "ood",
            encoder.digest,
            tensors=_tensors(head),
            facts={
                name: float(getattr(head, name)) for name in ("offset", "trained", "held_out", "deviation")
            }
            | {"threshold": threshold},
            measured={"windows": len(held_out), **measured(strata, own, threshold, head.shown)},
            trained={
                "trainer": "ood",
                "params": params.model_dump(),
                "forget": digest(task.forget),
                "retain": digest(task.retain),
            },
        )


def fit(states: np.ndarray, folds: np.ndarray, nu: float) -> tuple[OodHead, np.ndarray]:
    """The head for forget windows with unit `states` [n, depth, width], with an infinite threshold, and what each
    window scores by fits without its fold [n]."""
    from sklearn.svm import OneClassSVM

    left_out = np.zeros((2, *states.shape[:2]))
    for fold in np.unique(folds):
        left_out[:, folds == fold] = layers_of(states[folds != fold]).raw(states[folds == fold])
    centre, scale = left_out.mean(axis=1), np.maximum(left_out.std(axis=1), _LEAST)
    features = squeezed(left_out, centre, scale)
    machine = OneClassSVM(kernel="linear", nu=nu).fit(features)
    weights, offset = machine.coef_[0], float(machine.intercept_[0])
    held_out = features @ weights + offset
    layers = layers_of(states)
    trained = squeezed(layers.raw(states), centre, scale) @ weights + offset
    head = OodHead(
        layers,
        centre,
        scale,
        weights,
        offset,
        float(trained.mean()),
        float(held_out.mean()),
        max(float(held_out.std()), _LEAST),
        np.inf,
    )
    return head, held_out


def layers_of(states: np.ndarray) -> Layers:
    """Mean, shrunk covariance and bank of unit `states` [n, depth, width]."""
    from sklearn.covariance import ledoit_wolf_shrinkage

    mean = states.mean(axis=0)
    spreads, bases = [], []
    for layer in range(states.shape[1]):
        apart = (states[:, layer] - mean[layer]).astype(np.float64)
        shrinkage = ledoit_wolf_shrinkage(apart, assume_centered=True) if len(apart) > 1 else 1.0
        spread = max(shrinkage * float((apart**2).sum()) / apart.size, _LEAST)
        _, sizes, directions = np.linalg.svd(apart, full_matrices=False)
        more = (1.0 - shrinkage) * sizes**2 / len(apart)
        spreads.append(spread)
        bases.append(directions * np.sqrt(more / (spread + more))[:, None])
    basis = np.stack(bases).astype(np.float32)
    return Layers(mean, np.array(spreads, np.float32), basis, states)


def _tensors(head: OodHead) -> dict[str, Any]:
    import torch

    arrays = {name: getattr(head.layers, name) for name in ("mean", "spread", "basis", "bank")}
    arrays |= {name: getattr(head, name) for name in ("centre", "scale", "weights")}
    return {name: torch.from_numpy(np.array(array, np.float32)) for name, array in arrays.items()}
