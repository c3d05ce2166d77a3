"""Adapters in the worker: on their own requests' rows only, and with each request's own scale.

vLLM's kernels for the CPU give rows without an adapter what the last slot holds (an index of -1 is read as "the
last"), and know one scale for all. The wrapper here takes their place: it computes nothing but the rows that
have an adapter. On other devices vLLM's own kernels are used and adapters of ours are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms.cpu import CpuPlatform

from guard.engine.sites import Share

Groups = list[tuple[int, torch.Tensor]]
"""(slot, rows that use its adapter)."""


class RowPunica(PunicaWrapperCPU):
    """`y[row] += scale[row] * B[slot] A[slot] x[row]` for rows with an adapter; no other row is touched."""

    def __init__(
        self, max_num_batched_tokens: int, max_batches: int, device: torch.device | str, **kwargs: Any
    ) -> None:
        super().__init__(max_num_batched_tokens, max_batches, device, **kwargs)
        # By token for the layers, and by request for the output head, which runs when the forward is over.
        self.token_scales = torch.ones(max_num_batched_tokens, device=device)
        self.request_scales = torch.ones(max_num_batched_tokens, device=device)
        self.sampling = True
        self._tokens: Groups = []
        self._requests: Groups = []

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        self._tokens = _groups(self.token_lora_indices)
        self._requests = _groups(self.sampler_indices)

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        **kwargs: Any,
    ) -> None:
        """Linear layers; `output_slices` are the widths of the projections that are merged in one layer."""
        x = x.view(-1, x.shape[-1])
        low = [
            [x[rows].float() @ a[slot, 0].float().T for a in lora_a_stacked] for slot, rows in self._tokens
        ]
        self._expand(y, low, lora_b_stacked, output_slices, self._tokens, self.token_scales * scale)

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, **kwargs: Any
    ) -> None:
        """`x` holds the rows of A already."""
        low = [[x[rows].float()] for _, rows in self._tokens]
        self._expand(y, low, (lora_b_stacked,), (y.shape[-1],), self._tokens, self.token_scales)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **kwargs: Any,
    ) -> None:
        """The output head, one row for each request. The likelihoods of a prompt are taken without it: there
        the rows are the tokens of one request, and nothing says of which."""
        if not self.sampling:
            return
        low = [[x[rows].float() @ lora_a_stacked[slot, 0].float().T] for slot, rows in self._requests]
        width = (lora_b_stacked.shape[-2],)
        self._expand(y, low, (lora_b_stacked,), width, self._requests, self.request_scales * scale)

    def _expand(
        self,
        y: torch.Tensor,
        low: Sequence[Sequence[torch.Tensor]],
        lora_b_stacked: tuple[torch.Tensor, ...],
        widths: tuple[int, ...],
        groups: Groups,
        scales: torch.Tensor,
    ) -> None:
        y = y.view(-1, y.shape[-1])
        for (slot, rows), parts in zip(groups, low, strict=True):
            by, start = scales[rows].unsqueeze(1), 0
            for part, b, width in zip(parts, lora_b_stacked, widths, strict=True):
                change = (part * by) @ b[slot, 0].float().T
                y[:, start : start + width].index_add_(0, rows, change.to(y.dtype))
                start += width


def _groups(indices: torch.Tensor) -> Groups:
    return [
        (slot, torch.nonzero(indices == slot).flatten()) for slot in indices.unique().tolist() if slot >= 0
    ]


def install() -> None:
    """Make vLLM build our wrapper on CPU; to be called before the model is loaded."""
    CpuPlatform.get_punica_wrapper = classmethod(lambda _: f"{__name__}.{RowPunica.__name__}")


class Scales:
    """The adapter site of one worker: sets the scales of a step's requests, and tells whose adapter is there."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._manager = runner.lora_manager._adapter_manager
        (self._punica,) = self._manager.punica_wrapper_mapping.values()
        self._set = False

    def clear(self) -> None:
        """A step begins: everybody's scale is 1."""
        if self._set:
            self._punica.token_scales.fill_(1.0)
            self._punica.request_scales.fill_(1.0)
            self._set = False

    def apply(self, share: Share) -> None:
        """Scale the adapters of the requests at places `share.rows` of the batch. Those that do not run with
        the adapter of the share are not sound."""
        batch, adapter = self._runner.input_batch, share.table
        running = torch.from_numpy(batch.request_lora_mapping[share.rows.numpy()])
        share.sound = (running == adapter) & (adapter in self._manager.lora_index_to_id)
        requests = self._punica.request_scales
        requests[share.rows] = float(share.params["scale"])
        starts = torch.from_numpy(self._runner.query_start_loc.np[: batch.num_reqs + 1]).long()
        tokens = requests[: batch.num_reqs].repeat_interleave(starts.diff())
        self._punica.token_scales[: len(tokens)] = tokens
        self._set = True

    @contextmanager
    def scoring_prompts(self) -> Iterator[None]:
        """While the output head runs on tokens of prompts instead of one row for each request."""
        self._punica.sampling = False
        try:
            yield
        finally:
            self._punica.sampling = True
