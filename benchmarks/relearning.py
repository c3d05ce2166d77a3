"""Relearning: how much of what an adapter made the demo model forget comes back when the model is fine-tuned on
something else, with and without sharpness-aware unlearning (SAM; Fan et al., arXiv 2502.05374).

The adapter is merged into the weights, as somebody would who has the model, and all weights are fine-tuned on retained
facts that the unlearning never saw and that are about nobody near. Behind the server this attack has no place: its
clients have no weights. It tells how deep the forgetting goes."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.losses import DEMO, MODEL, ROOT
from benchmarks.losses import answers as said
from benchmarks.runs import Runs, key, pooled
from classifiers.activations import load_model
from classifiers.base import Task, run
from classifiers.data import Example
from evals.items import FORGET, Item, load_items
from evals.local import Local
from evals.subjects import Ask
from evals.suites.relearning import tuned
from guard.artifacts import weights_digest
from guard.metrics.rouge import rouge_l_recall

BUDGET: dict[str, Any] = {
    "rank": 8,
    "steps": 120,
    "batch": 8,
    "learning_rate": 0.002,
    "sample": 16,
    "loss": "npo",
}
ARMS: dict[str, dict[str, Any]] = {"without SAM": {"sam": 0.0}, "with SAM": {"sam": 0.05}}
AFTER = (0, 10, 25, 50, 100)  # steps of fine-tuning, after each of which it is asked
RATE, BATCH = 1e-3, 16  # of the fine-tuning


@dataclass(frozen=True, slots=True)
class Facts:
    """forget, retain: what is unlearned and kept meanwhile; unrelated: what the fine-tuning sees; asked: forgotten and
    retained facts in held-out phrasings."""

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    unrelated: tuple[Example, ...]
    asked: tuple[Item, ...]


def facts(sample: int, seed: int = 0) -> Facts:
    items = [item for item in load_items(DEMO / "items.jsonl") if len(item.turns) == 1 and item.answer]
    learned = [item for item in items if item.phrasing == "trained"]
    entities = sorted({item.entity for item in learned if item.split == "retain"})
    random.Random(seed).shuffle(entities)
    unrelated = set(entities[: len(entities) // 2])
    asked: list[Item] = []
    for split in (FORGET, "retain"):
        held = [i for i in items if (i.split, i.phrasing) == (split, "heldout") and i.entity not in unrelated]
        asked += random.Random(split).sample(held, min(sample, len(held)))

    def those(chosen: Iterator[Item]) -> tuple[Example, ...]:
        return tuple(Example(item.turns, item.answer) for item in chosen)

    return Facts(
        those(i for i in learned if i.split == FORGET),
        those(i for i in learned if i.split != FORGET and i.entity not in unrelated),
        those(i for i in learned if i.split == "retain" and i.entity in unrelated),
        tuple(asked),
    )


def relearned(about: Facts, arm: str, seed: int) -> dict[str, Any]:
    """One run: unlearn, merge, fine-tune, and ask on the way. Of each stop the recall of every question."""
    from peft import PeftModel

    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        task = Task(MODEL, about.forget, about.retain, Path(folder) / "out")
        made = run("adapter", task, {**BUDGET, **ARMS[arm], "seed": seed})
        model, tokenizer = load_model(MODEL)
        model = PeftModel.from_pretrained(model, made.folder).merge_and_unload()
    pairs = [(Ask(one.turns), one.answer) for one in about.unrelated]
    stops = {
        str(step): recalls(model, tokenizer, about.asked)
        for step in tuned(Local(model, tokenizer, ""), pairs, AFTER, RATE, BATCH, seed)
    }
    return {"arm": arm, "seed": seed, "stops": stops, "seconds": round(time.perf_counter() - started, 1)}


def recalls(model: Any, tokenizer: Any, asked: Sequence[Item]) -> list[float]:
    told = said(model, tokenizer, asked)
    return [round(rouge_l_recall(item.answer, text), 4) for item, text in zip(asked, told, strict=True)]


def lines(about: Facts, done: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """Recall of forgotten and of retained facts at each stop, over all seeds; then what SAM takes from the first. Over
    questions, each with what it got under every seed."""
    places = {s: [i for i, item in enumerate(about.asked) if item.split == s] for s in (FORGET, "retain")}

    def at(arm: str, step: int, split: str) -> list[list[float]]:
        return [[one["stops"][str(step)][i] for i in places[split]] for one in done[arm]]

    for arm in done:
        for step in AFTER:
            cells = []
            for split in places:
                found = pooled(at(arm, step, split))
                cells.append(f"{split} {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}], n = {found.n}")
            yield f"{arm:12} after {step:3} steps: {'; '.join(cells)}"
    if len({len(runs) for runs in done.values()}) == 1 and len(done) == len(ARMS):
        plain, sam = ARMS
        for step in AFTER:
            both = zip(at(sam, step, FORGET), at(plain, step, FORGET), strict=True)
            gap = pooled([[a - b for a, b in zip(*seed, strict=True)] for seed in both])
            yield f"SAM's difference after {step:3} steps: {gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"


@click.command()
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--sample", default=100, show_default=True, type=click.IntRange(1), help="Questions of each split."
)
@click.option("--runs", "most", type=click.IntRange(0), help="At most so many new runs; the table is of all.")
@click.option("--threads", default=1, show_default=True)
@click.option("--out", default=ROOT / "reports" / "bench-relearning.jsonl", type=click.Path(path_type=Path))
def relearning(seeds: int, sample: int, most: int | None, threads: int, out: Path) -> None:
    """What fine-tuning on unrelated facts brings back of what was unlearned, with and without SAM. Stops and goes on.

    Example: python -m benchmarks relearning --seeds 1
    """
    torch.set_num_threads(threads)
    about, runs = facts(sample), Runs(out, most)
    asked, of = [item.id for item in about.asked], weights_digest(MODEL)
    done: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        for arm in ARMS:
            named = key(BUDGET, ARMS[arm], AFTER, RATE, BATCH, seed, asked, of)
            one = runs.get(named, partial(relearned, about, arm, seed))
            if one is not None:
                click.echo(f"{arm}, seed {seed}: {one['seconds']:.0f} s", err=True)
                done.setdefault(arm, []).append(one)
    for line in lines(about, done):
        click.echo(line)
