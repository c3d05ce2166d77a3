"""Makes a target's words unlikely where neurons write them (REVS, Ashuach et al., arXiv 2406.09325).

A column of a down projection is a neuron. Read by the unembedding (with the final norm's weights), it promotes tokens.
Of each forget answer the rarest tokens are taken. In each layer the neurons that are most active where these are
foretold, and in whose reading they stand near the top, are chosen; the tokens' logits in them are lowered until none of
the tokens stands above `rank_wanted`, and the change goes back to the hidden space by the pseudo-inverse of the
unembedding. A change of neurons is then a combination of as many directions as there are tokens, so that the adapter's
rank is the number of tokens or of neurons, whichever is smaller.

Different from the published code: that edits token after token and as many neurons as bring the token's rank in the
layer's output into a margin; here all tokens are lowered in one step and the number of neurons is given, so that the
result is a sum that does not depend on an order. It chooses neurons by rank among the most active; here activity is
divided by rank, since one neuron serves many tokens. A token's rarity is that among retain answers, not in the
tokenizer's vocabulary. Tokens that the question names itself are left alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from classifiers import lora
from classifiers.activations import blocks, collect, load_model
from classifiers.base import Params, Task, Trainer
from classifiers.data import Encoded
from classifiers.places import Layers, linear_layers
from guard.artifacts import Artifact
from guard.errors import BadRequest

_ROUNDS, _FIRST, _MORE = (
    100,
    0.5,
    1.3,
)  # of lowering: how often, the first step in deviations of logits, and its growth


class RevsParams(Params):
    """layers: whose down projections are edited. tokens: so many of each answer are made unlikely; share: of a layer's
    neurons, so many are edited; rank_wanted: as a share of the vocabulary, behind which the tokens shall stand. rank:
    the highest of the adapter, which becomes the nearest one of it. max_tokens: longer examples lose their end; sample:
    examples of each set that are measured before and after."""

    layers: Layers = "all"
    tokens: int = Field(2, ge=1)
    share: float = Field(0.5, gt=0, le=1)
    rank_wanted: float = Field(0.9, gt=0, lt=1)
    rank: int = Field(16, ge=1, le=256)
    max_tokens: int = Field(512, ge=8)
    sample: int = Field(200, ge=1)


class Revs(Trainer):
    params_type = RevsParams

    def train(self, task: Task, params: RevsParams) -> Artifact:
        """Raises BadRequest: no forget example has an answer that says more than its question."""
        model, tokenizer = load_model(task.model)
        forget, retain = (
            lora.encoded(tokenizer, lora.answered(some, "forget", needed), params.max_tokens)
            for some, needed in ((task.forget, True), (task.retain, False))
        )
        places = _rarest(forget, retain, params.tokens)
        if not places:
            raise BadRequest("The forget answers say nothing that their questions do not.")
        weights = linear_layers(model, ("down_proj",), params.layers)
        task.progress.report(0.1, "reading the forget examples")
        active = _active(model, places, [_layer_of(model, name) for name in weights])
        read = model.get_output_embeddings().weight.float() * _final_norm(model)
        back = torch.linalg.pinv(read.double()).float()
        pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        lost = whole = 0.0
        for done, (name, weight) in enumerate(weights.items()):
            task.progress.report(0.2 + 0.5 * done / len(weights), "editing")
            change = lowered(
                weight.float(),
                {t: a[done] for t, a in active.items()},
                read,
                back,
                params.share,
                params.rank_wanted,
            )
            dense = change[1] @ change[0]
            whole += float(dense.square().sum())
            pairs[name] = change
            if len(change[0]) > params.rank:
                pairs[name], energy = lora.nearest(dense, params.rank)
                lost += energy
        task.progress.report(0.7, "measuring")
        measure = lora.Measure(
            model, tokenizer, task.forget, task.retain, sample=params.sample, seed=params.seed
        )
        found = {"energy_kept": round(1 - lost / whole, 4) if whole else 1.0, "tokens": len(active)}
        return lora.write(task, "revs", params, pairs, {**measure.under(pairs), **found})


def lowered(
    weight: torch.Tensor,
    active: dict[int, torch.Tensor],
    read: torch.Tensor,
    back: torch.Tensor,
    share: float,
    rank_wanted: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A [tokens, in] and B [out, tokens] of what is added to `weight` [out, in]. active: token -> [in], how active the
    neurons are where it is foretold (one that is below 0 there would promote what is lowered in it, and is left alone);
    read: [vocabulary, out]; back: its pseudo-inverse."""
    tokens = torch.tensor(sorted(active))
    logits = read @ weight
    ranks = _ranks(logits, tokens)
    strength = torch.stack([active[int(token)].clamp(min=0) for token in tokens])
    score = (strength / (1 + ranks)).sum(dim=0)
    chosen = score.topk(max(1, round(share * len(score)))).indices
    own, promotes, wanted = logits[:, chosen], strength[:, chosen] > 0, rank_wanted * len(read)
    taken = torch.zeros(len(tokens), len(chosen))
    for _ in range(_ROUNDS):
        low = promotes & (_ranks(own - read @ back[:, tokens] @ taken, tokens) < wanted)
        if not low.any():
            break
        taken = torch.where(low, torch.clamp(taken * _MORE, min=_FIRST * float(own.std())), taken)
    down = torch.zeros(len(tokens), weight.shape[1])
    down[:, chosen] = taken
    return down, -back[:, tokens]


def _ranks(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[tokens, neurons]: how many of the vocabulary stand above each of `tokens` in `logits` [vocabulary, neurons]."""
    return torch.stack([(logits > logits[token]).sum(dim=0) for token in tokens])


def _rarest(forget: Sequence[Encoded], retain: Sequence[Encoded], most: int) -> dict[Encoded, list[int]]:
    """Positions in each forget example of the tokens of its answer that are rarest among retain answers."""
    common = Counter(token for one in retain for token in set(one.ids[one.answer_at :]))
    found = {}
    for one in forget:
        asked = {*one.ids[: one.answer_at]}
        own = [i for i in range(one.answer_at, len(one.ids)) if one.ids[i] not in asked]
        if own:
            found[one] = sorted(own, key=lambda i: (common[one.ids[i]], -one.ids[i]))[:most]
    return found


def _active(model: Any, places: dict[Encoded, list[int]], layers: Sequence[int]) -> dict[int, torch.Tensor]:
    """Token -> [layers, neurons]: their mean activity where it is foretold."""
    found: dict[int, list[torch.Tensor]] = {}
    for one, values in collect(model, list(places), "key", layers):
        for place in places[one]:
            found.setdefault(one.ids[place], []).append(values[:, place - 1])
    return {token: torch.stack(shown).mean(dim=0) for token, shown in found.items()}


def _layer_of(model: Any, name: str) -> int:
    """The decoder layer that holds the module of that name."""
    module = model.get_submodule(name)
    return next(i for i, block in enumerate(blocks(model)) if any(m is module for m in block.modules()))


def _final_norm(model: Any) -> torch.Tensor:
    """[width]: the weights of the norm behind the last layer."""
    norm = getattr(model.base_model, "norm", None)
    if norm is None:
        raise BadRequest("The model's final norm is not where it is in a Llama.")
    return norm.weight.detach().float()
