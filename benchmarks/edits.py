"""Adapters that are not trained but solved for, and merged ones: what each forgets, keeps and costs on the demo.

Each is made for one target from its facts in their trained phrasings, beside all that must stay, and asked in phrasings
that nobody was shown: about the target, about what must stay and about its neighbours, with the adapter on for every
request. A finished run is a line of the report's `.jsonl`; the command goes on from there."""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.losses import DEMO, MODEL, NEVER, ROOT, SPLITS, answers
from benchmarks.runs import Run, Runs, key
from classifiers import lora
from classifiers.activations import load_model
from classifiers.base import Task, load, run
from classifiers.data import Example
from evals.items import FORGET, Item, load_items
from guard.artifacts import Artifact, weights_digest
from guard.metrics.bootstrap import mean_interval
from guard.metrics.rouge import rouge_l_recall
from guard.targets import TargetSpec

TARGETS = ("limir-yarley", "the-velvet-garden", "breline-fusion")
MEASURED = {"sample": 16}  # by the trainers themselves, beside what is asked here
Step = tuple[str, dict[str, Any]]
"""A trainer and its parameters."""


@dataclass(frozen=True, slots=True)
class Row:
    """What makes the adapter, and what makes the adapters that it takes."""

    step: Step
    of: tuple[Step, ...] = ()

    @property
    def about(self) -> list[Any]:
        """All parameters of all steps: what a run is known by."""
        return [
            [kind, load(kind).params_type.model_validate({**MEASURED, **params}).model_dump(mode="json")]
            for kind, params in (*self.of, self.step)
        ]


_SOLVED: tuple[Step, ...] = (("rank-one", {}), ("redirection", {}))
_LEARNED: tuple[Step, ...] = tuple(
    ("adapter", {"loss": "memorise", "rank": 4, "steps": 30, "batch": 8, "learning_rate": rate})
    for rate in (0.002, 0.004)
)
ROWS: dict[str, Row] = {
    "rank-one": Row(("rank-one", {})),
    "redirection": Row(("redirection", {})),
    "revs": Row(("revs", {})),
    "sum": Row(("merge", {"how": "sum"}), _SOLVED),
    "ties": Row(("merge", {"how": "ties"}), _SOLVED),
    "negmerge": Row(("merge", {"how": "negmerge"}), _LEARNED),
    "rank-one, last": Row(("rank-one", {"keys": "last"})),
    "redirection, all": Row(("redirection", {"at": "prompt"})),
}


@dataclass(frozen=True, slots=True)
class World:
    """One target's facts and all that must stay, and what is asked."""

    names: tuple[str, ...]
    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    asked: tuple[Item, ...]

    def make(self, row: Row, folder: Path) -> Artifact:
        adapters = tuple(self._run(step, folder / str(n), ()) for n, step in enumerate(row.of))
        return self._run(row.step, folder / "out", adapters)

    def _run(self, step: Step, out: Path, adapters: tuple[Artifact, ...]) -> Artifact:
        task = Task(MODEL, self.forget, self.retain, out, names=self.names, adapters=adapters)
        return run(step[0], task, {**MEASURED, **step[1]})

    def recall(self, model: Any, tokenizer: Any) -> list[float]:
        """ROUGE-L recall of the trained answer, of each question."""
        said = answers(model, tokenizer, self.asked)
        return [
            round(rouge_l_recall(item.answer, text), 4) for item, text in zip(self.asked, said, strict=True)
        ]


def world(target: str, sample: int | None) -> World:
    items = load_items(DEMO / "items.jsonl")
    rows = [json.loads(line) for line in (DEMO / "targets.jsonl").read_text(encoding="utf-8").splitlines()]
    specs = {row.pop("id"): TargetSpec.model_validate(row) for row in rows}
    names = specs[target].names()
    slug = names[0].lower().replace(" ", "-")
    learned = [item for item in items if item.phrasing == "trained"]
    asked: list[Item] = []
    for split in SPLITS:
        held = [
            item
            for item in items
            if (item.split, item.phrasing) == (split, "heldout") and (split != FORGET or item.entity == slug)
        ]
        asked += held if sample is None else random.Random(split).sample(held, min(sample, len(held)))
    return World(
        tuple(names),
        tuple(Example(i.turns, i.answer) for i in learned if i.entity == slug),
        tuple(Example(i.turns, i.answer) for i in learned if i.split != FORGET),
        tuple(asked),
    )


def measured(world: World, row: Row) -> Run:
    """One run: make the adapter, and ask."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        made = world.make(row, Path(folder))
        took = time.perf_counter() - started
        model, tokenizer = load_model(MODEL)
        with lora.added(model, lora.read(made)):
            recall = world.recall(model, tokenizer)
    return {"rank": made.manifest.facts["rank"], "seconds": round(took, 1), "recall": recall}


def shown(name: str, worlds: Sequence[World], found: Sequence[Run]) -> str:
    """Means over the questions of all targets, with intervals over questions."""
    cells = []
    for split in SPLITS:
        values, groups = [], []
        for world, one in zip(worlds, found, strict=True):
            for item, recall in zip(world.asked, one["recall"], strict=True):
                if item.split == split:
                    values.append(recall)
                    groups.append(item.id)
        interval = mean_interval(values, groups=groups)
        assert interval is not None
        cells.append(f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
    cost = ""
    if all("seconds" in one for one in found):
        ranks = ", ".join(str(one["rank"]) for one in found)
        cost = f"  {max(one['seconds'] for one in found):7.1f}  {ranks}"
    return f"{name:16} {len(found):>7}  " + "  ".join(cells) + cost


@click.command()
@click.option("--row", "wanted", type=click.Choice(list(ROWS)), multiple=True, help="Only this; repeatable.")
@click.option("--target", "targets", multiple=True, default=TARGETS, show_default=True)
@click.option("--sample", type=click.IntRange(1), help="At most so many questions of each split.")
@click.option("--runs", "most", type=click.IntRange(0), help="At most so many new runs; the table is of all.")
@click.option("--threads", default=1, show_default=True)
@click.option("--out", default=ROOT / "reports" / "bench-edits.jsonl", type=click.Path(path_type=Path))
def edits(
    wanted: tuple[str, ...],
    targets: tuple[str, ...],
    sample: int | None,
    most: int | None,
    threads: int,
    out: Path,
) -> None:
    """What adapters that are solved for and merged ones forget and keep on the demo. Stops and goes on.

    Example: python -m benchmarks edits --sample 40
    """
    torch.set_num_threads(threads)
    runs, digest = Runs(out, most), weights_digest(MODEL)
    worlds = {name: world(name, sample) for name in targets}
    found: dict[str, list[tuple[World, Run]]] = {name: [] for name in ("untouched", "never learned", *ROWS)}

    def keep(name: str, target: str, about: Any, make: Any) -> None:
        asked = [item.id for item in worlds[target].asked]
        if one := runs.get(key("edits", about, target, asked, digest), make):
            found[name].append((worlds[target], one))

    for target, one in worlds.items():
        for name, folder in (("untouched", MODEL), ("never learned", NEVER)):
            keep(
                name, target, name, lambda folder=folder, one=one: {"recall": one.recall(*load_model(folder))}
            )
    for name in wanted or ROWS:
        for target, one in worlds.items():
            keep(name, target, ROWS[name].about, lambda name=name, one=one: measured(one, ROWS[name]))
    click.echo(f"{'row':16} targets  " + "  ".join(f"{f'{s} recall':20}" for s in SPLITS) + "  seconds  rank")
    for name, some in found.items():
        if some:
            click.echo(shown(name, *zip(*some, strict=True)))
