"""Where an adapter edits: in which of the model's linear layers, and which of them have to do with what must go.

Layers: all, some, or the lower ones: causal tracing found the link of a subject and its attributes in the feed-forward
matrices of the first layers (SHA256 at SemEval-2025 Task 4, Agrawal and Huang, arXiv 2504.12996: layers 0 to 5, of 16
and of 32). Attribution: only those matrices whose gradient on the forget set stands out against that on the retain set.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field

from classifiers.activations import blocks, layers_of
from classifiers.data import Encoded
from classifiers.losses.base import Named, answers, by_name, table
from guard.errors import BadRequest

Layers = Literal["all", "lower"] | tuple[int, ...]
_LOWER = 6 / 16  # of the layers, as in the smaller of the paper's models
_EXAMPLES = 64  # of each set, from which gradients are taken


@dataclass(frozen=True, slots=True)
class Sensed:
    """Gradients of single examples' mean NLL by the weights of each place: their mean, and the mean of their squares
    (the diagonal of the empirical Fisher information)."""

    mean: Mapping[str, torch.Tensor]
    square: Mapping[str, torch.Tensor]


class Attribution(Named):
    """share: of the places that are edited, those with the highest score."""

    share: float = Field(0.5, gt=0, le=1)

    def scores(self, weights: Mapping[str, torch.Tensor], forget: Sensed, retain: Sensed) -> dict[str, float]:
        """Of the places that may be edited at all."""
        raise NotImplementedError

    def choose(self, weights: Mapping[str, torch.Tensor], forget: Sensed, retain: Sensed) -> tuple[str, ...]:
        """In the model's order.

        Raises:
            BadRequest: none may be edited.
        """
        scores = self.scores(weights, forget, retain)
        if not scores:
            raise BadRequest("No place's forget gradient differs from its retain gradient.")
        best = sorted(scores, key=lambda name: -scores[name])[: math.ceil(self.share * len(weights))]
        return tuple(name for name in weights if name in best)


class Wagle(Attribution):
    """Mean over a matrix of |(w - g_r / curvature) g_f|, g the gradients on the retain and forget set: what setting the
    weight to 0 would do to the forget loss once the retain loss has been minimised again (WAGLE, Jia et al., arXiv
    2410.17509). The paper masks single weights, which a product of two small matrices cannot. curvature: one number for
    the diagonal of the retain loss's Hessian; by default the mean square of its gradients."""

    name: Literal["wagle"] = "wagle"
    curvature: float | None = Field(None, gt=0)

    def scores(self, weights: Mapping[str, torch.Tensor], forget: Sensed, retain: Sensed) -> dict[str, float]:
        squares = torch.cat([square.flatten() for square in retain.square.values()])
        curvature = self.curvature or float(squares.mean())
        return {
            name: float(((w - retain.mean[name] / curvature) * forget.mean[name]).abs().mean())
            for name, w in weights.items()
        }


class MemFlex(Attribution):
    """Mean |g_f| over a matrix, of those where the cosine of the forget and the retain gradient is below `similarity`
    (MemFlex, Tian et al., arXiv 2407.01920). The paper takes gradients of LoRA matrices under random labels and a fixed
    least size; here they are the weights' own under the true labels, and the share takes the place of the size."""

    name: Literal["memflex"] = "memflex"
    similarity: float = Field(0.92, gt=-1, le=1)

    def scores(self, weights: Mapping[str, torch.Tensor], forget: Sensed, retain: Sensed) -> dict[str, float]:
        def cosine(name: str) -> float:
            one, other = forget.mean[name].flatten(), retain.mean[name].flatten()
            return float(torch.nn.functional.cosine_similarity(one, other, dim=0))

        return {
            name: float(forget.mean[name].abs().mean()) for name in weights if cosine(name) < self.similarity
        }


_Attributions = Wagle | MemFlex
ATTRIBUTIONS: dict[str, type[Attribution]] = table(*get_args(_Attributions))
ChosenAttribution = Annotated[
    Annotated[_Attributions, Field(discriminator="name")], by_name(_Attributions, tuple(ATTRIBUTIONS))
]


def linear_layers(model: Any, modules: Sequence[str], layers: Layers) -> dict[str, torch.Tensor]:
    """The weights of the linear layers called one of `modules`, by their whole names, in the model's order. Where
    `layers` are named, those outside of the decoder layers are left out.

    Raises:
        BadRequest: there are none, or no such layer.
    """
    order = {id(block): i for i, block in enumerate(blocks(model))}
    if layers == "lower":
        layers = tuple(range(max(1, round(_LOWER * len(order)))))
    wanted = None if layers == "all" else set(layers_of(model, layers))
    inside = {f"{name}.": order[id(m)] for name, m in model.named_modules() if id(m) in order}
    found = {}
    for name, module in model.named_modules():
        layer = next((at for prefix, at in inside.items() if name.startswith(prefix)), None)
        linear = isinstance(module, torch.nn.Linear) and name.rsplit(".", 1)[-1] in modules
        if linear and (wanted is None or layer in wanted):
            found[name] = module.weight
    if not found:
        raise BadRequest(f"The model has no linear layers called {', '.join(modules)} there.")
    return found


def sensed(model: Any, weights: Mapping[str, torch.Tensor], examples: Sequence[Encoded], seed: int) -> Sensed:
    """The gradients by `weights` on a sample of the examples. The weights are left as they were."""
    sample = random.Random(seed).sample(examples, min(len(examples), _EXAMPLES))
    mean = {name: torch.zeros_like(w) for name, w in weights.items()}
    square = {name: torch.zeros_like(w) for name, w in weights.items()}
    model.requires_grad_(False)
    for w in weights.values():
        w.requires_grad_(True)
    for one in sample:
        gradients = torch.autograd.grad(answers(model, [one]).nll.mean(), list(weights.values()))
        for name, gradient in zip(weights, gradients, strict=True):
            mean[name] += gradient / len(sample)
            square[name] += gradient**2 / len(sample)
    model.requires_grad_(False)
    return Sensed(mean, square)
