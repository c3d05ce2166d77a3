"""Sites: the places inside the model where edits act, each an opaque custom op around a module's forward.

The op is in the model before it is compiled or warmed up, so it runs the same in eager mode and under
torch.compile. It changes its argument in place and returns at once when the step has no edit for its site.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import torch
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.utils.torch_utils import direct_register_custom_op

from guard import interventions
from guard.errors import StartupError
from guard.types import Edit
from guard.types import Site as SiteName

log = logging.getLogger("lethe.engine")


@dataclass
class Share:
    """What one edit does in one step: `rows` [k] of the flattened batch, at absolute `positions` [k].

    Without an edit the rows are erased: nothing of them reaches the model, whatever went wrong before.
    """

    edit: Edit | None
    rows: torch.Tensor
    positions: torch.Tensor
    done: bool = False
    error: str | None = None

    def apply(self, x: torch.Tensor) -> None:
        """Change `x` [batch rows, width] in place. Never raises: a failure erases the rows and is kept."""
        rows = self.rows.to(x.device)
        try:
            if self.edit is None:
                x.index_fill_(0, rows, 0)
                return
            method = interventions.load(self.edit.method)
            new = method.edit(x[rows], self.positions.to(x.device), self.edit.seed, dict(self.edit.params))
            if not bool(torch.isfinite(new).all()):
                raise ValueError("the edit gave values that are not finite")
            x.index_copy_(0, rows, new)
            self.done = True
        except Exception as error:
            log.exception("an edit could not be applied; its rows are erased")
            self.error = type(error).__name__
            x.index_fill_(0, rows, 0)


@dataclass
class Site:
    """One installed site; `shares` is what the current step does there, empty outside a step."""

    name: SiteName
    layer: int | None
    module: str
    shares: list[Share] = field(default_factory=list)


# An op can only be given tensors and numbers, so a site is named in the graph by its place in this list.
_installed: list[Site] = []


def _lethe_site(x: torch.Tensor, handle: int) -> None:
    for share in _installed[handle].shares:
        share.apply(x)


def _lethe_site_fake(x: torch.Tensor, handle: int) -> None:
    return None


direct_register_custom_op("lethe_site", _lethe_site, mutates_args=["x"], fake_impl=_lethe_site_fake)


def install_embedding(model: torch.nn.Module) -> Site:
    """Put the embedding site behind the model's input embedding; the tied output head is not touched.

    Raises:
        StartupError: the model does not have exactly one input embedding.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    ]
    if len(found) != 1:
        raise StartupError(
            f"The model has {len(found)} input embeddings; the guard can edit models that have one."
        )
    name, module = found[0]
    site = Site("embedding", None, name)
    _wrap(module, _register(site))
    return site


def _register(site: Site) -> int:
    _installed.append(site)
    return len(_installed) - 1


def _wrap(module: torch.nn.Module, handle: int) -> None:
    inner = module.forward

    def forward(input_: torch.Tensor) -> torch.Tensor:
        out = inner(input_)
        torch.ops.vllm.lethe_site(out, handle)
        return out

    module.forward = forward
