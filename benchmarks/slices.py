"""What it costs that rows can be taken out of an adapter exactly: how much adapters of more and more slices know, and
what is left of it when one customer's rows go, with and without training that customer's slice again.

The demo model that never learned the targets learns their facts in trained phrasings, each target the rows of one
customer. All are asked in phrasings that no training saw, and so are facts that the model knew before."""

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

from benchmarks.losses import DEMO, NEVER, ROOT, answers
from benchmarks.runs import Run, Runs, key, pooled
from classifiers.activations import load_model
from classifiers.base import Task, run
from classifiers.data import Example
from evals.items import FORGET, Item, load_items
from guard.artifacts import Artifact, weights_digest
from guard.errors import BadRequest
from guard.metrics.rouge import rouge_l_recall

KINDS = ("slices", "drop-slices")
SLICES = (1, 2, 4)
BUDGET: dict[str, Any] = {"rank": 4, "steps": 150, "batch": 8, "learning_rate": 0.002, "sample": 8}
CUSTOMER = "limir-yarley"
"""Whose rows go."""
STATES = ("all rows", "dropped", "trained again")


@dataclass(frozen=True, slots=True)
class Rows:
    """What is learned, and what is asked: of the customer who goes, of the others, and of what was known before."""

    learned: tuple[Example, ...]
    asked: dict[str, list[Item]]

    @property
    def gone(self) -> tuple[Example, ...]:
        return tuple(row for row in self.learned if row.source == CUSTOMER)


def rows(sample: int | None) -> Rows:
    items = [item for item in load_items(DEMO / "items.jsonl") if len(item.turns) == 1]
    of = [item for item in items if item.split == FORGET]
    held = {
        "customer": [i for i in of if i.phrasing == "heldout" and i.entity == CUSTOMER],
        "others": [i for i in of if i.phrasing == "heldout" and i.entity != CUSTOMER],
        "before": [i for i in items if (i.split, i.phrasing) == ("retain", "heldout")],
    }
    asked = {
        name: own if sample is None else random.Random(name).sample(own, min(sample, len(own)))
        for name, own in held.items()
    }
    learned = [i for i in of if i.phrasing == "trained"]
    return Rows(tuple(Example(i.turns, i.answer, i.entity) for i in learned), asked)


def measured(about: Rows, slices: int, seed: int) -> Run:
    """One adapter in all its states: the recall of every question, by state and whom it is about."""
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        out, started = Path(folder), time.perf_counter()
        params = {**BUDGET, "slices": slices, "seed": seed}
        whole = run(KINDS[0], Task(NEVER, about.learned, (), out / "whole"), params)
        seconds = round(time.perf_counter() - started, 1)
        made = {"all rows": whole}
        for state, retrain in (("dropped", False), ("trained again", True)):
            kept = tuple(row for row in about.learned if row.source != CUSTOMER) if retrain else ()
            task = Task(NEVER, about.gone, kept, out / state, adapters=(whole,))
            try:
                made[state] = run(KINDS[1], task, {"retrain": retrain, "seed": seed})
            except BadRequest:  # its only slice
                continue
        found = {state: recalls(adapter, about) for state, adapter in made.items()}
    return {"slices": slices, "seed": seed, "seconds": seconds, "recall": found}


def recalls(adapter: Artifact | None, about: Rows) -> dict[str, list[float]]:
    from peft import PeftModel

    model, tokenizer = load_model(NEVER)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter.folder).eval()
    found = {}
    for name, asked in about.asked.items():
        said = answers(model, tokenizer, asked)
        scores = [rouge_l_recall(item.answer, text) for item, text in zip(asked, said, strict=True)]
        found[name] = [round(one, 4) for one in scores]
    return found


def lines(about: Rows, bare: Mapping[str, list[float]], done: Sequence[Run]) -> Iterator[str]:
    """Recall in each state; intervals are over questions, each with what it got under every seed."""

    def shown(name: str, state: str, some: Sequence[Mapping[str, list[float]]]) -> str:
        cells = []
        for of in about.asked:
            found = pooled([one[of] for one in some])
            cells.append(f"{of} {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}], n = {found.n}")
        return f"{name:9} {state:14} {'; '.join(cells)}"

    yield shown("untouched", "", [bare])
    for slices in sorted({one["slices"] for one in done}):
        own = [one for one in done if one["slices"] == slices]
        for state in STATES:
            some = [one["recall"][state] for one in own if state in one["recall"]]
            if some:
                yield shown(f"{slices} slices", state, some)
        yield f"{slices} slices: at most {max(one['seconds'] for one in own):.0f} s to learn"


@click.command()
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--sample", default=40, show_default=True, type=click.IntRange(1), help="Questions of each sort."
)
@click.option("--runs", "most", type=click.IntRange(0), help="At most so many new runs; the table is of all.")
@click.option("--threads", default=1, show_default=True)
@click.option("--out", default=ROOT / "reports" / "bench-slices.jsonl", type=click.Path(path_type=Path))
def slices(seeds: int, sample: int, most: int | None, threads: int, out: Path) -> None:
    """How much adapters of slices know, and what is left when rows go. Stops and goes on.

    Example: python -m benchmarks slices --seeds 1
    """
    torch.set_num_threads(threads)
    about, runs, of = rows(sample), Runs(out, most), weights_digest(NEVER)
    asked = [item.id for own in about.asked.values() for item in own]
    done = []
    for seed in range(seeds):
        for count in SLICES:
            made = runs.get(key(BUDGET, count, seed, asked, of), partial(measured, about, count, seed))
            if made is not None:
                click.echo(f"{count} slices, seed {seed}: {made['seconds']:.0f} s", err=True)
                done.append(made)
    for line in lines(about, recalls(None, about), done):
        click.echo(line)
