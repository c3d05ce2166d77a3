"""`embedding_corruption`: the tokens that name a target are drowned in noise before the model reads them.

ECO, "Large Language Model Unlearning via Embedding-Corrupted Prompts" (arXiv 2406.07933): noise on the first n
dimensions of the input embeddings of chosen prompt tokens, nothing else. Two differences from the released
code: the noise is a pure function of (seed, position, dimension) instead of a generator's state, so chunked
prefill, preemption and batch order reproduce it; and its strength is relative to the token's own embedding,
so one value means the same for every model and every number of dimensions.

An artifact of the trainer `corruption` brings the strength, the dimensions and the tokens that were searched for one
target on one model, and where it was asked for, a factor for each dimension.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from guard.artifacts import Digest
from guard.errors import ArtifactError
from guard.interventions.base import Intervention, Params, Seeds, Tensors
from guard.interventions.noise import gaussian
from guard.interventions.positions import planned
from guard.types import Chosen, Edit, Plan, Prompt

if TYPE_CHECKING:
    import torch

Positive = Annotated[int, Field(strict=True, ge=1)]
Tokens = Literal["spans", "entities", "window", "prompt"]


class EmbeddingCorruptionParams(Params):
    """How strongly, where and on which tokens.

    strength: expected L2 norm of the noise as a multiple of the token's embedding norm, whatever `dims` is;
        ECO's sigma is strength * norm / sqrt(dims). Unused by `flip` and `zero`. Recall of memorised TOFU
        answers stops falling at about 5; the default is on that plateau.
    dims: the first n dimensions, or all. With one, tokens whose noise is near zero stay readable.
    noise: `gaussian` adds noise; `flip` negates; `zero` erases.
    tokens: `spans` are the tokens of the matched spans, `entities` those and the tokens of all names beside them
        in the same message (ECO corrupts what a tagger calls a name; here capitals tell), `window` all from the
        first to the last of the spans, `prompt` all tokens but the last. Where nothing matched inside the prompt,
        `prompt` is used.
    artifact: content hash of what the trainer found, which takes the place of all the others.
    """

    strength: float = Field(10.0, gt=0.0, le=1e6, allow_inf_nan=False)
    dims: Positive | Literal["all"] = "all"
    noise: Literal["gaussian", "flip", "zero"] = "gaussian"
    tokens: Tokens = "spans"
    artifact: Digest | None = None

    @model_validator(mode="after")
    def _one_source(self) -> EmbeddingCorruptionParams:
        others = {name: of.default for name, of in type(self).model_fields.items() if name != "artifact"}
        if self.artifact is not None and self.model_dump(exclude={"artifact"}) != others:
            raise ValueError("an artifact brings the other parameters; leave them out")
        return self


class EmbeddingCorruption(Intervention):
    params_type = EmbeddingCorruptionParams

    def plan(self, chosen: Chosen, prompt: Prompt, seeds: Seeds) -> Plan:
        """One edit per matched target; every edit has at least one position unless the prompt is empty. An artifact's
        fact `found` holds its parameters."""
        written = EmbeddingCorruptionParams.model_validate(dict(chosen.params))
        params = written
        if written.artifact is not None:
            params = EmbeddingCorruptionParams.model_validate(chosen.facts["found"])
        if not prompt.token_ids:
            return Plan()
        # ECO's fallback. A prompt of one token has no other token to corrupt than its last.
        whole = range(max(len(prompt.token_ids) - 1, 1))
        edits = tuple(
            Edit(
                site="embedding",
                method="embedding_corruption",
                positions=planned((match,), prompt, params.tokens, whole),
                seed=seeds(match.target_id),
                params=params.model_dump(),
                table=written.artifact,
            )
            for match in chosen.matches
        )
        return Plan(edits=edits)

    def load(self, tensors: Tensors, facts: Mapping[str, Any]) -> torch.Tensor | None:
        """`factors` [width], by which the noise of each dimension is multiplied; None where the artifact has none.

        Raises:
            ArtifactError: they are no factors.
        """
        factors = tensors.get("factors")
        if factors is None:
            return None
        if factors.dim() != 1 or not bool((factors.isfinite() & (factors >= 0)).all()):
            raise ArtifactError("The artifact's factors are not one number for each dimension, 0 or above.")
        return factors.float()

    def edit(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        seeds: torch.Tensor,
        layer: int | None,
        params: Mapping[str, Any],
        table: Any,
    ) -> torch.Tensor:
        """Corrupted rows: see EmbeddingCorruptionParams. `table` are factors [width], or None."""
        width = x.shape[1]
        n = width if params["dims"] == "all" else min(params["dims"], width)
        head = x[:, :n]
        if params["noise"] == "flip":
            head = -head
        elif params["noise"] == "zero":
            head = head * 0
        else:
            scale = x.norm(dim=1, keepdim=True) * (params["strength"] / math.sqrt(n))
            noise = gaussian(seeds, positions, n)
            head = head + scale * (noise if table is None else noise * table[:n])
        out = x.clone()
        out[:, :n] = head
        return out
