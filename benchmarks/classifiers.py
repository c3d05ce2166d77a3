"""Trained detectors beside the gate that needs no training: TOFU and LUME, the rows that `evals detection` registers.

For every target the two detectors are trained on its registered rows and nothing else. LUME registers one or two rows
of a subject, too few for that: there the subjects of a task name detectors that were trained on the rows of all. Then
every question is judged once, and it is counted who finds it: the untrained gate, each trained detector alone, and the
gate with them."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from classifiers.base import Task, run
from classifiers.data import Example
from classifiers.encoding import Encoding
from classifiers.prompts import FEWEST
from evals import corpora
from evals.corpora import Trial
from evals.suites.detection import Judged, judge, register, sampled
from guard.detection import CompiledTarget, Compiler, Encoder, Gate, Head, read_head
from guard.metrics.wilson import wilson
from guard.targets import TargetSpec

ROOT = Path(__file__).parents[1]
UNTRAINED = frozenset({"lexical", "semantic", "classifier"})
# What is trained: the trainer with its parameters. Of the first, the threshold is measured on ordinary prompts alone.
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "ood, no near misses": ("ood", {"near": 0}),
    "ood": ("ood", {}),
    "trained": ("classifier", {}),
}


def trials(tofu: Path | None, lume: Path | None, splits: Sequence[str], seed: int) -> Iterator[Trial]:
    """TOFU's forget splits, and LUME's tasks each by itself."""
    if tofu:
        yield from (trial for trial in corpora.tofu(tofu, [], described=False) if trial.name in splits)
    if lume:
        whole = corpora.lume(lume, seed)
        for task in corpora.LUME_TASKS:
            asked = tuple(question for question in whole.questions if question.sort.startswith(task))
            known = {question.target for question in asked}
            yield Trial(task, {name: of for name, of in whole.targets.items() if name in known}, asked)


def fewer(trial: Trial, targets: int | None, sample: int | None, seed: int) -> Trial:
    """The first `targets` of it with the questions about them and about none, `sample` of each sort."""
    kept = dict(list(trial.targets.items())[:targets])
    asked = tuple(q for q in trial.questions if q.target is None or q.target in kept)
    smaller = Trial(trial.name, kept, asked)
    return replace(smaller, questions=sampled(smaller, sample, seed))


def heads(
    specs: Sequence[TargetSpec], wanted: Sequence[str], encoder: Encoder, encoding: Encoding
) -> dict[str, Head]:
    """What is trained on the rows of these targets together, by name."""
    names = tuple(name for spec in specs for name in spec.names())
    forget = {prompt: Example((("user", prompt),)) for spec in specs for prompt in spec.examples}
    made: dict[str, Head] = {}
    for name in wanted:
        trainer, params = TRAINED[name]
        with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
            task = Task(Path(), tuple(forget.values()), (), Path(folder), names=names, encoder=encoding)
            made[name] = read_head(run(trainer, task, params), encoder)
    return made


def groups(compiled: Sequence[CompiledTarget]) -> list[list[CompiledTarget]]:
    """The targets that are trained for together: each by itself, or all where one has too few rows for that."""
    if all(len(target.spec.examples) >= FEWEST for target in compiled):
        return [[target] for target in compiled]
    return [list(compiled)]


def judged(
    trial: Trial,
    compiled: Sequence[CompiledTarget],
    trained: Mapping[str, Mapping[str, Head]],
    encoder: Encoder,
) -> dict[str, list[Judged]]:
    """The verdicts of the gate with the heads of each name alone in its own, by that name."""

    def gate(name: str) -> Gate:
        return Gate(encoder, [target.with_heads([trained[target.target_id][name]]) for target in compiled])

    names = list(next(iter(trained.values())))
    return dict(zip(names, judge([(trial, gate(name)) for name in names]), strict=True))


def rows(trial: Trial, found: Mapping[str, Sequence[Judged]]) -> Iterator[dict[str, Any]]:
    """One for each sort of questions and each way to judge them."""
    for sort in dict.fromkeys(question.sort for question in trial.questions):
        own = {name: [one for one in verdict if one.question.sort == sort] for name, verdict in found.items()}
        first = next(iter(own.values()))
        hits = {"untrained gate": [not UNTRAINED.isdisjoint(one.detectors) for one in first]}
        for name, verdict in own.items():
            hits[f"{name}, alone"] = [not UNTRAINED.issuperset(one.detectors) for one in verdict]
            hits[f"gate with {name}"] = [bool(one.detectors) for one in verdict]
        about = "found" if any(one.question.target for one in first) else "matched by mistake"
        for how, of in hits.items():
            interval = wilson(sum(of), len(of))
            assert interval is not None
            yield {
                "trial": trial.name, "sort": sort, "counts": about, "by": how, "hits": sum(of), "n": len(of),
                "low": interval.low, "high": interval.high,
            }  # fmt: skip


def measure(
    trial: Trial, wanted: Sequence[str], encoder: Encoder, compiler: Compiler, encoding: Encoding
) -> dict[str, Any]:
    """The table of one trial, printed and returned."""
    compiled, refused = register(trial, compiler)
    started = time.perf_counter()
    trained: dict[str, dict[str, Head]] = {}
    for number, group in enumerate(of := groups(compiled), 1):
        made = heads([target.spec for target in group], wanted, encoder, encoding)
        trained |= {target.target_id: made for target in group}
        print(f"{trial.name}: {number} of {len(of)} trained", file=sys.stderr)
    took = (time.perf_counter() - started) / len(of)
    together = "each by itself" if len(of) == len(compiled) else "all together"
    click.echo(
        f"\n{trial.name}: {len(compiled)} targets, {len(refused)} refused; trained for {together}, {took:.1f} s"
    )
    table = list(rows(trial, judged(trial, compiled, trained, encoder)))
    for row in table:
        click.echo(
            f"{row['sort']:30} {row['counts']:18} {row['by']:32} {row['hits']:5} of {row['n']:5}  "
            f"{row['hits'] / row['n']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
        )
    return {
        "trial": trial.name,
        "targets": len(compiled),
        "trained": together,
        "seconds": took,
        "rows": table,
    }


@click.command()
@click.option("--tofu", type=click.Path(exists=True, path_type=Path), help="TOFU as published.")
@click.option(
    "--lume", type=click.Path(exists=True, path_type=Path), help="LUME: forget.jsonl and retain.jsonl."
)
@click.option("--split", "splits", multiple=True, default=("forget01", "forget05"), show_default=True)
@click.option(
    "--detector",
    "wanted",
    type=click.Choice(list(TRAINED)),
    multiple=True,
    help="Only this; may be repeated.",
)
@click.option("--targets", type=click.IntRange(1), help="At most so many targets of each trial.")
@click.option("--sample", type=click.IntRange(1), help="At most so many questions of each sort.")
@click.option("--seed", default=0, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path("data/cache"), show_default=True)
@click.option("--out", default=ROOT / "reports" / "bench-classifiers.json", type=click.Path(path_type=Path))
def classifiers(
    tofu: Path | None,
    lume: Path | None,
    splits: tuple[str, ...],
    wanted: tuple[str, ...],
    targets: int | None,
    sample: int | None,
    seed: int,
    cache: Path,
    out: Path,
) -> None:
    """Recall and near-domain false positives of trained detectors, beside the gate's that needs no training.

    Example: python -m benchmarks classifiers --tofu data/tofu --lume data/lume --sample 300
    """
    if not (tofu or lume):
        raise click.UsageError("Give --tofu, --lume or both.")
    encoding = Encoding(folder=cache)
    encoder = encoding.load()
    compiler = Compiler(encoder, cache)
    chosen = [fewer(trial, targets, sample, seed) for trial in trials(tofu, lume, splits, seed)]
    report = [measure(trial, wanted or tuple(TRAINED), encoder, compiler, encoding) for trial in chosen]
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
