"""Gate neurons that fire for the forget set, and their Gaussians, for the intervention `neuron_adjust`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from classifiers.activations import Which, chosen_tokens, collect, layers_of, load_model
from classifiers.base import Params, Task, Trainer
from classifiers.data import Example, digest, encode
from guard import artifacts
from guard.artifacts import Artifact
from guard.errors import BadRequest

if TYPE_CHECKING:
    import torch


class NeuronParams(Params):
    """layers: whose neurons may be chosen; share: of all their neurons, how many are; at: over which tokens of each
    example the Gaussians are fitted, the `last` of its prompt, those of its `answer` or of its `prompt`, or `all`;
    both_sides: also choose neurons whose forget mean lies below the retain mean, which the paper does not."""

    layers: list[Annotated[int, Field(ge=0)]] | Literal["all"] = "all"
    share: float = Field(0.03, gt=0.0, le=1.0)
    at: Which = "all"
    both_sides: bool = False


@dataclass(frozen=True, slots=True)
class Gaussians:
    """Mean and standard deviation of every neuron, [layers, width], float64, over `tokens` tokens."""

    mean: torch.Tensor
    std: torch.Tensor
    tokens: int


class Neurons(Trainer):
    """Effective Skill Unlearning (arXiv 2503.21730): over all layers together, the neurons whose mean over forget
    tokens lies furthest above their mean over retain tokens."""

    params_type = NeuronParams

    def train(self, task: Task, params: NeuronParams) -> Artifact:
        import torch

        if not task.forget or not task.retain:
            raise BadRequest(
                "Neurons are chosen by what forget and retain examples do to them; both are needed."
            )
        model, tokenizer = load_model(task.model)
        layers = layers_of(model, params.layers)
        task.progress.report(0.1, "reading the forget examples")
        forget = fit(model, tokenizer, task.forget, layers, params.at)
        task.progress.report(0.5, "reading the retain examples")
        retain = fit(model, tokenizer, task.retain, layers, params.at)
        score = forget.mean - retain.mean
        if params.both_sides:
            score = score.abs()
        score[(forget.std <= 0) | (retain.std <= 0)] = -torch.inf
        best = score.flatten().topk(max(1, round(params.share * score.numel()))).indices
        best = best[score.flatten()[best] > 0].sort().values
        if not len(best):
            raise BadRequest("No neuron fires more for the forget examples than for the retain examples.")
        tensors = {}
        for i, layer in enumerate(layers):
            index = best[best // score.shape[1] == i] % score.shape[1]
            if len(index):
                tensors[f"{layer}.index"] = index
                for name, fitted in (("forget", forget), ("retain", retain)):
                    tensors[f"{layer}.{name}"] = torch.stack([fitted.mean[i, index], fitted.std[i, index]])
        return artifacts.write(
            task.out,
            "neuron_adjust",
            artifacts.weights_digest(task.model),
            tensors=tensors,
            facts={
                "layers": [layer for layer in layers if f"{layer}.index" in tensors],
                "neurons": len(best),
            },
            measured={"tokens": {"forget": forget.tokens, "retain": retain.tokens}},
            trained={
                "trainer": "neurons",
                "params": params.model_dump(),
                "forget": digest(task.forget),
                "retain": digest(task.retain),
            },
        )


def fit(
    model: Any, tokenizer: Any, examples: Sequence[Example], layers: Sequence[int], at: Which
) -> Gaussians:
    """Gaussians over the chosen tokens of all examples, in two passes so that the deviations are exact.

    Raises:
        BadRequest: fewer than two tokens.
    """
    encoded = [encode(tokenizer, e) for e in examples]

    def total(of: Any) -> tuple[Any, int]:
        found, count = 0.0, 0
        for example, values in collect(model, encoded, "neuron", layers):
            tokens = chosen_tokens(example, values, at).double()
            found, count = found + of(tokens).sum(dim=1), count + tokens.shape[1]
        return found, count

    found, count = total(lambda tokens: tokens)
    if count < 2:
        raise BadRequest(f"The examples do not have enough tokens to fit Gaussians over ({at}).")
    mean = found / count
    squares, _ = total(lambda tokens: (tokens - mean.unsqueeze(1)) ** 2)
    return Gaussians(mean, (squares / (count - 1)).sqrt(), count)
