"""The assistant of `logit_difference`: the first blocks of the served model with LoRA deltas merged into them.

It runs in the worker beside the model, for matched rows only. What it keeps of a request, the keys and values
of its blocks, follows from the request's tokens alone: whatever they do not confirm is computed anew, so that
a preempted request needs no care, and what they confirm is never computed twice.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from guard.errors import ArtifactError
from guard.interventions.base import Row

_A, _B = ".lora_A.weight", ".lora_B.weight"


def beginning(folder: Path, blocks: int) -> Any:
    """The model in `folder` cut off behind its first `blocks` decoder blocks: embedding, blocks, final norm
    and output head, in float32 and without gradients.

    Raises:
        ArtifactError: it has fewer blocks.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if not 1 <= blocks <= config.num_hidden_layers:
        raise ArtifactError(f"The assistant has {blocks} blocks, the model {config.num_hidden_layers}.")
    # The weights of the other blocks are left over on purpose; a report of them would only alarm.
    reports = logging.getLogger("transformers.modeling_utils")
    reports.disabled = True
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, num_hidden_layers=blocks, dtype=torch.float32, local_files_only=True
        )
    finally:
        reports.disabled = False
    return model.eval().requires_grad_(False)


def merge(model: Any, tensors: Mapping[str, torch.Tensor], scale: float) -> None:
    """Add scale * B @ A to the weight of every linear layer that `tensors` name, in place.

    Raises:
        ArtifactError: a layer is not there, has another shape, or has one half only.
    """
    halves = {name.removesuffix(_A).removesuffix(_B) for name in tensors}
    if set(tensors) != {layer + half for layer in halves for half in (_A, _B)}:
        raise ArtifactError("The assistant's tensors are not pairs of LoRA matrices.")
    for layer in sorted(halves):
        try:
            weight = model.get_submodule(layer).weight
            weight += scale * (tensors[layer + _B].float() @ tensors[layer + _A].float()).to(weight.device)
        except (AttributeError, RuntimeError):
            raise ArtifactError(f"The assistant's {layer} does not fit the model.") from None


@dataclass(frozen=True, slots=True)
class State:
    """What is kept of a request: its `tokens` so far, and where their keys and values are, in row `index` of
    `cache` from column `start`. A request that waits keeps the batch alive in which it last took part."""

    tokens: list[int]
    cache: DynamicCache
    index: int
    start: int

    def kept(self, tokens: list[int]) -> int:
        """How many of `tokens` need not be computed again: all that came before, but never the last."""
        n = min(len(self.tokens), len(tokens) - 1)
        return n if self.tokens[:n] == tokens[:n] else 0

    def columns(self, part: torch.Tensor, n: int, width: int) -> torch.Tensor:
        """The first `n` tokens' share of `part` [rows, heads, columns, size], padded on the left to `width`."""
        return pad(part[self.index, :, self.start : self.start + n], (0, 0, width - n, 0))


class Assistant:
    """The running assistant; each call advances each request by what is new of it."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._vocabulary = model.get_input_embeddings().num_embeddings
        self._states: dict[str, State] = {}

    def __len__(self) -> int:
        """Requests of which something is kept."""
        return len(self._states)

    def forget(self, request: str) -> None:
        """The request has ended."""
        self._states.pop(request, None)

    @torch.inference_mode()
    def logits(self, rows: Sequence[Row]) -> torch.Tensor:
        """[n, vocab], float32: what the assistant says comes next in each of `rows`, of distinct requests.

        Raises:
            ValueError: a row holds what is no token, such as a placeholder for one that is not known yet.
        """
        alike: dict[tuple[int, bool], list[tuple[str, int, list[int]]]] = defaultdict(list)
        for i, row in enumerate(rows):
            tokens = [*row.prompt, *row.output]
            state = self._states.get(row.request)
            kept = state.kept(tokens) if state else 0
            if not all(0 <= token < self._vocabulary for token in tokens[kept:]):
                raise ValueError("the tokens of a request are not all known")
            alike[len(tokens) - kept, kept > 0].append((row.request, i, tokens))
        said: dict[int, torch.Tensor] = {}
        for (new, _), members in alike.items():
            # In an order of their own, so that a batch that is the same up to its order is recognised.
            requests, places, tokens_of = zip(*sorted(members), strict=True)
            said |= dict(zip(places, self._advance(requests, tokens_of, new), strict=True))
        return torch.stack([said[i] for i in range(len(rows))])

    def _advance(self, requests: Sequence[str], tokens: Sequence[list[int]], new: int) -> torch.Tensor:
        """Feed the last `new` tokens of each request. Either none has a past, or all have; pasts of unequal
        length are padded on the left, where nobody looks."""
        past = [len(ids) - new for ids in tokens]
        cache, starts = self._gather(requests, past)
        visible = torch.arange(starts[0] + len(tokens[0])) >= torch.tensor(starts).unsqueeze(1)
        out = self._model(
            input_ids=torch.tensor([ids[-new:] for ids in tokens], device=self._device),
            position_ids=(torch.tensor(past).unsqueeze(1) + torch.arange(new)).to(self._device),
            attention_mask=visible.to(self._device),
            past_key_values=cache,
            logits_to_keep=1,
        )
        for i, (request, ids) in enumerate(zip(requests, tokens, strict=True)):
            self._states[request] = State(ids, cache, i, starts[i])
        return out.logits[:, -1].float()

    def _gather(self, requests: Sequence[str], past: list[int]) -> tuple[DynamicCache, list[int]]:
        """A cache whose rows hold the first `past` tokens of each request, and the columns where they start.
        While the same requests go on together it is the one that they already share, and nothing is copied."""
        longest = max(past)
        if longest == 0:
            return DynamicCache(), past
        states = [self._states[request] for request in requests]
        shared = states[0].cache
        # All of its rows are here, then, and in the order in which they were made: that of the requests' names.
        if len(states) == shared.layers[0].keys.shape[0] and all(
            state.cache is shared and state.start + n == shared.get_seq_length()
            for state, n in zip(states, past, strict=True)
        ):
            return shared, [state.start for state in states]

        def stacked(block: int, part: str) -> torch.Tensor:
            parts = (getattr(state.cache.layers[block], part) for state in states)
            own = zip(states, parts, past, strict=True)
            return torch.stack([state.columns(whole, n, longest) for state, whole, n in own])

        blocks = range(len(shared.layers))
        data = [(stacked(block, "keys"), stacked(block, "values")) for block in blocks]
        return DynamicCache(data), [longest - n for n in past]
