"""O3's out-of-distribution score: how much a window looks like the forget examples to every layer of the encoder.

"On Large Language Model Continual Unlearning" (arXiv 2407.10223). Of each layer a window has two numbers: the
Mahalanobis distance to the forget windows, and the largest cosine to one of them. Here both are measured in standard
deviations of what forget windows score that were left out of the fit, so no factor between them is set by hand (the
paper: 1000); a one-class SVM with the linear kernel of the released code weighs the layers. It rises with every
layer's score, because these are squeezed into (0, 1) before it is fitted.

What else differs from the paper: the encoder is the index's own and stays frozen (there: one fine-tuned RoBERTa for
each request), so one encoder serves all targets; padding does not count in the means of layers; the covariance is
shrunk (Ledoit and Wolf 2004), because there are fewer forget windows than dimensions; and the threshold is measured
(classifiers.ood), where the paper's evaluation sets the weights from which an adapter is loaded by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, ClassVar

import numpy as np

from guard.artifacts import Artifact
from guard.detection.base import CompiledTarget, Finding, Reading
from guard.detection.encoder import Encoder
from guard.detection.heads import findings, numbers_of, tensors_of, with_head

_NUMBERS = ("offset", "trained", "held_out", "deviation", "threshold")


@dataclass(frozen=True, eq=False)
class Layers:
    """The forget windows as each layer sees them: their `mean` [depth, width]; their covariance, `spread` [depth] in
    all directions and more in those of `basis` [depth, rank, width]; and themselves, `bank` [rows, depth, width] of
    length 1 in each layer."""

    mean: np.ndarray
    spread: np.ndarray
    basis: np.ndarray
    bank: np.ndarray

    def raw(self, states: np.ndarray) -> np.ndarray:
        """[2, n, depth] of windows with unit `states` [n, depth, width]: minus half the squared Mahalanobis distance,
        and the largest cosine to the bank."""
        apart = states - self.mean
        inside = np.einsum("ndw,drw->ndr", apart, self.basis)
        distance = ((apart**2).sum(axis=2) - (inside**2).sum(axis=2)) / self.spread
        cosines = np.einsum("ndw,mdw->nmd", states, self.bank)
        return np.stack([-0.5 * distance, cosines.max(axis=1)]).astype(np.float64)


@dataclass(frozen=True, eq=False)
class OodHead:
    """`centre` and `scale` [2, depth] are mean and deviation of what left-out forget windows score; `weights` [depth]
    and `offset` are the one-class SVM's. `trained` and `held_out` are the mean scores of forget windows by the fit that
    knows them and by fits that do not, `deviation` that of the latter."""

    tells: ClassVar[bool] = False

    layers: Layers
    centre: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    offset: float
    trained: float
    held_out: float
    deviation: float
    threshold: float

    @classmethod
    def read(cls, artifact: Artifact, encoder: Encoder) -> OodHead:
        """Raises ArtifactError."""
        depth = encoder.hidden.depth
        width = encoder.hidden.dim // depth
        shapes: dict[str, tuple[int | str, ...]] = {
            "mean": (depth, width),
            "spread": (depth,),
            "basis": (depth, "rank", width),
            "bank": ("rows", depth, width),
            "centre": (2, depth),
            "scale": (2, depth),
            "weights": (depth,),
        }
        of = tensors_of(artifact, shapes)
        layers = Layers(of["mean"], of["spread"], of["basis"], of["bank"])
        numbers = numbers_of(artifact, _NUMBERS)
        return cls(layers, of["centre"], of["scale"], of["weights"], *(numbers[name] for name in _NUMBERS))

    def scores(self, reading: Reading, asked: Sequence[int]) -> np.ndarray:
        return self.of(states_of(reading.hidden(asked), len(self.weights)))

    def of(self, states: np.ndarray) -> np.ndarray:
        """[n] the scores of windows with unit `states` [n, depth, width]."""
        result: np.ndarray = squeezed(self.layers.raw(states), self.centre, self.scale) @ self.weights
        return result + self.offset

    def shown(self, score: float) -> float:
        """O3's soft weight: the sigmoid of 10 p - 2, where p is the chance to lie farther from the middle between
        trained and left-out forget windows than this score, under an even mixture of normal distributions around the
        two. From the middle on it stays at its highest: what is nearer than a left-out window matches no less."""
        low = min(score, (self.trained + self.held_out) / 2)
        tails = sum(NormalDist(at, self.deviation).cdf(low) for at in (self.trained, self.held_out))
        return float(1.0 / (1.0 + np.exp(2.0 - 10.0 * tails)))


def states_of(rows: np.ndarray, depth: int) -> np.ndarray:
    """[n, depth, width] of length 1 in each layer, from the hidden encoder's [n, depth * width]."""
    states: np.ndarray = rows.reshape(len(rows), depth, rows.shape[1] // depth) * np.float32(np.sqrt(depth))
    return states


def squeezed(raw: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """[n, depth] in (0, 1) from [2, n, depth]: one half is as near as a typical forget window that was left out. The
    curve is Cauchy's: in flatter tails all that is far away would be equal, and no threshold could lie between."""
    deviations = ((raw - centre[:, None]) / scale[:, None]).mean(axis=0)
    result: np.ndarray = 0.5 + np.arctan(deviations) / np.pi
    return result


class Ood:
    """Fires where a window looks like the forget examples of a target that was trained for."""

    head = OodHead

    def __init__(self, compiled: Sequence[CompiledTarget], before: Any = None) -> None:
        self._heads = with_head(compiled, OodHead)

    def detect(self, reading: Reading) -> Iterable[Finding]:
        yield from findings(self._heads, reading)
