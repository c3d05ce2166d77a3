"""Trains `slices`: an adapter that knows the examples it is given, of which any can be taken out again exactly; and
takes them out, `drop-slices` (S3T, Chowdhury et al., arXiv 2406.16257).

The examples are dealt to slices by their sources alone. Each slice has a part of the adapter, which is trained on the
base model and on that slice: no part has seen another slice, and which rows there are beside its own changes nothing
of it, not even the order in which it is trained. The adapter is the parts beside each other, so that to drop a part is
to be where one would be had its rows never been there. S3T gives each slice layers of its own; here each has all layers
and ranks of its own (docs/decisions/0008).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from classifiers import lora
from classifiers.activations import load_model
from classifiers.base import Params, Task, Trainer
from classifiers.data import Example, digest
from classifiers.losses.base import answers
from classifiers.places import Layers, linear_layers
from guard.artifacts import Artifact, weights_digest
from guard.errors import BadRequest
from guard.interventions.lora_adapter import LEARNED

_SHARES = (0.1, 0.9)  # of the whole time, when training begins and ends

Parts = dict[int, lora.Pairs]
"""Number of a slice -> its part."""


class SlicesParams(Params):
    """How it is trained. slices: how many; a row that goes takes its slice with it. rank, scaling: of each part, which
    is trained to add scaling * B A; the adapter has `slices` times the rank. weight: of each part beside the others, by
    default 1 / sqrt(slices), since parts that do not know each other get in each other's way. modules, layers: the
    linear layers that are edited. steps of `batch` examples for each part; max_tokens: longer examples lose their end;
    sample: examples of each set that are measured before and after.
    """

    slices: int = Field(4, ge=1, le=64)
    rank: int = Field(4, ge=1, le=256)
    scaling: float = Field(2.0, gt=0)
    weight: float | None = Field(None, gt=0, le=1)
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    layers: Layers = "all"
    steps: int = Field(300, ge=1)
    batch: int = Field(16, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    max_tokens: int = Field(512, ge=8)
    sample: int = Field(200, ge=1)

    @property
    def factor(self) -> float:
        """By which B is multiplied in the file."""
        return self.scaling * (1 / math.sqrt(self.slices) if self.weight is None else self.weight)


class DropParams(Params):
    """retrain: train the dropped slices again, on those of their rows that are among the retain examples. All else is
    as it was for the adapter."""

    retrain: bool = False


class Part(BaseModel):
    """One slice in a manifest: the digests of its rows, and which ranks of the adapter are its own (from, up to)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: tuple[str, ...]
    ranks: tuple[int, int]


class About(BaseModel):
    """The fact `slices` of a manifest. exact: rows were taken out of it, and nothing of them is left; dropped: by what,
    oldest first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    params: SlicesParams
    parts: dict[int, Part]
    exact: bool = False
    dropped: tuple[dict[str, Any], ...] = ()


class Slices(Trainer):
    params_type = SlicesParams

    def train(self, task: Task, params: SlicesParams) -> Artifact:
        """Learn the forget examples, those that may have to go one day. The retain examples are only asked.

        Raises:
            BadRequest: no example has an answer, or the model has no such place.
        """
        rows = _rows(task, lora.answered(task.forget, "forget"))
        slices: dict[int, list[str]] = {}
        for name, example in rows.items():
            slices.setdefault(slice_of(example, params), []).append(name)
        parts = _trained(task, {k: sorted(names) for k, names in slices.items()}, rows, params)
        return _written(task, "slices", params, parts, About(params=params, parts=_described(parts, slices)))


class DropSlices(Trainer):
    params_type = DropParams
    adapters = True

    def train(self, task: Task, params: DropParams) -> Artifact:
        """Take the forget examples out of the one adapter that is given.

        Raises:
            BadRequest: it is none of `slices`, did not learn an example, would be left with nothing, or lacks rows to
                train a slice again.
        """
        about = _about(task.adapters)
        asked = _rows(task, task.forget)
        learned = {row for part in about.parts.values() for row in part.rows}
        for number, row in enumerate(asked, 1):
            if row not in learned:
                raise BadRequest(
                    f"Forget example {number} is not among what the adapter learned; take it out."
                )
        hit = {
            k: set(part.rows) - asked.keys()
            for k, part in about.parts.items()
            if asked.keys() & set(part.rows)
        }
        again = {k: sorted(rows) for k, rows in sorted(hit.items()) if params.retrain and rows}
        parts = {k: part for k, part in _parts(task.adapters[0], about).items() if k not in hit}
        if not parts and not again:
            raise BadRequest("Nothing would be left of the adapter; take it out of service instead.")
        parts |= _trained(task, again, _needed(task, again), about.params)
        slices = {k: about.parts[k].rows for k in parts if k not in again} | again
        gone = len(learned) - sum(map(len, slices.values()))
        event = {
            "from": task.adapters[0].digest,
            "asked": digest(task.forget),
            "slices": sorted(hit),
            "rows": gone,
            "retrained": params.retrain,
        }
        told = About(
            params=about.params,
            parts=_described(parts, slices),
            exact=True,
            dropped=(*about.dropped, event),
        )
        return _written(task, "drop-slices", params, parts, told)


def slice_of(example: Example, params: SlicesParams) -> int:
    """By its source and the seed alone."""
    told = json.dumps([params.seed, example.origin]).encode()
    return int.from_bytes(hashlib.sha256(told).digest()[:8]) % params.slices


def _rows(task: Task, examples: Sequence[Example]) -> dict[str, Example]:
    """The examples by their digests, which hold the model's, so that they are found again in what was made for it."""
    model = weights_digest(task.model)
    told = ([model, example.turns, example.answer] for example in examples)
    names = (hashlib.sha256(json.dumps(one).encode()).hexdigest() for one in told)
    return dict(zip(names, examples, strict=True))


def _about(adapters: Sequence[Artifact]) -> About:
    if len(adapters) != 1 or LEARNED not in adapters[0].manifest.facts:
        raise BadRequest("Give the one adapter of `slices` that the examples have to leave.")
    return About.model_validate(adapters[0].manifest.facts[LEARNED])


def _needed(task: Task, again: Mapping[int, Sequence[str]]) -> dict[str, Example]:
    """The rows that are learned again. Raises BadRequest: some are not among the retain examples."""
    given = _rows(task, task.retain)
    missing = sum(row not in given for rows in again.values() for row in rows)
    if missing:
        raise BadRequest(
            f"{missing} examples of the dropped slices are missing; give them in the retain set, or do not retrain."
        )
    return given


def _trained(
    task: Task, slices: Mapping[int, Sequence[str]], rows: Mapping[str, Example], params: SlicesParams
) -> Parts:
    """The parts of `slices`, each of which has the digests of its rows in order. Goes on behind the last whole part of
    the task's checkpoint."""
    state = task.checkpoint.load() or {"parts": {}}
    parts: Parts = state["parts"]
    begin, end = _SHARES
    for number, (k, names) in enumerate(sorted(slices.items())):
        task.progress.report(begin + (end - begin) * number / len(slices), "training")
        if k not in parts:
            parts[k] = _part(task, [rows[name] for name in names], k, params)
            if task.checkpoint.path is not None:
                task.checkpoint.save({"parts": parts})
    return parts


def _part(task: Task, examples: Sequence[Example], number: int, params: SlicesParams) -> lora.Pairs:
    """Trained on the base model. Nothing of other slices comes in here: neither rows, nor how many there are, nor
    random numbers that were drawn for them.

    Raises:
        BadRequest: no example fits into `max_tokens`.
    """
    from peft import LoraConfig, get_peft_model

    seed = random.Random(f"{params.seed}:{number}").getrandbits(31)
    model, tokenizer = load_model(task.model)
    targets = list(linear_layers(model, params.modules, params.layers))
    config = LoraConfig(
        r=params.rank,
        lora_alpha=params.scaling * params.rank,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config).eval()
    encoded = lora.encoded(tokenizer, examples, params.max_tokens)
    if not encoded:
        raise BadRequest("No example of a slice begins its answer within max_tokens; raise it.")
    shuffle = random.Random(seed)
    order = itertools.chain.from_iterable(shuffle.sample(encoded, len(encoded)) for _ in itertools.count())
    weights = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=params.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, params.learning_rate, total_steps=params.steps)
    for _ in range(params.steps):
        optimizer.zero_grad()
        answers(adapted, list(itertools.islice(order, params.batch))).nll.mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    layers = {name.removeprefix("base_model.model."): module for name, module in adapted.named_modules()}
    return {
        name: (
            layers[name].lora_A["default"].weight.detach(),
            params.factor * layers[name].lora_B["default"].weight.detach(),
        )
        for name in targets
    }


def _described(parts: Parts, slices: Mapping[int, Sequence[str]]) -> dict[int, Part]:
    """Each slice's rows, and its ranks where the parts lie beside each other in the order of the slices."""
    found, start = {}, 0
    for k in sorted(parts):
        rank = len(next(iter(parts[k].values()))[0])
        found[k] = Part(rows=tuple(sorted(slices[k])), ranks=(start, start + rank))
        start += rank
    return found


def _parts(adapter: Artifact, about: About) -> Parts:
    pairs = lora.read(adapter)
    return {
        k: {name: (down[slice(*part.ranks)], up[:, slice(*part.ranks)]) for name, (down, up) in pairs.items()}
        for k, part in about.parts.items()
    }


def _written(task: Task, trainer: str, params: Params, parts: Parts, about: About) -> Artifact:
    task.progress.report(_SHARES[1], "measuring")
    first = parts[min(parts)]
    pairs = {
        name: (
            torch.cat([parts[k][name][0] for k in sorted(parts)]),
            torch.cat([parts[k][name][1] for k in sorted(parts)], dim=1),
        )
        for name in first
    }
    model, tokenizer = load_model(task.model)
    measure = lora.Measure(
        model, tokenizer, task.forget, task.retain,
        sample=about.params.sample, seed=params.seed, max_tokens=about.params.max_tokens,
    )  # fmt: skip
    facts = {LEARNED: about.model_dump(mode="json")}
    return lora.write(task, trainer, params, pairs, measure.under(pairs), facts)
