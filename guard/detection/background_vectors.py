"""The background set as one encoder sees it, computed once per encoder and kept on disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from guard.detection.background import background, background_groups, background_hash
from guard.detection.encoder import Encoder
from guard.detection.evidence import folded_background
from guard.detection.text import fold

_CHUNK = 128


@dataclass(frozen=True, eq=False)
class Background:
    """`vectors` [prompts, dim], in the order of `background()`."""

    vectors: np.ndarray

    @cached_property
    def same_sort(self) -> float:
        """How near two prompts of one template typically are: from there on this encoder sees the same
        question."""
        groups = np.array(background_groups())
        nears = []
        for group in np.unique(groups):
            rows = self.vectors[groups == group]
            if len(rows) > 1:
                similar = rows @ rows.T
                nears.append(similar[np.triu_indices(len(rows), 1)])
        return float(np.median(np.concatenate(nears)))

    def rates(self, texts: Sequence[str], encoder: Encoder) -> list[float]:
        """For each text the share of background prompts that ask the same, or that hold all of its words."""
        if not texts:
            return []
        alike = (encoder.encode(texts) @ self.vectors.T >= self.same_sort).mean(axis=1)
        holders = [frozenset(prompt.text.split()) for prompt in folded_background()]
        held = []
        for text in texts:
            words = set(fold(text).text.split())
            held.append(sum(words <= holder for holder in holders) / len(holders) if words else 0.0)
        return [max(float(a), h) for a, h in zip(alike, held, strict=True)]


def load_background(encoder: Encoder, folder: Path) -> Background:
    """Read from `folder`, or computed and written there. An unreadable file is computed again."""
    path = folder / f"background-{encoder.digest[:16]}-{background_hash()}.npy"
    shape = (len(background()), encoder.dim)
    try:
        vectors = np.load(path, allow_pickle=False)
        if vectors.shape == shape and vectors.dtype == np.float32:
            return Background(vectors)
    except (OSError, ValueError):
        pass
    prompts = background()
    vectors = np.concatenate(
        [encoder.encode(prompts[i : i + _CHUNK]) for i in range(0, len(prompts), _CHUNK)]
    )
    _write(path, vectors)
    return Background(vectors)


def _write(path: Path, vectors: np.ndarray) -> None:
    """Whole or not at all: several processes may start at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        np.save(file, vectors)
    os.replace(name, path)
