"""Pooled thresholds beside calibrated ones: the same targets, the same questions, and what each costs to register."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from evals import corpora
from evals.corpora import Trial
from evals.suites.detection import judge, sampled
from guard.detection import CompiledTarget, Compiler, Encoder, Gate, load_encoder
from guard.detection.encoder import PACKAGED
from guard.metrics.wilson import wilson

ROOT = Path(__file__).parents[1]


def calibrated(trial: Trial, compiler: Compiler) -> tuple[list[CompiledTarget], float]:
    """All targets of the trial, each compiled beside those before it, and seconds for each."""
    made: list[CompiledTarget] = []
    started = time.perf_counter()
    for target_id, spec in trial.targets.items():
        made.append(compiler.compile(target_id, 1, spec, made, force=True))
    return made, (time.perf_counter() - started) / len(made)


def pooled(
    trial: Trial, half: Sequence[CompiledTarget], fresh: Compiler
) -> tuple[list[CompiledTarget], float]:
    """The targets that are not in `half`, by what `fresh` measures for those that are, and seconds for each."""
    for number, target in enumerate(half):
        fresh.compile(target.target_id, 1, target.spec, half[:number], force=True)
    known = {target.target_id for target in half}
    made = list(half)
    started = time.perf_counter()
    for target_id, spec in trial.targets.items():
        if target_id not in known:
            made.append(fresh.compile(target_id, 1, spec, made, force=True, pooled=True))
    return made[len(half) :], (time.perf_counter() - started) / (len(made) - len(half))


def compared(trial: Trial, encoder: Encoder, cache: Path) -> dict[str, Any]:
    """Shares by sort of question under both sorts of thresholds. No target is judged by what was measured for itself:
    those of each half of the trial go by what was measured for the other."""
    own, seconds = calibrated(trial, Compiler(encoder, cache))
    by_others: list[CompiledTarget] = []
    for first in (0, 1):
        made, cost = pooled(trial, own[first::2], Compiler(encoder, cache))
        by_others += made
    gates = {"calibrated": Gate(encoder, own), "pooled": Gate(encoder, by_others)}
    verdicts = judge([(replace(trial, name=name), gate) for name, gate in gates.items()])
    rows = []
    for name, verdict in zip(gates, verdicts, strict=True):
        for sort in dict.fromkeys(one.question.sort for one in verdict):
            found = [bool(one.detectors) for one in verdict if one.question.sort == sort]
            interval = wilson(sum(found), len(found))
            assert interval is not None
            click.echo(
                f"{name:11} {sort:30} {sum(found):5} of {len(found):5}  {interval.mean:.4f} "
                f"[{interval.low:.4f}, {interval.high:.4f}]"
            )
            rows.append({"thresholds": name, "sort": sort, "matched": sum(found), "n": len(found)})
    drafted = sum("pooled" in target.calibration for target in by_others)
    click.echo(f"{drafted} of {len(by_others)} targets pooled; {seconds:.3f} s and {cost:.3f} s a target")
    return {"pooled": drafted, "seconds": {"calibrated": seconds, "pooled": cost}, "rows": rows}


@click.command()
@click.option(
    "--tofu", required=True, type=click.Path(exists=True, path_type=Path), help="TOFU as published."
)
@click.option("--benign", required=True, type=click.Path(exists=True, path_type=Path), help="Other prompts.")
@click.option("--sample", type=click.IntRange(1), help="At most so many questions of each sort.")
@click.option("--threads", default=1, show_default=True, help="Of the encoder.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path("data/cache"), show_default=True)
@click.option("--out", default=ROOT / "reports" / "bench-pooled.json", type=click.Path(path_type=Path))
def pooling(tofu: Path, benign: Path, sample: int | None, threads: int, cache: Path, out: Path) -> None:
    """What the thresholds of other targets find and match by mistake, beside a target's own: TOFU's forget10.

    Example: python -m benchmarks pooling --tofu data/tofu --benign data/benign
    """
    trial = list(corpora.tofu(tofu, corpora.benign(benign), described=False))[-1]
    encoder = load_encoder(PACKAGED, threads=threads, cache_dir=cache)
    report = compared(replace(trial, questions=sampled(trial, sample, 0)), encoder, cache)
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
