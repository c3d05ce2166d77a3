"""A classifier of windows that was trained for one target: a logistic head on the encoder's vectors, or a model of its
own that was fine-tuned.

ECO (arXiv 2406.07933) puts such a classifier in front of the model, with a conformal threshold. Here it judges windows
and not whole prompts, so that nothing around a question dilutes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from guard.artifacts import Artifact
from guard.detection.base import CompiledTarget, Finding, Reading
from guard.detection.encoder import Encoder
from guard.detection.graph import session_of
from guard.detection.heads import findings, numbers_of, tensors_of, with_head
from guard.errors import ArtifactError

GRAPH, TOKENIZER = "model.onnx", "tokenizer.json"
LONGEST = 512  # tokens; windows are far shorter


@dataclass(frozen=True, eq=False)
class ClassifierHead(ABC):
    """Scores are the logarithm of the odds that a window speaks of the target, `threshold` is one of them."""

    tells: ClassVar[bool] = True

    threshold: float

    @classmethod
    def read(cls, artifact: Artifact, encoder: Encoder) -> ClassifierHead:
        """Raises ArtifactError."""
        if GRAPH in artifact.manifest.files:
            return TransformerHead.opened(artifact)
        weights = tensors_of(artifact, {"weights": (encoder.dim,)})["weights"]
        of = numbers_of(artifact, ("bias", "threshold"))
        return LogisticHead(of["threshold"], weights, of["bias"])

    @abstractmethod
    def scores(self, reading: Reading, asked: Sequence[int]) -> np.ndarray:
        """[asked]"""

    def shown(self, score: float) -> float:
        return chance(score)


def chance(score: float) -> float:
    """The probability of odds with the logarithm `score`."""
    return float(1.0 / (1.0 + np.exp(-np.clip(score, -60.0, 60.0))))


@dataclass(frozen=True, eq=False)
class LogisticHead(ClassifierHead):
    """`weights` [dim] and `bias` on the vectors of the encoder."""

    weights: np.ndarray
    bias: float

    def scores(self, reading: Reading, asked: Sequence[int]) -> np.ndarray:
        return self.of(reading.vectors(asked))

    def of(self, vectors: np.ndarray) -> np.ndarray:
        """[n] the scores of windows with `vectors` [n, dim]."""
        scores: np.ndarray = vectors @ self.weights + self.bias
        return scores


@dataclass(frozen=True, eq=False)
class TransformerHead(ClassifierHead):
    """A model of its own as a graph, `session`, which many threads may run. Each window is run by itself."""

    session: Any
    tokenizer: Any

    @classmethod
    def opened(cls, artifact: Artifact) -> TransformerHead:
        """Raises ArtifactError."""
        threshold = numbers_of(artifact, ("threshold",))["threshold"]
        try:
            head = cls.of_files(threshold, artifact.folder)
            proof = head.of(["Who is it?"])
        except Exception as error:  # both libraries raise whatever they like
            raise ArtifactError("The classifier's graph or tokenizer cannot be read.") from error
        if proof.shape != (1,) or not np.isfinite(proof).all():
            raise ArtifactError("The classifier's graph does not give one number for a text.")
        return head

    @classmethod
    def of_files(cls, threshold: float, folder: Path) -> TransformerHead:
        """Raises whatever the two libraries raise."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.enable_truncation(LONGEST)
        return cls(threshold, session_of(folder / GRAPH, threads=1), tokenizer)

    def scores(self, reading: Reading, asked: Sequence[int]) -> np.ndarray:
        return self.of([reading.windows[at][1].text for at in asked])

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """[n] the scores of texts."""
        scores = []
        for text in texts:
            ids = np.array([self.tokenizer.encode(text).ids], np.int64)
            scores.append(self.session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0])
        return np.concatenate(scores)


class Trained:
    """Fires where a window is what the classifier of a target was trained to find."""

    head = ClassifierHead

    def __init__(self, compiled: Sequence[CompiledTarget], before: Any = None) -> None:
        self._heads = with_head(compiled, ClassifierHead)  # type: ignore[type-abstract]

    def detect(self, reading: Reading) -> Iterable[Finding]:
        yield from findings(self._heads, reading)
