"""The encoder as a graph for ONNX Runtime: exported once, quantised where asked, kept on disk.

On CPU it takes a third of torch's time for a short prompt, and a sixth in 8 bits. Weights are quantised to 7 bits
of a byte, each row with its own scale, so that no processor's 16-bit sums saturate and all give the same vectors;
activations are scaled as they come. A text is run by itself: in a batch its scale, and with it its vector, would
depend on its neighbours, and padding costs more than a batch of short texts gains.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Otherwise it tells its maker about the machine and what it runs, from the moment it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

BATCH = 8  # texts between two looks at who else waits
_FORMAT = 1  # of the files; another number makes them anew
_PROBES = (
    "Where was she born?",
    "Explain in two short sentences how a heat pump warms a house although it is colder outside than inside.",
)
_ALIKE = {False: 0.9999, True: 0.9}  # least cosine of the graph's vectors and torch's, by int8


@dataclass(frozen=True, eq=False)
class Graph:
    """A model that runs. `digest` is the model's own in full precision, and another one in 8 bits: thresholds
    measured with one do not hold for the other."""

    digest: str
    session: Any
    tokenizer: Any
    prefix: str

    def embed(self, texts: list[str]) -> np.ndarray:
        """[n, dim], each text by itself."""
        rows = []
        for text in texts:
            ids = np.array([self.tokenizer.encode(self.prefix + text.strip()).ids], np.int64)
            rows.append(self.session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0])
        return np.concatenate(rows)


def build(model: Any, digest: str, *, int8: bool, threads: int, folder: Path | None) -> Graph:
    """The graph of a sentence-transformers `model` on CPU, from `folder` where it was made before.

    Raises:
        Exception: of many sorts; the model has no graph, or one that does not say the same.
    """
    with tempfile.TemporaryDirectory(prefix="lethe-encoder-") as scratch:
        place = folder or Path(scratch)
        path = place / f"encoder-{digest[:16]}-{'int8' if int8 else 'float'}-{_FORMAT}.onnx"
        if not path.exists():
            place.mkdir(parents=True, exist_ok=True)
            _make(model, path, int8, forward_of(model))
        session = session_of(path, threads)
    own = hashlib.sha256(f"{digest} int8 {_FORMAT}".encode()).hexdigest() if int8 else digest
    graph = Graph(own, session, _tokenizer(model), prefix_of(model))
    expected = model.encode(list(_PROBES), show_progress_bar=False, convert_to_numpy=True)
    _check(graph, np.asarray(expected), _ALIKE[int8])
    return graph


def build_hidden(model: Any, digest: str, forward: Any, *, threads: int, folder: Path | None) -> Graph:
    """The same for `forward`, a module that gives [texts, depth * dim] instead of the model's own vectors. Its `embed`
    takes texts.

    Raises:
        Exception: as `build`.
    """
    with tempfile.TemporaryDirectory(prefix="lethe-encoder-") as scratch:
        place = folder or Path(scratch)
        path = place / f"encoder-{digest[:16]}-hidden-{_FORMAT}.onnx"
        if not path.exists():
            place.mkdir(parents=True, exist_ok=True)
            _make(model, path, False, forward)
        session = session_of(path, threads)
    graph = Graph(digest, session, _tokenizer(model), prefix_of(model))
    _check(graph, forward.embed(list(_PROBES)), _ALIKE[False])
    return graph


def prefix_of(model: Any) -> str:
    """What the model wants in front of every text."""
    prompts: dict[str, str] = model.prompts or {}
    return prompts.get(model.default_prompt_name or "", "")


def forward_of(model: Any) -> Any:
    """The model as a module of token ids and mask."""
    import torch

    class Forward(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model({"input_ids": input_ids, "attention_mask": attention_mask})[
                "sentence_embedding"
            ]

    return Forward()


def _make(model: Any, path: Path, int8: bool, forward: Any) -> None:
    """Whole or not at all: several processes may start at once."""
    with tempfile.TemporaryDirectory(prefix="lethe-encoder-", dir=path.parent) as name:
        exported = Path(name) / "float.onnx"
        export(model[0].model, exported, forward)
        os.replace(_quantised(exported) if int8 else exported, path)


def export(inner: Any, path: Path, forward: Any) -> None:
    """`forward`, a module of token ids and mask around the transformers model `inner`, as a graph in `path`."""
    import torch

    ids = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 0, 0]])
    kept = inner.config._attn_implementation
    inner.set_attn_implementation("eager")  # fused attention has no operator of its own
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of tracing; _check looks at what came of it
            names = ["input_ids", "attention_mask"]
            torch.onnx.export(
                forward,
                (ids, (ids > 0).long()),
                str(path),
                input_names=names,
                output_names=["vectors"],
                dynamic_axes={**{name: {0: "texts", 1: "tokens"} for name in names}, "vectors": {0: "texts"}},
                opset_version=17,
                dynamo=False,
            )
    finally:
        inner.set_attn_implementation(kept)


def _quantised(path: Path) -> Path:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    inner = [node.name for node in graph.node if node.op_type == "MatMul" and weights.isdisjoint(node.input)]
    made = path.with_name("int8.onnx")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it recommends a step to the root logger that changes nothing here
    try:
        quantize_dynamic(
            path,
            made,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=inner,  # products of two activations: small, and slower in 8 bits
        )
    finally:
        root.setLevel(level)
    return made


def session_of(path: Path, threads: int) -> Any:
    """The graph in `path`, ready to run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are the engine's
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _tokenizer(model: Any) -> Any:
    """The model's own fast tokenizer as a copy without padding, which many threads may use."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    made.no_padding()
    made.enable_truncation(int(model.max_seq_length))
    return made


def _check(graph: Graph, expected: np.ndarray, alike: float) -> None:
    found = graph.embed(list(_PROBES))
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    least = float(((expected * found).sum(axis=1) / lengths).min())
    if not least >= alike:
        raise ValueError(f"the graph's vectors differ from the model's (cosine {least:.4f})")
