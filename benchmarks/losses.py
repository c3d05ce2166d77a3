"""Every loss of the adapter trainer on the demo world: what it forgets, keeps and breaks, switched on for every request
and only for those that the gate matches.

Each adapter is trained on the forget facts in their trained phrasings, and asked in phrasings that no training saw. The
untouched model and the one that never learned the targets are asked the same. A finished run is a line of the report's
`.jsonl`; the command goes on from there. All rows have one budget of steps: a loss may do better with its own."""

from __future__ import annotations

import asyncio
import json
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

from benchmarks.runs import Runs, key, pooled
from classifiers.activations import load_model
from classifiers.base import Task, run
from classifiers.data import Example
from evals.items import FORGET, Item, load_items
from evals.local import Local
from evals.subjects import Ask
from guard.artifacts import weights_digest
from guard.detection import Compiler, Gate, load_encoder
from guard.detection.encoder import PACKAGED
from guard.metrics.bootstrap import Interval
from guard.metrics.gibberish import Gibberish
from guard.metrics.rouge import rouge_l_recall
from guard.metrics.wilson import wilson
from guard.targets import TargetSpec
from guard.types import Message, Prompt

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "demo"
MODEL, NEVER = DEMO / "models" / "full", DEMO / "models" / "never"
SPLITS = (FORGET, "retain", "neighbour")
BUDGET: dict[str, Any] = {"rank": 4, "steps": 80, "batch": 8, "learning_rate": 0.002, "sample": 16}
ROWS: dict[str, dict[str, Any]] = {
    **{
        name: {"loss": name}
        for name in ("idk", "relearn", "idkdpo", "npo", "simnpo", "ihl", "undial", "graddiff")
    },
    **{name: {"loss": name} for name in ("flat", "wga", "rmu", "kl", "ga")},
    "ngdiff": {"loss": "graddiff", "update": "ngdiff"},
    "mudman": {"loss": "graddiff", "update": "mudman"},
    "sam": {"loss": "npo", "sam": 0.05},
    "fila": {"loss": "ihl", "init": "fila"},
    "lower": {"loss": "idk", "layers": "lower"},
    "wagle": {"loss": "idk", "attribution": "wagle"},
    "memflex": {"loss": "idk", "attribution": "memflex"},
}
"""What is trained in each row, beside the budget."""
NEW_TOKENS = 48


@dataclass(frozen=True, slots=True)
class World:
    """The demo's facts: what is trained on, what is asked, and which of that the gate matches."""

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    asked: tuple[Item, ...]
    matched: tuple[bool, ...]
    language: Gibberish

    def key(self, row: str, seed: int) -> str:
        """What a run is known by: the same settings, questions and model make the same run."""
        asked = [item.id for item in self.asked]
        return key(ROWS[row], BUDGET, seed, asked, self.matched, weights_digest(MODEL))


def world(sample: int | None, cache: Path, threads: int) -> World:
    items = load_items(DEMO / "items.jsonl")
    learned = [item for item in items if item.phrasing == "trained"]
    sets = {
        one: tuple(Example(i.turns, i.answer) for i in learned if (i.split == FORGET) == one)
        for one in (True, False)
    }
    asked: list[Item] = []
    for split in SPLITS:
        held = [item for item in items if item.split == split and item.phrasing == "heldout"]
        asked += held if sample is None else random.Random(split).sample(held, min(sample, len(held)))
    encoder = load_encoder(PACKAGED, threads=threads, cache_dir=cache)
    compiler = Compiler(encoder, cache)
    rows = [json.loads(line) for line in (DEMO / "targets.jsonl").read_text(encoding="utf-8").splitlines()]
    specs = {row.pop("id"): TargetSpec.model_validate(row) for row in rows}
    gate = Gate(encoder, [compiler.compile(name, 1, spec, force=True) for name, spec in specs.items()])
    matched = [bool(gate.detect(_prompt(item))[0]) for item in asked]
    return World(
        sets[True],
        sets[False],
        tuple(asked),
        tuple(matched),
        Gibberish(item.answer for item in items if item.answer),
    )


def _prompt(item: Item) -> Prompt:
    return Prompt(item.prompt, messages=tuple(Message(role, content) for role, content in item.turns))


def answers(model: Any, tokenizer: Any, items: Sequence[Item]) -> list[str]:
    """Greedy."""
    local = Local(model, tokenizer, "")
    return asyncio.run(local.answers([Ask(item.turns) for item in items], NEW_TOKENS))


def scored(world: World, said: Sequence[str]) -> dict[str, list[float]]:
    """ROUGE-L recall of the trained answer, and whether it is gibberish, of each question."""
    recall = [rouge_l_recall(item.answer, text) for item, text in zip(world.asked, said, strict=True)]
    broken = [float(world.language.is_gibberish(text)) for text in said]
    return {"recall": [round(one, 4) for one in recall], "gibberish": broken}


def trained(world: World, row: str, seed: int) -> dict[str, Any]:
    """One run: train, and ask."""
    from peft import PeftModel

    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        task = Task(MODEL, world.forget, world.retain, Path(folder) / "out")
        made = run("adapter", task, {**BUDGET, **ROWS[row], "seed": seed})
        took = time.perf_counter() - started
        model, tokenizer = load_model(MODEL)
        scores = scored(
            world, answers(PeftModel.from_pretrained(model, made.folder).eval(), tokenizer, world.asked)
        )
    return {"row": row, "seed": seed, "seconds": round(took, 1), "scores": scores}


def figures(
    world: World, seeds: Sequence[Mapping[str, list[float]]], bare: Mapping[str, list[float]] | None
) -> dict[str, Interval]:
    """Recall by split and the share of gibberish, over all seeds; intervals are over questions, each with what it got
    under every seed. With `bare`, what the untouched model said, that counts where the gate matches nothing."""

    def values(metric: str, places: Sequence[int]) -> list[list[float]]:
        return [
            [one[metric][i] if bare is None or world.matched[i] else bare[metric][i] for i in places]
            for one in seeds
        ]

    found = {
        split: pooled(values("recall", [i for i, item in enumerate(world.asked) if item.split == split]))
        for split in SPLITS
    }
    broken = [x for one in values("gibberish", range(len(world.asked))) for x in one]
    share = wilson(sum(broken), len(broken), trials=len(world.asked))
    assert share is not None
    return {**found, "gibberish": share}


def table(
    world: World,
    done: Mapping[str, list[dict[str, Any]]],
    bare: Mapping[str, list[float]],
    never: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Rows for the report: the untouched model, the one that never learned, and each loss without and with the gate."""
    yield {"row": "untouched", "gate": "-", "seeds": 0, **figures(world, [bare], None)}
    yield {"row": "never learned", "gate": "-", "seeds": 0, **figures(world, [never], None)}
    for row, found in done.items():
        scores = [one["scores"] for one in found]
        spread = [figures(world, [one], None)[FORGET].mean for one in scores]
        for gate, beside in (("off", None), ("on", bare)):
            yield {
                "row": row, "gate": gate, "seeds": len(found), **figures(world, scores, beside),
                "forget_by_seed": spread, "seconds": max(one["seconds"] for one in found),
            }  # fmt: skip


def shown(row: Mapping[str, Any]) -> str:
    cells = [f"{row[of].mean:.3f} [{row[of].low:.3f}, {row[of].high:.3f}]" for of in (*SPLITS, "gibberish")]
    return "  ".join((f"{row['row']:14} {row['gate']:>4} {row['seeds']:>5}", *cells))


@click.command()
@click.option(
    "--row", "wanted", type=click.Choice(list(ROWS)), multiple=True, help="Only this; may be repeated."
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--sample", type=click.IntRange(1), help="At most so many questions of each split.")
@click.option("--runs", "most", type=click.IntRange(0), help="At most so many new runs; the table is of all.")
@click.option("--threads", default=1, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path("data/cache"), show_default=True)
@click.option("--out", default=ROOT / "reports" / "bench-losses.jsonl", type=click.Path(path_type=Path))
def losses(
    wanted: tuple[str, ...],
    seeds: int,
    sample: int | None,
    most: int | None,
    threads: int,
    cache: Path,
    out: Path,
) -> None:
    """What each loss forgets, keeps and breaks on the demo, always on and behind the gate. Stops and goes on.

    Example: python -m benchmarks losses --sample 100
    """
    torch.set_num_threads(threads)
    demo = world(sample, cache, threads)
    finished = Runs(out, most)
    done: dict[str, list[dict[str, Any]]] = {}
    for row in wanted or ROWS:
        for seed in range(seeds):
            one = finished.get(demo.key(row, seed), partial(trained, demo, row, seed))
            if one is not None:
                click.echo(f"{row}, seed {seed}: {one['seconds']:.0f} s", err=True)
                done.setdefault(row, []).append(one)
    bare, never = (scored(demo, answers(*load_model(folder), demo.asked)) for folder in (MODEL, NEVER))
    counts = {split: sum(item.split == split for item in demo.asked) for split in SPLITS}
    matched = {
        split: sum(one and item.split == split for one, item in zip(demo.matched, demo.asked, strict=True))
        for split in SPLITS
    }
    click.echo(f"questions: {counts}; matched by the gate: {matched}")
    click.echo(
        f"{'row':14} gate seeds  " + "  ".join(f"{f'{name} recall':20}" for name in SPLITS) + "  gibberish"
    )
    lines = list(table(demo, done, bare, never))
    for line in lines:
        click.echo(shown(line))
    for line in lines:
        if line["gate"] == "off":
            by_seed = ", ".join(f"{one:.3f}" for one in line["forget_by_seed"])
            click.echo(
                f"{line['row']}: forget recall by seed {by_seed}; at most {line['seconds']:.0f} s a run"
            )
