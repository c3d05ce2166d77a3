"""The encoder's hidden states, as an encoder of its own: of each layer the mean over the tokens of a text.

It is made only for targets whose detectors read layers (guard.detection.ood): it costs a second run of the model, and
memory for its weights. Of the states that go into the first layer nothing is taken: they know words alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guard.detection import graph

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Hidden:
    """`embed` gives rows [n, depth * width] of `depth` parts, one of each layer and each of length 1."""

    depth: int
    width: int
    embed: Callable[[list[str]], np.ndarray]


def build(model: Any, digest: str, threads: int | None, folder: Path | None) -> Hidden:
    """The layers of a sentence-transformers `model` with weights `digest`, in ONNX Runtime with so many `threads`, its
    graph kept in `folder`; None: in torch."""
    layers = layers_of(model)
    embed = layers.embed
    if threads is not None:
        try:
            embed = graph.build_hidden(model, digest, layers, threads=threads, folder=folder).embed
        except Exception as error:  # as for the encoder itself
            logger.warning("the encoder's layers run in torch: %s", type(error).__name__)
    return Hidden(layers.depth, layers.width, embed)


def layers_of(model: Any) -> Any:
    """A torch module of token ids and mask that gives [texts, depth * width]; `embed` runs it on texts."""
    import torch

    inner = model[0].model
    prefix, tokenizer, limit = graph.prefix_of(model), model.tokenizer, int(model.max_seq_length or 256)

    class Layers(torch.nn.Module):
        depth, width = int(inner.config.num_hidden_layers), int(inner.config.hidden_size)

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            states = self.inner(
                input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
            ).hidden_states[1:]
            shares = attention_mask.unsqueeze(-1).to(states[0].dtype)
            means = [(state * shares).sum(1) / shares.sum(1) for state in states]
            return torch.cat([mean / mean.norm(dim=-1, keepdim=True) for mean in means], dim=-1)

        def embed(self, texts: list[str]) -> np.ndarray:
            rows = []
            for text in texts:
                read = tokenizer(
                    prefix + text.strip(), truncation=True, max_length=limit, return_tensors="pt"
                )
                read = read.to(inner.device)
                with torch.inference_mode():
                    rows.append(self(read["input_ids"], read["attention_mask"]).cpu().numpy())
            return np.concatenate(rows)

    return Layers().eval()
