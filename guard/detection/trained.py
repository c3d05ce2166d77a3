"""A classifier of windows that was trained for one target: a logistic head on the encoder's vectors.

ECO (arXiv 2406.07933) puts such a classifier in front of the model, with a conformal threshold. Here it judges windows
and not whole prompts, so that nothing around a question dilutes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from guard.artifacts import Artifact
from guard.detection.base import CompiledTarget, Finding, Reading
from guard.detection.encoder import Encoder
from guard.detection.heads import findings, numbers_of, tensors_of, with_head


@dataclass(frozen=True, eq=False)
class LogisticHead:
    """`weights` [dim] and `bias` give the logarithm of the odds that a window speaks of the target; `threshold` is one
    of those."""

    tells: ClassVar[bool] = True

    weights: np.ndarray
    bias: float
    threshold: float

    @classmethod
    def read(cls, artifact: Artifact, encoder: Encoder) -> LogisticHead:
        """Raises ArtifactError."""
        weights = tensors_of(artifact, {"weights": (encoder.dim,)})["weights"]
        return cls(weights, **numbers_of(artifact, ("bias", "threshold")))

    def scores(self, reading: Reading, asked: Sequence[int]) -> np.ndarray:
        return self.of(reading.vectors(asked))

    def of(self, vectors: np.ndarray) -> np.ndarray:
        """[n] the scores of windows with `vectors` [n, dim]."""
        scores: np.ndarray = vectors @ self.weights + self.bias
        return scores

    def shown(self, score: float) -> float:
        return float(1.0 / (1.0 + np.exp(-np.clip(score, -60.0, 60.0))))


class Trained:
    """Fires where a window is what the classifier of a target was trained to find."""

    head = LogisticHead

    def __init__(self, compiled: Sequence[CompiledTarget], before: Any = None) -> None:
        self._heads = with_head(compiled, LogisticHead)

    def detect(self, reading: Reading) -> Iterable[Finding]:
        yield from findings(self._heads, reading)
