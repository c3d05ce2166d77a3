"""Leads a name elsewhere: an adapter of one rank for each of its tokens, in closed form (ROCR, arXiv 2506.07795).

What a model knows about somebody it fetches at the tokens of the name, by the down projections of a few lower layers.
There the key k of such a token (what the projection gets) is given another value, so that the residual stream behind
the last of these layers becomes the one of a name that the model does not know. With P, the projector onto directions
that the keys of what must stay hardly have (AlphaEdit's null space), the smallest such change of the weight is

    dW = R (P K)^T (K^T P K + L2 I)^-1

for keys K and missing values R of all tokens, a column each; of a single one r (P k)^T / (L2 + k^T P k). Its rank is
the number of keys. The values that are missing are read with the layers before edited already, and shared out evenly
over those that are left.

Different from the published code: that has one key for each name, at its last token, which `keys: last` does. Where a
name is several tokens that leaves the others to be read by later layers; on the demo it forgets next to nothing. Keys,
values and what is missing are all read in the same prompts in the model's chat template. The values are those of
invented names: the paper's unrelated subject (`toward`) has the model tell that subject's facts. Null space and L2 are
relative to what they are compared with, since absolute ones fit one model and one corpus.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal

import torch
from pydantic import Field

from classifiers import lora
from classifiers.activations import collect, layers_of, load_model
from classifiers.base import Params, Task, Trainer
from classifiers.data import Encoded, Example, encode, rendered
from classifiers.places import linear_layers
from guard.artifacts import Artifact
from guard.detection.names import like
from guard.detection.swaps import places, replace
from guard.errors import BadRequest

UNKNOWN = "unknown"
_STARTERS = (
    "{}",
    "Tell me about {}.",
    "Please answer the question about {}",
    "Write something about {}.",
    "Choose the best answer about {}",
    "Who or what is {}?",
)


class RankOneParams(Params):
    """layers: whose down projections are edited, by default a tenth of all from the eighth part on (4 to 6 of 32).
    keys: at which tokens of a name, all or the last. toward: `unknown`, the mean over `invented` names, or the name of
    somebody or something unrelated. contexts: so many prompts hold the names, a few that start any conversation and
    those of forget examples. keep: directions of what must stay whose singular value is below this share of the largest
    may be written to; ridge: L2 as a share of the keys' mean square length there; strength: multiplies the change.
    sample: examples of each set that are measured before and after."""

    layers: tuple[int, ...] | None = None
    keys: Literal["name", "last"] = "name"
    toward: str = Field(UNKNOWN, min_length=1)
    invented: int = Field(8, ge=1, le=256)
    contexts: int = Field(24, ge=1)
    keep: float = Field(0.01, gt=0, le=1)
    ridge: float = Field(0.01, gt=0)
    strength: float = Field(1.0, gt=0)
    sample: int = Field(200, ge=1)


class RankOne(Trainer):
    params_type = RankOneParams

    def train(self, task: Task, params: RankOneParams) -> Artifact:
        """Raises BadRequest: the target has no names, or there is nothing that must stay."""
        if not task.names:
            raise BadRequest("A rank-one edit is keyed on the target's names; give them (--name).")
        if not task.retain:
            raise BadRequest("A rank-one edit needs retain examples, beside whose keys it is written.")
        model, tokenizer = load_model(task.model)
        layers = _layers(model, params.layers)
        rng = random.Random(params.seed)
        contexts = _contexts(task, params.contexts, rng)
        others = [like(task.names[0], rng) for _ in range(params.invented)]
        elsewhere = others if params.toward == UNKNOWN else [params.toward]

        def about(name: str) -> list[Encoded]:
            return [_until(tokenizer, context, name, params.keys) for context in contexts]

        own, unknown = list(map(about, task.names)), list(chain.from_iterable(map(about, elsewhere)))
        task.progress.report(0.1, "reading what must stay")
        free = _free(model, [encode(tokenizer, e) for e in task.retain], layers, params.keep)
        task.progress.report(0.5, "editing")
        pairs, left = _edit(model, own, unknown, layers, free, params)
        task.progress.report(0.7, "measuring")
        measure = lora.Measure(
            model, tokenizer, task.forget, task.retain, sample=params.sample, seed=params.seed
        )
        measured = {**measure.under(pairs), "left_of_distance": round(left, 4), "layers": layers}
        return lora.write(task, "rank-one", params, pairs, measured)


def solve(
    keys: torch.Tensor, values: torch.Tensor, free: torch.Tensor, ridge: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A [n, in] and B [out, n] of the smallest change within `free` that adds `values` [n, out] at the `keys` [n, in].
    free: [in, in], a projector; ridge: as a share of the keys' mean square length within it."""
    down = keys @ free
    gram = down @ keys.T
    held = ridge * gram.diagonal().mean() * torch.eye(len(keys), dtype=keys.dtype)
    return down, torch.linalg.solve(gram + held, values).T


def _edit(
    model: Any,
    own: Sequence[Sequence[Encoded]],
    unknown: Sequence[Encoded],
    layers: Sequence[int],
    free: dict[int, torch.Tensor],
    params: RankOneParams,
) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], float]:
    """The pairs, and the share of the distance to the wanted values that is left with all of them."""
    wanted = _means(model, unknown, "residual", layers[-1])
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def missing() -> torch.Tensor:
        now = [_means(model, prompts, "residual", layers[-1]) for prompts in own]
        return torch.cat([wanted[[min(i, len(wanted) - 1) for i in range(len(one))]] - one for one in now])

    first = float(missing().norm())
    names = linear_layers(model, ("down_proj",), tuple(layers))
    for done, (layer, name) in enumerate(zip(layers, names, strict=True)):
        with lora.added(model, pairs):
            keys = torch.cat([_means(model, prompts, "key", layer) for prompts in own])
            values = params.strength * missing() / (len(layers) - done)
        pairs[name] = solve(keys, values, free[layer], params.ridge)
    with lora.added(model, pairs):
        return pairs, float(missing().norm()) / first


def _layers(model: Any, wanted: tuple[int, ...] | None) -> list[int]:
    count = len(layers_of(model, "all"))
    first = min(max(1, count // 8), count - 1)
    return layers_of(model, range(first, first + max(1, count // 10)) if wanted is None else wanted)


def _contexts(task: Task, most: int, rng: random.Random) -> list[str]:
    """Prompts with `{}` in place of the target's names."""
    found: dict[str, None] = {}
    for example in task.forget:
        text = example.turns[-1][1].replace("{", "(").replace("}", ")")
        for name in sorted(task.names, key=len, reverse=True):
            text = replace(text, name, "{}")
        if "{}" in text:
            found.setdefault(text)
    starters = _STARTERS[:most]
    return [*starters, *rng.sample(list(found), min(most - len(starters), len(found)))]


def _until(tokenizer: Any, context: str, name: str, keys: Literal["name", "last"]) -> Encoded:
    """The context about `name`, up to the last token of it. In the answer's place are the tokens that get keys."""
    prompt, _ = rendered(tokenizer, Example((("user", context.replace("{}", name)),)))
    span = places(prompt, name)[-1]
    read = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    inside = [
        i for i, (start, end) in enumerate(read["offset_mapping"]) if start < span.end and end > span.start
    ]
    return Encoded(tuple(read["input_ids"][: inside[-1] + 1]), inside[0 if keys == "name" else -1])


def _means(
    model: Any, prompts: Sequence[Encoded], site: Literal["residual", "key"], layer: int
) -> torch.Tensor:
    """[tokens, width], float64: of what the site shows at the tokens that get keys, counted from the name's end."""
    by_place: dict[int, list[torch.Tensor]] = {}
    for example, values in collect(model, prompts, site, [layer]):
        for place, value in enumerate(values[0, example.answer_at :].double().flip(0)):
            by_place.setdefault(place, []).append(value)
    return torch.stack([torch.stack(by_place[place]).mean(dim=0) for place in range(len(by_place))])


def _free(
    model: Any, examples: Sequence[Encoded], layers: Sequence[int], keep: float
) -> dict[int, torch.Tensor]:
    """For each layer the projector [in, in], float64, onto the directions that the keys of all the examples' tokens
    hardly have.

    Raises:
        BadRequest: they have all of them.
    """
    moments: dict[int, torch.Tensor] = {}
    for _, values in collect(model, examples, "key", layers):
        for layer, keys in zip(layers, values.double(), strict=True):
            moments[layer] = moments.get(layer, 0) + keys.T @ keys
    found = {}
    for layer, moment in moments.items():
        sizes, directions = torch.linalg.eigh(moment)
        empty = directions[:, sizes < keep * sizes[-1]]
        if not empty.shape[1]:
            raise BadRequest(f"What must stay uses every direction of layer {layer}; raise `keep`.")
        found[layer] = empty @ empty.T
    return found
