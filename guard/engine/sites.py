"""Sites: the places inside the model where edits act, each an opaque custom op around a module's forward.

The op is in the model before it is compiled or warmed up, so it runs the same in eager mode, under
torch.compile and between piecewise CUDA graphs. It changes its argument in place and returns at once when the
step has no edit for its site; in eager mode it is not even called then.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.model_executor.layers.linear import MergedColumnParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.utils.torch_utils import direct_register_custom_op

from guard import interventions
from guard.errors import StartupError
from guard.types import Site as SiteName

log = logging.getLogger("lethe.engine")

OP = "vllm::lethe_site"
_WRAPPED = ".base_layer"  # where vLLM's LoRA layers keep the layer that they stand for


@dataclass
class Share:
    """What one method does at one site in one step, for all requests with the same parameters and table.

    `rows` [k] of the flattened batch stand at absolute `positions` [k]; `seeds` [k] are those of their requests.
    Without a method the rows are erased: nothing of them reaches the model, whatever went wrong before.
    `sound` [k] tells afterwards which rows were edited; None means that nothing was. One that `observes` changes
    nothing: its `hot` [k] tells afterwards which rows show what the method's gate looks for.
    """

    method: str | None
    rows: torch.Tensor
    positions: torch.Tensor
    seeds: torch.Tensor
    params: Mapping[str, Any] = field(default_factory=dict)
    table: Any = None
    observes: bool = False
    sound: torch.Tensor | None = None
    hot: torch.Tensor | None = None
    error: str | None = None

    def apply(self, x: torch.Tensor, residual: torch.Tensor | None, layer: int | None) -> None:
        """Change `x` [batch rows, width] in place so that `x`, or `x + residual`, is edited. Never raises."""
        rows = self.rows.to(x.device, non_blocking=True)
        if self.method is None:
            _erase(x, residual, rows)
            return
        try:
            seen = x[rows].float()
            if residual is not None:
                seen = seen + residual[rows].float()
            method = interventions.load(self.method)
            if self.observes:
                self.hot = method.hot(seen, self.table)
                return
            positions, seeds = (t.to(x.device, non_blocking=True) for t in (self.positions, self.seeds))
            new = method.edit(seen, positions, seeds, layer, self.params, self.table)
            sound = torch.isfinite(new).all(dim=1)
            nothing = torch.zeros_like(new) if residual is None else -residual[rows].float()
            changed = new if residual is None else x[rows].float() + (new - seen)
            x.index_copy_(0, rows, torch.where(sound.unsqueeze(1), changed, nothing).to(x.dtype))
            self.sound = sound
        except Exception as error:
            log.exception("an edit could not be applied; its rows are erased")
            self.error = type(error).__name__
            _erase(x, residual, rows)


def _erase(x: torch.Tensor, residual: torch.Tensor | None, rows: torch.Tensor) -> None:
    if residual is None:
        x.index_fill_(0, rows, 0)
    else:
        x.index_copy_(0, rows, -residual[rows])


@dataclass
class Site:
    """One installed site; `shares` is what the current step does there, empty outside a step.

    `width`: how many of the module's output columns the site shows, None for all.
    """

    name: SiteName
    layer: int | None
    module: str
    width: int | None = None
    shares: list[Share] = field(default_factory=list)


# An op can only be given tensors and numbers, so a site is named in the graph by its place in this list.
_installed: list[Site] = []


def _lethe_site(x: torch.Tensor, residual: torch.Tensor | None, handle: int) -> None:
    site = _installed[handle]
    for share in site.shares:
        share.apply(x if site.width is None else x[:, : site.width], residual, site.layer)


def _lethe_site_fake(x: torch.Tensor, residual: torch.Tensor | None, handle: int) -> None:
    return None


direct_register_custom_op("lethe_site", _lethe_site, mutates_args=["x"], fake_impl=_lethe_site_fake)


def _visit(site: Site, handle: int, x: torch.Tensor, residual: torch.Tensor | None) -> None:
    """What is traced has to hold the op for every step to come; tracing must not ask what there is to do now."""
    if torch.compiler.is_compiling() or site.shares:
        torch.ops.vllm.lethe_site(x, residual, handle)


def install(model: torch.nn.Module, layers: str | list[int]) -> list[Site]:
    """Put sites behind the input embedding, and at the chosen decoder `layers` ("all" or numbers) behind each
    layer and behind the gate projection of its feed-forward network.

    Raises:
        StartupError: the model does not have exactly one input embedding, or has no such layer.
    """
    found = [_embedding(model)]
    blocks = _blocks(model)
    chosen = range(len(blocks)) if layers == "all" else layers
    for i in chosen:
        if not isinstance(i, int) or not 0 <= i < len(blocks):
            raise StartupError(f"The model has layers 0 to {len(blocks) - 1}; sites.layers names {i}.")
        name, block = blocks[i]
        found.append(_behind_layer(Site("residual", i, name), block))
        found.extend(_behind_gate(i, f"{name}.mlp.gate_up_proj", block))
    return found


def _embedding(model: torch.nn.Module) -> Site:
    """The site behind the model's input embedding; the tied output head is not touched."""
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
    if name.endswith(_WRAPPED):  # with adapters: behind what they add, too
        name = name.removesuffix(_WRAPPED)
        module = model.get_submodule(name)
    inner, site = module.forward, Site("embedding", None, name)
    handle = _register(site)

    def forward(input_: torch.Tensor) -> torch.Tensor:
        out = inner(input_)
        _visit(site, handle, out, None)
        return out

    module.forward = forward
    return site


def _blocks(model: torch.nn.Module) -> list[tuple[str, torch.nn.Module]]:
    """The decoder layers in order: the longest list of modules that the model holds."""
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    name, longest = max(lists, key=lambda item: len(item[1]), default=("", torch.nn.ModuleList()))
    return [(f"{name}.{i}", block) for i, block in enumerate(longest)]


def _behind_layer(site: Site, block: torch.nn.Module) -> Site:
    """The residual stream behind a decoder layer, which vLLM's models return as two addends or as one tensor."""
    inner, handle = block.forward, _register(site)

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = inner(*args, **kwargs)
        _visit(site, handle, *(out[:2] if isinstance(out, tuple) else (out, None)))
        return out

    block.forward = forward
    return site


def _behind_gate(layer: int, name: str, block: torch.nn.Module) -> list[Site]:
    """The gate's pre-activations, the first half of the merged projection; none in models built otherwise."""
    merged = getattr(getattr(block, "mlp", None), "gate_up_proj", None)
    plain = getattr(merged, _WRAPPED[1:], merged)
    if merged is None or not isinstance(plain, MergedColumnParallelLinear) or plain.tp_size != 1:
        return []
    inner, site = merged.forward, Site("neuron", layer, name, width=plain.output_sizes[0])
    handle = _register(site)

    def forward(input_: torch.Tensor) -> Any:
        out = inner(input_)
        _visit(site, handle, out[0] if isinstance(out, tuple) else out, None)
        return out

    merged.forward = forward
    return [site]


def _register(site: Site) -> int:
    _installed.append(site)
    return len(_installed) - 1
