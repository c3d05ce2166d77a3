"""`logit_difference`: what a small assistant knows of a target is taken out of the model's logits.

ULD, "Reversing the Forget-Retain Objectives" (arXiv 2406.08607): the assistant remembers the target and knows
nothing else, so base - alpha * assistant forgets the target and leaves the rest. Who's Harry Potter (arXiv
2310.02238) takes away only what an assistant that was trained further on the target says more loudly than
the model: base - alpha * ReLU(assistant - base); here at decode time, there to make labels for training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from guard.artifacts import Digest
from guard.interventions.base import Intervention, Params, Row, Seeds, Tensors
from guard.types import Chosen, Edit, Plan, Prompt

if TYPE_CHECKING:
    import torch

    from guard.interventions.assistant import Assistant

FILTERED = -1000.0  # ULD's own; finite, so that a mask of the sampler cannot leave a row without any token


class LogitDifferenceParams(Params):
    """Which assistant, and how it is taken away.

    artifact: content hash of the trained assistant; without one the method cannot act.
    alpha: weight of the assistant. ULD's is 0.75, for assistants that are trained without smoothing.
    filter: with the form `uld`, tokens that are both less likely than this share of the most likely one and
        ranked behind this share of the vocabulary get no chance, so that what the subtraction raises is never
        what the model would not have said; 0 turns the filter off.
    form: `uld` subtracts, `whp` subtracts only where the assistant is louder.
    """

    artifact: Digest | None = None
    alpha: float = Field(1.5, gt=0.0, le=100.0, allow_inf_nan=False)
    filter: float = Field(0.01, ge=0.0, lt=1.0)
    form: Literal["uld", "whp"] = "uld"


class LogitDifference(Intervention):
    params_type = LogitDifferenceParams
    artifact: ClassVar[bool] = True
    resident: ClassVar[int | None] = 32

    def plan(self, chosen: Chosen, prompt: Prompt, seeds: Seeds) -> Plan:
        """One edit from the first token of the answer on, whatever the number of matched targets: they share
        the assistant, which must not be taken away twice."""
        params = LogitDifferenceParams.model_validate(dict(chosen.params))
        if params.artifact is None or not prompt.token_ids or not chosen.matches:
            return Plan()
        edit = Edit(
            site="logits",
            method="logit_difference",
            positions=(len(prompt.token_ids) - 1,),
            seed=seeds(chosen.matches[0].target_id),
            params=params.model_dump(),
            onward=True,
            table=params.artifact,
        )
        return Plan(edits=(edit,))

    def load(self, tensors: Tensors, facts: Mapping[str, Any]) -> Assistant:
        from guard.interventions.assistant import Assistant, beginning, merge

        model = beginning(facts["model"], facts["blocks"])
        merge(model, tensors, facts["alpha"] / facts["rank"])
        return Assistant(model.to(next(iter(tensors.values())).device))

    def rescore(
        self, logits: torch.Tensor, rows: Sequence[Row], params: Mapping[str, Any], table: Assistant
    ) -> torch.Tensor:
        """The model's logits without the assistant's: see `difference`."""
        return difference(logits, table.logits(rows), params)


def difference(base: torch.Tensor, assistant: torch.Tensor, params: Mapping[str, Any]) -> torch.Tensor:
    """`base` without `assistant`, both [n, vocab] and float32; what is -inf in `base` stays so."""
    import torch

    alpha, rate = params["alpha"], params["filter"]
    if params["form"] == "whp":
        new = base - alpha * torch.relu(assistant - base)
    elif rate == 0:
        # Without a filter ULD subtracts log-probabilities, with one raw logits.
        new = base.log_softmax(dim=-1) - alpha * assistant.log_softmax(dim=-1)
    else:
        scores = base.log_softmax(dim=-1)
        ranked = scores.topk(max(1, math.floor(rate * scores.shape[-1])), dim=-1).values
        threshold = torch.minimum(ranked[:, -1:], ranked[:, :1] + math.log(rate))
        new = torch.where(scores < threshold, FILTERED, base - alpha * assistant)
    return torch.where(torch.isneginf(base), base, new)
