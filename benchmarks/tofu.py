"""TOFU's own figures of losses of the adapter trainer, on a small subject that learned the benchmark, beside its
retain-only twin: forget recall, where the truth ratios lie, forget quality and model utility.

The adapter is on for every question: TOFU asks what became of the model, and knows no gate. Everything is computed as
published, with both variants of the truth ratio (`guard.metrics.tofu`)."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click
import torch

from benchmarks.local import Local
from benchmarks.runs import Runs, key
from classifiers.activations import load_model
from classifiers.base import Task, run
from classifiers.data import Example
from evals import tofu
from guard.artifacts import weights_digest
from guard.metrics.bootstrap import mean_interval, paired_difference
from guard.metrics.tofu import Mean, forget_quality, model_utility

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
BUDGET: dict[str, Any] = {"rank": 16, "steps": 63, "batch": 16, "learning_rate": 0.001, "sample": 16}
"""Five epochs of forget05, as in TOFU's own runs."""
UNKNOWING = ("I don't know.", "I'm not sure about that.", "I have no information about that.")
ROWS: dict[str, dict[str, Any]] = {
    "npo": {"loss": "npo"},
    "simnpo": {"loss": "simnpo", "gamma": 0.125},
    "graddiff": {"loss": "graddiff"},
    "ihl": {"loss": "ihl"},
    "idkdpo": {"loss": "idkdpo", "refusals": UNKNOWING},
}
"""What is trained in each row, beside the budget."""


def examples(path: Path) -> tuple[Example, ...]:
    """Each question once: the published sets hold one twice."""
    found = {row.question: Example((("user", row.question),), row.answer) for row in tofu.rows(path)}
    return tuple(found.values())


def measured(model: Any, tokenizer: Any, asked: Mapping[str, Sequence[tofu.Row]]) -> dict[str, Any]:
    log = tofu.log(Local(model, tokenizer), asked)
    return {name: [asdict(one) for one in scored] for name, scored in log.items()}


def trained(
    subject: Path,
    data: Path,
    split: str,
    settings: Mapping[str, Any],
    asked: Mapping[str, Sequence[tofu.Row]],
) -> dict[str, Any]:
    """One run: train, and ask."""
    from peft import PeftModel

    keep = f"retain{100 - int(split.removeprefix('forget')):02}"
    retain = [e for name in (keep, *tofu.KEPT[1:]) for e in examples(data / f"{name}.json")]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        task = Task(subject, examples(data / f"{split}.json"), tuple(retain), Path(folder) / "out")
        made = run("adapter", task, dict(settings))
        took = time.perf_counter() - started
        model, tokenizer = load_model(subject)
        log = measured(PeftModel.from_pretrained(model, made.folder).eval(), tokenizer, asked)
    return {"seconds": round(took, 1), "log": log}


def read(log: Mapping[str, Any]) -> tofu.Log:
    return {
        name: [tofu.Scored(**{**one, "wrong": tuple(one["wrong"])}) for one in scored]
        for name, scored in log.items()
    }


def figures(log: tofu.Log, never: tofu.Log) -> dict[str, float]:
    """TOFU's aggregates of one model. `direction` is the mean of ln R less the never-learned model's: below 0 the model
    still knows more, above 0 it shuns the truth."""
    forget, reference = log["forget"], never["forget"]
    found = {"recall": sum(s.recall for s in forget) / len(forget)}
    found["probability"] = sum(math.exp(s.answer) for s in forget) / len(forget)
    for mean in get_args(Mean):
        own, other = ([s.log_ratio(mean) for s in scored] for scored in (forget, reference))
        found[f"quality, {mean}"] = forget_quality(own, other)
        found[f"direction, {mean}"] = (sum(own) - sum(other)) / len(own)
        found[f"utility, {mean}"] = model_utility(list(tofu.nine(log, mean).values()))
    return found


def lines(rows: Mapping[str, Sequence[tofu.Log]], never: tofu.Log) -> Iterator[str]:
    """Of each row every figure: its mean over the seeds, and from the least to the most."""
    for name, logs in rows.items():
        found = [figures(log, never) for log in logs]
        yield f"{name}, {len(found)} seeds"
        for metric in found[0]:
            values = sorted(one[metric] for one in found)
            show = "{:.2e}" if metric.startswith("quality") else "{:.3f}"
            low, mean, high = map(show.format, (values[0], sum(values) / len(values), values[-1]))
            yield f"  {metric:22} {mean} ({low} to {high})"
        yield from _intervals(logs, never)


def _intervals(logs: Sequence[tofu.Log], never: tofu.Log) -> Iterator[str]:
    """Over questions, each with what it got under every seed."""
    places = list(range(len(never["forget"]))) * len(logs)
    recall = mean_interval([s.recall for log in logs for s in log["forget"]], groups=places)
    own = [s.log_ratio("geometric") for log in logs for s in log["forget"]]
    ratio = paired_difference(
        own, [s.log_ratio("geometric") for s in never["forget"]] * len(logs), groups=places
    )
    for what, one in (("recall", recall), ("direction, geometric", ratio)):
        assert one is not None
        yield f"  {what:22} {one.mean:.3f} [{one.low:.3f}, {one.high:.3f}], n = {one.n}"


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
    asked, runs, of = tofu.sets(data, split), Runs(out, most), weights_digest(subject)

    def model(folder: Path) -> list[tofu.Log]:
        made = runs.get(
            key(split, weights_digest(folder)), lambda: {"log": measured(*load_model(folder), asked)}
        )
        return [read(made["log"])] if made else []

    reference = model(never)
    if not reference:
        raise click.ClickException(
            "The never-learned model must be measured first; allow one more of --runs."
        )
    rows = {"untouched": model(subject), "never learned": reference}
    for row in wanted or ROWS:
        for seed in range(seeds):
            settings = {**BUDGET, **ROWS[row], "seed": seed}

            def make(settings: dict[str, Any] = settings) -> dict[str, Any]:
                return trained(subject, data, split, settings, asked)

            made = runs.get(key(split, of, settings), make)
            if made is not None:
                rows.setdefault(row, []).append(read(made["log"]))
                click.echo(f"{row}, seed {seed}: {made['seconds']:.0f} s to train", err=True)
    for line in lines({name: logs for name, logs in rows.items() if logs}, reference[0]):
        click.echo(line)
