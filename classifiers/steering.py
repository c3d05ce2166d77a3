"""Means of the residual stream, for the intervention `steering`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from classifiers.activations import Which, chosen_tokens, collect, layers_of, load_model
from classifiers.base import Params, Task, Trainer
from classifiers.data import Example, digest, encode
from guard import artifacts
from guard.artifacts import Artifact
from guard.errors import BadRequest
from guard.metrics.refusal import is_refusal

if TYPE_CHECKING:
    import torch

Layers = list[Annotated[int, Field(ge=0)]] | Literal["all", "middle"]


class SteeringParams(Params):
    """layers: behind which the residual is steered; pushes behind several add up. at: over which tokens of each
    example the means are taken, the `last` of its prompt, those of its `answer` or of its `prompt`, or `all`."""

    layers: Layers = "middle"
    at: Which = "last"


class Steering(Trainer):
    """Means over the forget examples, over the retain examples whose answer says something, and over those whose
    answer says that the model does not know: LUNAR's "unknown" items (arXiv 2502.07218)."""

    params_type = SteeringParams

    def train(self, task: Task, params: SteeringParams) -> Artifact:
        unknown = [e for e in task.retain if is_refusal(e.answer)]
        known = [e for e in task.retain if not is_refusal(e.answer)]
        if not task.forget or not known:
            raise BadRequest(
                "Steering needs forget examples, and retain examples whose answers say something."
            )
        model, tokenizer = load_model(task.model)
        layers = layers_of(model, params.layers)

        def mean(examples: Sequence[Example]) -> torch.Tensor:
            return _mean(model, tokenizer, examples, layers, params.at)

        task.progress.report(0.1, "reading the examples")
        means = {"forget": mean(task.forget), "retain": mean(known)}
        if unknown:
            means["unknown"] = mean(unknown)
        counts = {"forget": len(task.forget), "retain": len(known), "unknown": len(unknown)}
        size = means["forget"].norm(dim=1)
        return artifacts.write(
            task.out,
            "steering",
            artifacts.weights_digest(task.model),
            tensors={name: value.float() for name, value in means.items()},
            facts={"layers": layers, "at": params.at, "unknown": bool(unknown)},
            measured={
                "examples": counts,
                "distance_by_norm": {
                    name: [round(float(d), 4) for d in (value - means["forget"]).norm(dim=1) / size]
                    for name, value in means.items()
                    if name != "forget"
                },
            },
            trained={
                "trainer": "steering",
                "params": params.model_dump(),
                "forget": digest(task.forget),
                "retain": digest(task.retain),
            },
        )


def _mean(
    model: Any, tokenizer: Any, examples: Sequence[Example], layers: Sequence[int], at: Which
) -> torch.Tensor:
    """Mean residual [layers, width], float64, over the chosen tokens of all examples.

    Raises:
        BadRequest: they have none.
    """
    total, count = 0.0, 0
    for example, values in collect(model, [encode(tokenizer, e) for e in examples], "residual", layers):
        tokens = chosen_tokens(example, values, at).double()
        total, count = total + tokens.sum(dim=1), count + tokens.shape[1]
    if not count:
        raise BadRequest(f"The examples have no tokens to take means over ({at}).")
    return total / count
