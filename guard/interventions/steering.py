"""`steering`: the residual stream of a matched request is moved along a difference of means.

The means are those of the residual behind a layer, over prompts about what must go (forget), about what must
stay (retain), and about what the model rightly does not know (unknown). Three modes:

additive: h + strength * |h| * u, with u the direction from the forget mean to the retain mean ("Steering Llama 2
via Contrastive Activation Addition", arXiv 2312.06681), the norm of the token's residual being the unit;
projection: h - strength * (h . u) u: with strength 1 the component along u is gone ("Refusal in Language Models
Is Mediated by a Single Direction", arXiv 2406.11717);
redirection: h + strength * (unknown mean - forget mean), which carries what is forgotten into the region where
the model says that it does not know (LUNAR, arXiv 2502.07218). LUNAR trains a weight matrix to do it; here the
activations are moved themselves, for matched requests only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from guard.errors import ArtifactError
from guard.interventions.base import Tensors
from guard.interventions.layered import Layered, LayeredParams, Tokens

if TYPE_CHECKING:
    import torch


class SteeringParams(LayeredParams):
    """How the residual is moved; `artifact`, `tokens` and `onward` as in LayeredParams, but for the default: what
    a model is about to say is decided at the last token, and pushing that one disturbs least.

    mode: see this module. `redirection` needs an artifact that was trained with unknown items.
    strength: additive: length of the push as a multiple of the token's residual norm; projection: share of the
        component that is removed; redirection: multiple of the distance between the means.
    """

    mode: Literal["additive", "projection", "redirection"] = "redirection"
    strength: float = Field(1.0, gt=0.0, le=1e3, allow_inf_nan=False)
    tokens: Tokens = "last"


@dataclass(frozen=True, slots=True)
class Directions:
    """By layer [width]: `away` of norm 1, from forget to retain; `unknown`, from the forget to the unknown mean."""

    away: Mapping[int, torch.Tensor]
    unknown: Mapping[int, torch.Tensor]


class Steering(Layered):
    params_type = SteeringParams
    name = "steering"
    site = "residual"

    def able(self, params: LayeredParams, facts: Mapping[str, Any]) -> bool:
        return getattr(params, "mode", None) != "redirection" or bool(facts.get("unknown"))

    def load(self, tensors: Tensors, facts: Mapping[str, Any]) -> Directions:
        """From `forget`, `retain` and maybe `unknown`, the means [layers, width] in the order of `layers`.

        Raises:
            ArtifactError: tensors are missing or do not fit each other, or the means do not differ.
        """
        layers, forget = facts["layers"], tensors["forget"].float()
        if any(mean.shape != (len(layers), forget.shape[-1]) for mean in tensors.values()):
            raise ArtifactError("The artifact's means do not have one row for each of its layers.")
        away = tensors["retain"].float() - forget
        norms = away.norm(dim=1, keepdim=True)
        if not bool((norms > 0).all()):
            raise ArtifactError("The artifact's means do not differ.")
        unknown = tensors["unknown"].float() - forget if "unknown" in tensors else ()
        return Directions(
            dict(zip(layers, away / norms, strict=True)), dict(zip(layers, unknown, strict=False))
        )

    def edit(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        seeds: torch.Tensor,
        layer: int | None,
        params: Mapping[str, Any],
        table: Directions,
    ) -> torch.Tensor:
        """Moved rows: see this module."""
        strength = params["strength"]
        if layer is None:
            raise ArtifactError("Steering acts behind a layer.")
        if params["mode"] == "redirection":
            return x + strength * table.unknown[layer]
        away = table.away[layer]
        if params["mode"] == "projection":
            return x - strength * (x * away).sum(dim=1, keepdim=True) * away
        return x + strength * x.norm(dim=1, keepdim=True) * away
