"""TOFU's own figures of losses of the adapter trainer, on a small subject that learned the benchmark, beside its
retain-only twin: forget recall, where the truth ratios lie, forget quality and model utility.

The adapter is on for every question: TOFU asks what became of the model, and knows no gate. Everything is computed as
published, with both variants of the truth ratio (`guard.metrics.tofu`)."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click
import torch

from benchmarks.runs import Runs, key, pooled
from classifiers.activations import load_model
from classifiers.base import Task, run
from classifiers.data import Example
from evals.local import Local
from evals.published.base import Measured, Source
from evals.published.tofu import KEPT, Tofu, against, utility
from guard.artifacts import weights_digest
from guard.metrics.tofu import Mean

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
BUDGET: dict[str, Any] = {"rank": 16, "steps": 63, "batch": 16, "learning_rate": 0.001, "sample": 16}
"""Five epochs of forget05, as in TOFU's own runs."""
UNKNOWING = ("I don't know.", "I'm not sure about that.", "I have no information about that.")
ROWS: dict[str, dict[str, Any]] = {
    "npo": {"loss": "npo"},
    "simnpo": {"loss": "simnpo"},
    "graddiff": {"loss": "graddiff"},
    "ihl": {"loss": "ihl"},
    "idkdpo": {"loss": {"name": "idkdpo", "beta": 0.02}, "refusals": UNKNOWING},
}
"""What is trained in each row, beside the budget. Refusals that the subject has never seen become likelier by so much
that a larger beta is content with that, and leaves the true answers where they are."""


def examples(source: Source, name: str) -> tuple[Example, ...]:
    """Each question once: the published sets hold one twice."""
    rows = source.rows(f"{name}.json")
    found = {row["question"]: Example((("user", row["question"]),), row["answer"]) for row in rows}
    return tuple(found.values())


def measured(asked: Tofu, model: Any, tokenizer: Any) -> dict[str, Any]:
    return {"rows": asyncio.run(asked.measure(Local(model, tokenizer, ""))).rows}


def trained(asked: Tofu, subject: Path, data: str, split: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """One run: train, and ask."""
    from peft import PeftModel

    source, kept = Source(data), f"retain{100 - int(split.removeprefix('forget')):02}"
    retain = tuple(example for name in (kept, *KEPT[1:]) for example in examples(source, name))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        task = Task(subject, examples(source, split), retain, Path(folder) / "out")
        made = run("adapter", task, dict(settings))
        took = time.perf_counter() - started
        model, tokenizer = load_model(subject)
        return {
            "seconds": round(took, 1),
            **measured(asked, PeftModel.from_pretrained(model, made.folder).eval(), tokenizer),
        }


def figures(found: Measured, never: Measured) -> dict[str, float]:
    """TOFU's aggregates of one model."""
    told = {name: statistics.fmean(found.of("forget", name)) for name in ("recall", "probability")}
    for mean in get_args(Mean):
        quality, direction = against(found, never, mean, 0)
        told |= {f"quality, {mean}": quality, f"direction, {mean}": direction["mean"]}
        told[f"utility, {mean}"] = utility(found, mean, 0)["mean"]
    return told


def lines(rows: Mapping[str, Sequence[Measured]], never: Measured) -> Iterator[str]:
    """Of each row every figure: its mean over the seeds, and from the least to the most."""
    for name, runs in rows.items():
        found = [figures(one, never) for one in runs]
        yield f"{name}, {len(found)} seeds"
        for metric in found[0]:
            values = sorted(one[metric] for one in found)
            show = "{:.2e}" if metric.startswith("quality") else "{:.3f}"
            low, mean, high = map(show.format, (values[0], statistics.fmean(values), values[-1]))
            yield f"  {metric:22} {mean} ({low} to {high})"
        yield from _intervals(runs, never)


def _intervals(runs: Sequence[Measured], never: Measured) -> Iterator[str]:
    """Over questions, each with what it got under every seed."""
    ratio = "ln R, geometric"
    reference = never.of("forget", ratio)
    apart = [[a - b for a, b in zip(one.of("forget", ratio), reference, strict=True)] for one in runs]
    found = {
        "recall": pooled([one.of("forget", "recall") for one in runs]),
        "direction, geometric": pooled(apart),
    }
    for what, interval in found.items():
        yield f"  {what:22} {interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}], n = {interval.n}"


@click.command("tofu")
@click.option(
    "--subject", default=SHARED / "models" / "tofu-full", type=click.Path(path_type=Path, exists=True)
)
@click.option(
    "--never", required=True, type=click.Path(path_type=Path, exists=True), help="Its retain-only twin."
)
@click.option("--data", default=SHARED / "data" / "tofu", type=click.Path(path_type=Path, exists=True))
@click.option("--split", default="forget05", show_default=True)
@click.option(
    "--row", "wanted", type=click.Choice(list(ROWS)), multiple=True, help="Only this; may be repeated."
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--runs", "most", type=click.IntRange(0), help="At most so many new runs; the table is of all.")
@click.option("--threads", default=1, show_default=True)
@click.option("--out", default=ROOT / "reports" / "bench-tofu.jsonl", type=click.Path(path_type=Path))
def tofu_command(
    subject: Path, never: Path, data: Path, split: str, wanted: tuple[str, ...], seeds: int, most: int | None,
    threads: int, out: Path,
) -> None:  # fmt: skip
    """TOFU's forget quality and model utility of unlearning adapters. Stops and goes on; `twin` makes --never.

    Example: python -m benchmarks tofu --never /tmp/retain95
    """
    torch.set_num_threads(threads)
    runs, of = Runs(out, most), weights_digest(subject)
    asked = Tofu(Source(str(data)), None, 0, split)

    def model(folder: Path) -> list[Measured]:
        made = runs.get(key(split, weights_digest(folder)), lambda: measured(asked, *load_model(folder)))
        return [Measured(made["rows"])] if made else []

    reference = model(never)
    if not reference:
        raise click.ClickException(
            "The never-learned model must be measured first; allow one more of --runs."
        )
    rows = {"untouched": model(subject), "never learned": reference}
    for row in wanted or ROWS:
        for seed in range(seeds):
            settings = {**BUDGET, **ROWS[row], "seed": seed}
            make = partial(trained, asked, subject, str(data), split, settings)
            made = runs.get(key(split, of, settings), make)
            if made is not None:
                rows.setdefault(row, []).append(Measured(made["rows"]))
                click.echo(f"{row}, seed {seed}: {made['seconds']:.0f} s to train", err=True)
    for line in lines({name: found for name, found in rows.items() if found}, reference[0]):
        click.echo(line)
