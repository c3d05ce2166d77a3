"""The gist of a text: what its words alone tell of its vector, for a hundredth of what the encoder costs.

It is the mean of the vectors of its tokens in the encoder's own table, less what all texts have in common. It knows
nothing of order and context, so it says that texts are far apart, and not that they are near: `least` is how alike the
gists of two texts are at least that the encoder finds so near. That line was measured for the packaged encoder
(docs/evaluation.md, `python -m benchmarks speech --pairs`) and holds for no other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from guard.detection.background import background

EQUAL = 0.9
"""How alike the gists of texts are that the encoder cannot tell apart: as good as 1, but for rounding and signs."""
_SLOPE, _AT_ONE = 3.0, 0.6
_WORDS = 16_384  # whose tokens are remembered


def least(cosines: np.ndarray) -> np.ndarray:
    """How alike gists are where the encoder's vectors have these cosines: a line with room below all that was met."""
    result: np.ndarray = _AT_ONE - _SLOPE * (1.0 - cosines)
    return result


class Gist:
    """Thread-safe. `table` [tokens, dim]; a word has the same tokens in every text."""

    def __init__(self, table: np.ndarray, tokenizer: Any) -> None:
        self._table = table.astype(np.float16)
        self._tokenizer = tokenizer
        self._tokens = lru_cache(_WORDS)(self._tokens_of)
        self._common = self._means(background()).mean(axis=0)

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """[n, dim] of length 1."""
        rows = self._means(texts) - self._common
        result: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return result

    def _means(self, texts: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(texts), self._table.shape[1]), np.float32)
        for row, text in zip(rows, texts, strict=True):
            if tokens := [token for word in text.split() for token in self._tokens(word)]:
                row[:] = self._table[tokens].mean(axis=0, dtype=np.float32)
        return rows

    def _tokens_of(self, word: str) -> tuple[int, ...]:
        clean = word.encode("utf-8", "replace").decode()  # surrogates: no tokenizer takes them
        return tuple(self._tokenizer.encode(clean, add_special_tokens=False).ids)
