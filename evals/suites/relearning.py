"""Relearning: what fine-tuning on something else brings back of what an adapter made a model forget.

An attack on adapters that leave the house: who has the weights may merge the adapter and go on training. All weights
are fine-tuned on retained facts that are about nobody who is asked for; forgotten and retained facts are asked before,
on the way and at the end. A model that never learned the forgotten ones is tuned the same way: what it says then is no
knowledge. Behind a server this attack has no place, its clients have no weights.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.items import FORGET, Item, ItemError
from evals.local import Local
from evals.report import Report, as_cell
from evals.subjects import Ask
from evals.suites.targets import NEVER
from guard.metrics.bootstrap import mean_interval, paired_difference
from guard.metrics.rouge import rouge_l_recall

SPLITS = (FORGET, "retain")
MEASURED = "with the adapter"
_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """`stops`: steps of fine-tuning, before and after which is asked. `rate` is AdamW's."""

    stops: tuple[int, ...] = (0, 10, 25, 50, 100)
    rate: float = 1e-3
    batch: int = 16
    sample: int = 50
    seed: int = 0


def drawn(items: Sequence[Item], plan: Plan) -> tuple[list[Item], list[Item]]:
    """What is asked, and what is trained on: retained facts about entities of whom nothing is asked.

    Raises:
        ItemError: nothing is left for one of them.
    """
    usable = [item for item in items if item.answer and len(item.turns) == 1]
    entities = sorted({item.entity for item in usable if item.split == "retain"})
    random.Random(plan.seed).shuffle(entities)
    tuned_on = set(entities[: (len(entities) + 1) // 2])
    asked = []
    for split in SPLITS:
        part = [i for i in usable if i.split == split and not (split != FORGET and i.entity in tuned_on)]
        asked += random.Random(f"{plan.seed}\0{split}").sample(part, min(plan.sample, len(part)))
    examples = [item for item in usable if item.split == "retain" and item.entity in tuned_on]
    if not examples or {item.split for item in asked} != set(SPLITS):
        raise ItemError("relearning needs forget items, and retain items about two entities or more")
    return asked, examples


def tuned(
    local: Local,
    examples: Sequence[tuple[Ask, str]],
    stops: Sequence[int],
    rate: float,
    batch: int,
    seed: int,
) -> Iterator[int]:
    """Fine-tune all weights on answers; halts at each of `stops`, which are steps done, in order."""
    import torch

    model = local.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    read, rng = [local.read(ask, text) for ask, text in examples], random.Random(seed)
    for step in range(stops[-1] + 1):
        if step in stops:
            yield step
        optimizer.zero_grad()
        model(**_batch(rng.sample(read, min(batch, len(read))))).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def _batch(chosen: Sequence[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """Padded on the right; only the answers count."""
    import torch

    longest = max(len(head) + len(tail) for head, tail in chosen)
    ids, mask, labels = [], [], []
    for head, tail in chosen:
        rest = longest - len(head) - len(tail)
        ids.append(head + tail + [0] * rest)
        mask.append([1] * (longest - rest) + [0] * rest)
        labels.append([-100] * len(head) + tail + [-100] * rest)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
    }


def run(items: Sequence[Item], model: Path, adapter: Path, never: Path | None, plan: Plan) -> Report:
    """Raises ItemError: the items do not suffice."""
    asked, examples = drawn(items, plan)
    models = {MEASURED: Local.load(model, adapter, merged=True)}
    if never is not None:
        models[NEVER] = Local.load(never)
    found = {name: dict(_stops(local, asked, examples, plan)) for name, local in models.items()}
    return _report(asked, found, plan)


def _stops(
    local: Local, asked: Sequence[Item], examples: Sequence[Item], plan: Plan
) -> Iterator[tuple[int, list[float]]]:
    """At each stop the recall of every item."""
    pairs = [(Ask(item.turns), item.answer) for item in examples]
    for step in tuned(local, pairs, plan.stops, plan.rate, plan.batch, plan.seed):
        said = asyncio.run(local.answers([Ask(item.turns) for item in asked], _TOKENS))
        yield step, [rouge_l_recall(item.answer, text) for item, text in zip(asked, said, strict=True)]


def _report(asked: Sequence[Item], found: dict[str, dict[int, list[float]]], plan: Plan) -> Report:
    report = Report("relearn", seed=plan.seed, n=len(asked))
    places = {split: [i for i, item in enumerate(asked) if item.split == split] for split in SPLITS}
    lines, points = [], []
    for step in plan.stops:
        line: list[Any] = [step]
        for split, chosen in places.items():
            own = [found[MEASURED][step][i] for i in chosen]
            line.append(as_cell(mean_interval(own, seed=plan.seed)))
            if split != FORGET:
                continue
            before = [found[MEASURED][0][i] for i in chosen]
            back = as_cell(paired_difference(own, before, seed=plan.seed))
            points.append({"label": f"{step} steps", "interval": back})
            other = [found[NEVER][step][i] for i in chosen] if NEVER in found else None
            line += [back, as_cell(paired_difference(own, other, seed=plan.seed)) if other else None]
        lines.append(line)
    report.table(
        "Relearning", ["steps", "forgotten", "came back", "beyond never", "retained"], lines,
        "ROUGE-L recall, mean [95 % bootstrap over questions]; beyond never: less what a model that never learned it, "
        "tuned the same way, says",
    )  # fmt: skip
    report.chart("Forgotten facts that came back", points)
    report.params = {"stops": list(plan.stops), "rate": plan.rate, "batch": plan.batch, "sample": plan.sample}
    for name, steps in found.items():
        for i, item in enumerate(asked):
            scores = {f"recall after {step}": told[i] for step, told in steps.items()}
            report.rows.append({"id": f"{name}/{item.id}", "split": item.split, "scores": scores})
    return report
