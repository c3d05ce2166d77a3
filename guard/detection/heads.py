"""Trained detectors: each acts for the targets that name an artifact of its own, and for no others.

A sentence encoder sees a question about X and the same one about Y as nearly one question. What a head that was not
taught the difference says of a window counts only where the window names nobody whom the target's texts do not know."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from guard.artifacts import Artifact
from guard.detection.base import CompiledTarget, Finding, Head, Reading, Terms
from guard.detection.encoder import Encoder
from guard.detection.evidence import named, unknown
from guard.detection.gate import load_detector
from guard.detection.semantic import fired
from guard.errors import ArtifactError
from guard.types import Kind

H = TypeVar("H", bound=Head)


def read_head(artifact: Artifact, encoder: Encoder) -> Head:
    """The head in a detector's artifact.

    Raises:
        ArtifactError: the detector is not one that is trained, the artifact was made for another encoder, or it is
            not what the detector reads.
    """
    from guard.detection import DETECTORS  # the table names the detectors; this module must not

    method = artifact.manifest.method
    head: type[Head] | None = getattr(load_detector(DETECTORS[method]), "head", None)
    if head is None:
        raise ArtifactError(f"The detector {method} is made at registration and takes no artifact.")
    made_for = artifact.manifest.base_model
    if made_for != encoder.digest:
        raise ArtifactError(
            f"The artifact {artifact.digest[:16]} was made for the encoder {made_for[:16]}, and the one here is "
            f"{encoder.digest[:16]}; train it again."
        )
    return head.read(artifact, encoder)


def with_head(compiled: Sequence[CompiledTarget], sort: type[H]) -> tuple[tuple[CompiledTarget, H], ...]:
    """The targets that have a head of this sort, with it."""
    return tuple((target, head) for target in compiled for head in target.heads if isinstance(head, sort))


def findings(heads: Sequence[tuple[CompiledTarget, Head]], reading: Reading) -> Iterator[Finding]:
    """Where a window reaches the threshold of a target's head. At most one for each head and unit."""
    for target, head in heads:
        if target.target_id not in reading.active:
            continue
        texts = [window.text for _, window in reading.windows]
        others = [not head.tells and of_others(text, target.spec.kind, target.terms) for text in texts]
        asked = [i for i, other in enumerate(others) if not other]
        if not asked:
            continue
        scores = head.scores(reading, asked)
        for unit, best, spans in fired(reading, asked, scores, head.threshold):
            yield Finding(unit, target.target_id, head.shown(best), head.shown(head.threshold), spans)


def tensors_of(artifact: Artifact, shapes: Mapping[str, tuple[int | str, ...]]) -> dict[str, np.ndarray]:
    """The tensors of these names as float32. A size that is a word is free, and the same wherever the word stands.

    Raises:
        ArtifactError: one is missing, has other sizes, or holds values that are not finite.
    """
    found = artifact.tensors()
    free: dict[str, int] = {}
    made = {}
    for name, shape in shapes.items():
        if name not in found or found[name].ndim != len(shape):
            raise ArtifactError(f"The detector's artifact lacks the tensor {name}, or it has another shape.")
        of = found[name].float().numpy()
        wanted = tuple(
            free.setdefault(n, size) if isinstance(n, str) else n
            for n, size in zip(shape, of.shape, strict=True)
        )
        if of.shape != wanted or not np.isfinite(of).all():
            raise ArtifactError(f"The detector's tensor {name} does not fit the encoder, or is not finite.")
        made[name] = of
    return made


def numbers_of(artifact: Artifact, names: Sequence[str]) -> dict[str, float]:
    """Finite numbers among its facts.

    Raises:
        ArtifactError: one is missing or is none.
    """
    facts = artifact.manifest.facts
    for name in names:
        if not isinstance(facts.get(name), int | float) or not math.isfinite(facts[name]):
            raise ArtifactError(f"The detector's artifact lacks the number {name}.")
    return {name: float(facts[name]) for name in names}


def of_others(text: str, kind: Kind, of: Terms) -> bool:
    """Whether the text names somebody or something that the texts of a person or a work do not know."""
    return kind in ("entity", "work") and unknown(of, named(text)) > 0
