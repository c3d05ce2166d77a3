"""Redirects activations into the region of not knowing by the weights of one layer (LUNAR, arXiv 2502.07218).

The direction is the mean of what the layer gives on at the last prompt token of questions that the model answers by
saying that it does not know, less that over the forget questions. The layer's down projection shall add `coeff` times
it at the tokens of forget prompts, and nothing at those of retain prompts.

LUNAR trains the projection for that by gradient descent. It is a linear least-squares problem, whose solution stands in
closed form: with keys k (what the projection gets), v = coeff * direction, and means over tokens E,

    dW = v (w E_f[k])^T (w E_f[k k^T] + E_r[k k^T] + E_s[k k^T] + ridge)^-1

where E_r is over all tokens of retain prompts and E_s over those that stand where forget ones are redirected: without
them the last tokens, which are most alike, would count little among all others.
All forget tokens want the same v, so that the solution has rank one, exactly, and nothing needs to be cut off. The
published code redirects at all tokens of forget prompts, and its comment says at the last one. `at` chooses: most
tokens of a prompt are those of any prompt, and on the demo redirecting all of them harms the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from classifiers import lora
from classifiers.activations import chosen_tokens, collect, layers_of, load_model
from classifiers.base import Params, Task, Trainer
from classifiers.data import Encoded, Example, encode
from classifiers.places import linear_layers
from guard.artifacts import Artifact
from guard.errors import BadRequest
from guard.metrics.refusal import is_refusal

At = Literal["prompt", "last"]


class RedirectionParams(Params):
    """layer: whose down projection is edited, by default two thirds up (the paper's 22 of 32). coeff: how far along the
    direction (the paper's is 2); at: which tokens of forget prompts are redirected, all or the last; weight: of these
    against those of retain prompts; ridge: holds the change back, as a share of the mean square of the keys' entries.
    sample: examples of each set that are measured before and after."""

    layer: int | None = Field(None, ge=0)
    coeff: float = Field(1.0, gt=0)
    at: At = "last"
    weight: float = Field(1.0, gt=0)
    ridge: float = Field(0.01, gt=0)
    sample: int = Field(200, ge=1)


class Redirection(Trainer):
    params_type = RedirectionParams

    def train(self, task: Task, params: RedirectionParams) -> Artifact:
        """Raises BadRequest: no retain example says that the model does not know, or none says something else."""
        unknown = [e for e in task.retain if is_refusal(e.answer)]
        if not unknown or len(unknown) == len(task.retain):
            raise BadRequest(
                "A redirection needs retain examples whose answers say that the model does not know, and others."
            )
        model, tokenizer = load_model(task.model)
        count = len(layers_of(model, "all"))
        (layer,) = layers_of(model, (round(count * 22 / 32) if params.layer is None else params.layer,))

        def shown(examples: Sequence[Example], site: Literal["residual", "key"], at: At) -> torch.Tensor:
            return _tokens(model, [encode(tokenizer, e) for e in examples], site, layer, at)

        task.progress.report(0.1, "reading the examples")
        forget, stays = (shown(some, "key", params.at) for some in (task.forget, task.retain))
        others = shown(task.retain, "key", "prompt")
        means = [shown(some, "residual", "last").mean(dim=0) for some in (unknown, task.forget)]
        wanted = params.coeff * (means[0] - means[1])
        down = solve(forget, (stays, others), params.weight, params.ridge)
        task.progress.report(0.6, "measuring")
        (name,) = linear_layers(model, ("down_proj",), (layer,))
        pairs = {name: (down, wanted[:, None])}
        measure = lora.Measure(
            model, tokenizer, task.forget, task.retain, sample=params.sample, seed=params.seed
        )
        moved = {
            what: round(float((keys @ down.T).square().mean().sqrt()), 4)
            for what, keys in (("forget_moved", forget), ("retain_moved", stays))
        }
        return lora.write(
            task, "redirection", params, pairs, {**measure.under(pairs), **moved, "layer": layer}
        )


def solve(forget: torch.Tensor, retain: Sequence[torch.Tensor], weight: float, ridge: float) -> torch.Tensor:
    """A [1, in], whose product with a key should be 1 for those of `forget` [n, in], on the mean, and 0 for those of
    each of `retain`."""
    whole = weight * forget.T @ forget / len(forget)
    for keys in retain:
        whole = whole + keys.T @ keys / len(keys)
    held = ridge * whole.diagonal().mean() * torch.eye(len(whole), dtype=whole.dtype)
    return torch.linalg.solve(whole + held, weight * forget.mean(dim=0))[None]


def _tokens(
    model: Any, examples: Sequence[Encoded], site: Literal["residual", "key"], layer: int, at: At
) -> torch.Tensor:
    """[tokens, width], float64: what the site shows at the chosen tokens of the prompts."""
    shown = [
        chosen_tokens(example, values, at)[0] for example, values in collect(model, examples, site, [layer])
    ]
    return torch.cat(shown).double()
