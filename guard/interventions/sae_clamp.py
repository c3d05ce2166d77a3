"""`sae_clamp`: features of a sparse autoencoder that stand for a target are forced below zero.

Dynamic SAE Guardrails (arXiv 2504.08192): at every token where any of the chosen features is active, all of them are
set to the same negative value -c, and what the autoencoder does not reconstruct is kept. So only the chosen
features' rows are needed: h' = h + sum over i of (-c - z_i) w_dec_i. The paper's gate over the whole prompt is here
the verdict on the request. Its c is a number that fits one layer of one model; here it is chosen for each token so
that the push, -c times the sum of the decoder's rows at norm 1, has a length relative to the token's residual norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from guard.errors import ArtifactError
from guard.interventions.base import Tensors
from guard.interventions.gates import Limits
from guard.interventions.layered import Layered, LayeredParams

if TYPE_CHECKING:
    import torch

NORMALISATIONS = ("none", "constant_norm_rescale", "layer_norm")
_EPS = 1e-5  # SAELens' own, in its layer norm


class SaeClampParams(LayeredParams):
    """`artifact`, `tokens` and `onward` as in LayeredParams; tokens that are not hot stay as they are.

    strength: length of the push at a hot token as a multiple of its residual norm; 0 only erases the features.
    watch: run the artifact's gate over the tokens of requests that nothing matched (guard.interventions.gates); where
        it fires, the target is matched. Such requests read no cached blocks, and their answers wait for the gate.
    """

    strength: float = Field(1.0, ge=0.0, le=1e3, allow_inf_nan=False)
    watch: bool = False


@dataclass(frozen=True, slots=True)
class Features:
    """The chosen features of an autoencoder that reads `normalised` residuals of `width` columns.

    encoder [width, m] and bias [m], from which the decoder's bias has been taken where the autoencoder takes it
    from its input; decoder [n, width]; a feature is active above `threshold` [n]. With a `k`, a feature of a TopK
    autoencoder is active where it is among the k largest of all m, and `index` [n] says which columns are the
    chosen ones; else the encoder has only those. `push` [width], of norm 1, is along the sum of the decoder's
    unit rows. `limits` are those of the gate, where the artifact has one.
    """

    normalisation: str
    encoder: torch.Tensor
    bias: torch.Tensor
    threshold: torch.Tensor
    decoder: torch.Tensor
    push: torch.Tensor
    index: torch.Tensor | None = None
    k: int = 0
    limits: Limits | None = None

    def active(self, x: torch.Tensor) -> torch.Tensor:
        """Activations [rows, n] of the features in rows of `x` [rows, width]."""
        seen, _ = normalised(x, self.normalisation)
        # In double precision where it costs little: single precision sums differ with the number of rows.
        before = seen.to(self.encoder.dtype) @ self.encoder + self.bias
        if self.index is None:
            z, least = before, self.threshold
        else:
            z, least = before[:, self.index], before.topk(self.k + 1, dim=1).values[:, -1:]
        return (z.relu() * (z > least)).float()


class SaeClamp(Layered):
    params_type = SaeClampParams
    name = "sae_clamp"
    site = "residual"

    def load(self, tensors: Tensors, facts: Mapping[str, Any]) -> Features:
        """See Features; `facts` name the `normalisation`, and `k` where the whole encoder is there and `index`.

        Raises:
            ArtifactError: the tensors do not fit each other, or the normalisation is not known.
        """
        import torch

        index, k = tensors.get("index"), int(facts.get("k", 0))
        dtype = torch.float64 if index is None else torch.float32
        encoder, bias = tensors["encoder"].to(dtype), tensors["bias"].to(dtype)
        decoder, threshold = tensors["decoder"].float(), tensors["threshold"].to(dtype)
        n, width = decoder.shape
        columns = n if index is None else encoder.shape[1]
        if encoder.shape != (width, columns) or bias.shape != (columns,) or threshold.shape != (n,):
            raise ArtifactError("The artifact's encoder and decoder do not fit each other.")
        if index is not None and not (index.shape == (n,) and 0 < k < columns):
            raise ArtifactError("The artifact's k does not fit its encoder.")
        if facts["normalisation"] not in NORMALISATIONS:
            raise ArtifactError(f"The artifact's normalisation is not one of {', '.join(NORMALISATIONS)}.")
        norms = decoder.norm(dim=1, keepdim=True)
        push = (decoder / norms).sum(dim=0)
        if n == 0 or not bool((norms > 0).all() and push.norm() > 0):
            raise ArtifactError("The artifact has no features that push anywhere.")
        limits = Limits(**facts["gate"]) if "gate" in facts else None
        return Features(
            facts["normalisation"], encoder, bias, threshold, decoder, push / push.norm(), index, k, limits
        )

    def watched(self, params: Mapping[str, Any], facts: Mapping[str, Any]) -> int | None:
        """The artifact's layer, where `watch` is on.

        Raises:
            ArtifactError: the artifact has no gate.
        """
        if not params.get("watch"):
            return None
        if "gate" not in facts:
            raise ArtifactError("The artifact has no gate; train one with it, or leave `watch` out.")
        return int(facts["layers"][0])

    def hot(self, x: torch.Tensor, table: Features) -> torch.Tensor:
        return (table.active(x) > 0).any(dim=1)

    def edit(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        seeds: torch.Tensor,
        layer: int | None,
        params: Mapping[str, Any],
        table: Features,
    ) -> torch.Tensor:
        """Rows with the features clamped where any of them is active; the others as they are."""
        z = table.active(x)
        _, scale = normalised(x, table.normalisation)
        push = params["strength"] * x.norm(dim=1, keepdim=True) * table.push
        clamped = x - (z @ table.decoder) * scale - push
        hot = (z > 0).any(dim=1, keepdim=True)
        return clamped.where(hot, x)


def normalised(x: torch.Tensor, how: str) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Rows of `x` as the autoencoder reads them, and what its output is multiplied with to be residuals again."""
    if how == "constant_norm_rescale":
        scale = x.norm(dim=1, keepdim=True).clamp(min=1e-12) / x.shape[1] ** 0.5
        return x / scale, scale
    if how == "layer_norm":
        centred = x - x.mean(dim=1, keepdim=True)
        scale = centred.std(dim=1, keepdim=True)
        return centred / (scale + _EPS), scale
    return x, 1.0
