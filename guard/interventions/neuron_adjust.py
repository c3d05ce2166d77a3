"""`neuron_adjust`: neurons that fire for what must go are given the values they have for what must stay.

Effective Skill Unlearning (arXiv 2503.21730), the neuron adjustment as the paper has it. For each chosen gate
neuron (its pre-activation v) two Gaussians are known, over forget and over retain tokens. Where v is at least as
likely under the forget one, then with probability 1 - p_r / (p_r + p_f) it is mapped onto the retain Gaussian and
reflected about its mean: 2 mu_r - [(v - mu_f) / s_f * s_r + mu_r]. The released code stores variances as
deviations, divides by a mean and draws one number for a whole batch; none of this is in the paper or here. The
draw is a hash of (seed, position, layer, neuron), so that a request has the same one however it is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from guard.errors import ArtifactError
from guard.interventions.base import Tensors
from guard.interventions.layered import Layered, LayeredParams
from guard.interventions.noise import uniform

if TYPE_CHECKING:
    import torch

_LAYER = 1 << 32  # the columns of the noise of one layer


class NeuronAdjustParams(LayeredParams):
    """`artifact`, `tokens` and `onward` as in LayeredParams.

    strength: how far beyond the retain mean a mapped value is reflected, in retain deviations per forget deviation;
        the paper's is 1, and 0 puts the neuron on its retain mean.
    """

    strength: float = Field(1.0, ge=0.0, le=1e3, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Neurons:
    """The chosen neurons of one layer, all [k]: `index` int64, means and deviations float64."""

    index: torch.Tensor
    forget_mean: torch.Tensor
    forget_std: torch.Tensor
    retain_mean: torch.Tensor
    retain_std: torch.Tensor


class NeuronAdjust(Layered):
    params_type = NeuronAdjustParams
    name = "neuron_adjust"
    site = "neuron"

    def load(self, tensors: Tensors, facts: Mapping[str, Any]) -> Mapping[int, Neurons]:
        """By layer, from `{layer}.index` [k] int64 and `{layer}.forget`, `{layer}.retain` [2, k]: mean, deviation.

        Raises:
            ArtifactError: they do not fit each other, or a deviation is not positive.
        """
        found = {}
        for layer in facts["layers"]:
            index = tensors[f"{layer}.index"].long()
            forget, retain = (tensors[f"{layer}.{name}"].double() for name in ("forget", "retain"))
            if forget.shape != (2, len(index)) or retain.shape != forget.shape:
                raise ArtifactError("The artifact's Gaussians do not fit its neurons.")
            if not bool((forget[1] > 0).all() and (retain[1] > 0).all()):
                raise ArtifactError("The artifact has a neuron that never varies.")
            found[layer] = Neurons(index, *forget, *retain)
        return found

    def edit(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        seeds: torch.Tensor,
        layer: int | None,
        params: Mapping[str, Any],
        table: Mapping[int, Neurons],
    ) -> torch.Tensor:
        """Adjusted rows of gate pre-activations: see this module."""
        import torch

        if layer is None:
            raise ArtifactError("Neurons are those of a layer.")
        neurons = table[layer]
        v = x[:, neurons.index].double()
        from_forget = (v - neurons.forget_mean) / neurons.forget_std
        from_retain = (v - neurons.retain_mean) / neurons.retain_std
        # log(p_f / p_r); the densities themselves underflow.
        odds = (from_retain**2 - from_forget**2) / 2 + torch.log(neurons.retain_std / neurons.forget_std)
        draw = uniform(seeds, positions, layer * _LAYER + neurons.index + 1)
        adjusted = neurons.retain_mean - params["strength"] * from_forget * neurons.retain_std
        changed = (odds >= 0) & (draw < torch.sigmoid(odds))
        out = x.clone()
        out[:, neurons.index] = torch.where(changed, adjusted, v).float()
        return out
