"""What the gate finds and what it must leave alone, on public benchmarks and without a server.

Targets are registered one after the other, each compiled beside those before it, as the register does. Then every
question is judged by the gate. A question about a target counts as found when that very target is found in it; any
other question counts as a false positive when any target is. Shares come with Wilson intervals. Where forget splits
contain each other, the pooled interval counts a question once, however many splits it is in.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from evals.corpora import Question, Trial
from evals.report import Report, as_cell
from guard.detection import CompiledTarget, Compiler, Encoder, Gate
from guard.errors import TargetRefused
from guard.metrics.wilson import wilson
from guard.types import Detection, Message, Prompt

POOLED = "pooled"


@dataclass(frozen=True, slots=True)
class Bar:
    """What the pooled share of one sort of questions must reach (`at_least`) or must not exceed."""

    sort: str
    limit: float
    at_least: bool = False


NEAR = (
    Bar("retain", 0.005),
    Bar("retain, shares a name word", 0.02),
    Bar("real_authors, world_facts", 1 / 217),
    Bar("Arena-Hard, MT-Bench", 0.003),
    Bar("nq_open", 0.005),
)
BARS: dict[str, tuple[Bar, ...]] = {
    "TOFU": (Bar("named", 0.99, True), Bar("named, paraphrased", 0.98, True), *NEAR),
    "TOFU, row 0 registered": (
        Bar("named", 0.99, True),
        Bar("named, paraphrased", 0.98, True),
        Bar("row 0, paraphrased", 0.8, True),
        *NEAR,
    ),
    "LUME": (
        *(Bar(task, 0.95, True) for task in ("Task1", "Task2", "Task3")),
        *(Bar(f"{task}, retain", 0.02) for task in ("Task1", "Task2", "Task3")),
    ),
    "TOFU, other languages": (),
    "demo": (),
}


@dataclass(frozen=True, slots=True)
class Judged:
    """One question after the gate: which detectors found its target, or, for a question about none, any."""

    trial: str
    question: Question
    detectors: tuple[str, ...]

    def as_dict(self, block: str) -> dict[str, Any]:
        return {
            "id": f"{block}/{self.trial}/{self.question.sort}/{self.question.id}",
            "split": self.trial,
            "phrasing": self.question.sort,
            "target": self.question.target,
            "detectors": list(self.detectors),
            "scores": {"found": float(bool(self.detectors))},
        }


def run(
    blocks: dict[str, Sequence[Trial]],
    encoder: Encoder,
    compiler: Compiler,
    *,
    seed: int = 0,
    sample: int | None = None,
) -> Report:
    """All trials of all blocks; `sample` questions of each sort at most. A block's trials are pooled."""
    report = Report("detection", seed=seed)
    asked: list[tuple[str, Trial, Gate]] = []
    for block, trials in blocks.items():
        for trial in trials:
            started = time.perf_counter()
            compiled, refused = register(trial, compiler)
            took = time.perf_counter() - started
            report.results.setdefault("registered", []).append(
                {"block": block, "trial": trial.name, "n": len(compiled), "seconds": took, "refused": refused}
            )
            asked.append(
                (block, replace(trial, questions=sampled(trial, sample, seed)), Gate(encoder, compiled))
            )
    verdicts = judge([(trial, gate) for _, trial, gate in asked])
    for block in blocks:
        judged = [
            one for (of, *_), verdict in zip(asked, verdicts, strict=True) if of == block for one in verdict
        ]
        _tables(report, block, judged)
        report.n += len(judged)
        report.rows += [one.as_dict(block) for one in judged]
    report.params = {"sample": sample, "encoder": encoder.name}
    report.inputs["encoder"] = {"name": encoder.name, "sha256": encoder.digest}
    return report


def register(trial: Trial, compiler: Compiler) -> tuple[list[CompiledTarget], dict[str, str]]:
    """Compiles each target beside those before it; what is refused is not enforced, and told."""
    compiled: list[CompiledTarget] = []
    refused: dict[str, str] = {}
    for target_id, spec in trial.targets.items():
        try:
            compiled.append(compiler.compile(target_id, 1, spec, compiled))
        except TargetRefused as error:
            refused[target_id] = error.message
    return compiled, refused


def sampled(trial: Trial, sample: int | None, seed: int) -> tuple[Question, ...]:
    """At most `sample` questions of each sort, in their order."""
    if sample is None:
        return trial.questions
    order = list(range(len(trial.questions)))
    random.Random(seed).shuffle(order)
    taken: Counter[str] = Counter()
    kept = []
    for i in order:
        sort = trial.questions[i].sort
        taken[sort] += 1
        if taken[sort] <= sample:
            kept.append(i)
    return tuple(trial.questions[i] for i in sorted(kept))


def judge(asked: Sequence[tuple[Trial, Gate]]) -> list[list[Judged]]:
    """Every trial's questions judged by its gate, each by itself. The same text is asked of all gates in turn, so that
    it is embedded once."""
    texts = dict.fromkeys(question.text for trial, _ in asked for question in trial.questions)
    wanted = [{question.text for question in trial.questions} for trial, _ in asked]
    found: list[dict[str, tuple[Detection, ...]]] = [{} for _ in asked]
    for number, text in enumerate(texts, 1):
        prompt = Prompt(text, messages=(Message("user", text),))
        for i, (_, gate) in enumerate(asked):
            if text in wanted[i]:
                found[i][text] = gate.detect(prompt)[0]
        if number % 500 == 0:
            print(f"{number} of {len(texts)} questions", file=sys.stderr)
    return [
        [_judged(trial.name, question, found[i][question.text]) for question in trial.questions]
        for i, (trial, _) in enumerate(asked)
    ]


def _judged(trial: str, question: Question, found: Sequence[Detection]) -> Judged:
    wanted = {d.detector for d in found if question.target in (None, d.target_id)}
    return Judged(trial, question, tuple(sorted(wanted)))


def _tables(report: Report, block: str, judged: Sequence[Judged]) -> None:
    trials = list(dict.fromkeys(one.trial for one in judged))
    bars = {bar.sort: bar for bar in BARS[block]}
    for title, keep in (("found", _about_a_target), ("false positives", _about_none)):
        table = []
        for sort in dict.fromkeys(one.question.sort for one in judged if keep(one)):
            rows = [one for one in judged if one.question.sort == sort]
            for trial in (*trials, POOLED) if len(trials) > 1 else trials:
                part = [one for one in rows if trial in (one.trial, POOLED)]
                table.append(_line(sort, trial, part))
            if sort in bars:
                _criterion(report, block, bars[sort], rows)
        columns = ["questions", "targets of", "n", "share", "count", "by detector"]
        report.table(f"{block}: {title}", columns, table, "share [95 % Wilson interval]")


def _about_a_target(one: Judged) -> bool:
    return one.question.target is not None


def _about_none(one: Judged) -> bool:
    return one.question.target is None


def _line(sort: str, trial: str, part: Sequence[Judged]) -> list[Any]:
    hits = [one for one in part if one.detectors]
    share = wilson(len(hits), len(part), trials=len({one.question.id for one in part}))
    by = Counter("+".join(one.detectors) for one in hits)
    shown = ", ".join(f"{name} {count}" for name, count in by.most_common())
    return [sort, trial, len(part), as_cell(share), len(hits), shown]


def _criterion(report: Report, block: str, bar: Bar, rows: Sequence[Judged]) -> None:
    share = sum(bool(one.detectors) for one in rows) / len(rows)
    # a limit like 1 in 217 is met by exactly that
    passed = share >= bar.limit if bar.at_least else share <= bar.limit + 1e-12
    word = "at least" if bar.at_least else "at most"
    report.criterion(f"{block}: {bar.sort}, {word}", share, bar.limit, passed)
