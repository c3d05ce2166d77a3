"""Requests one after the other on the demo world: does the tenth undo the first nine, and does removing one restore it.

Each of ten entities is unlearned by an adapter of its own, trained beside those before it, with O3's orthogonal penalty
and without. After each request all questions are asked in phrasings that no training saw, in two forms: `merged`, the
sum of all adapters so far on for every request, and `own`, as the server does it: the adapter of the target that
matches the question best, and none where nothing matches. What is finished lies beside the report; the command goes on
from there."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.losses import BUDGET, DEMO, MODEL, NEVER, ROOT, answers
from benchmarks.runs import Runs, key
from classifiers import lora, merge
from classifiers.activations import load_model
from classifiers.base import Task, run
from classifiers.data import Example
from evals.items import FORGET, Item, load_items
from guard import artifacts
from guard.artifacts import Artifact, weights_digest
from guard.detection import Compiler, Gate, load_encoder
from guard.detection.encoder import PACKAGED
from guard.errors import ArtifactError
from guard.metrics.bootstrap import Interval, mean_interval
from guard.metrics.rouge import rouge_l_recall
from guard.targets import TargetSpec
from guard.types import Message, Prompt

TENTH = "teric-pennby"  # known to the model, and no target of the demo
REMOVED = 3  # the fourth request
ARMS = {"orthogonal": 0.1, "not orthogonal": 0.0}
Scores = list[float]


@dataclass(frozen=True, slots=True)
class World:
    """Ten requests, the questions about each and about what must stay, and the requests whose targets match a question,
    the surest first."""

    requests: tuple[str, ...]
    learned: Mapping[str, tuple[Example, ...]]
    retain: tuple[Example, ...]
    asked: tuple[Item, ...]
    matches: tuple[tuple[int, ...], ...]

    def about(self, request: int) -> list[int]:
        """The questions about it."""
        return [i for i, item in enumerate(self.asked) if item.entity == self.requests[request]]

    def others(self) -> list[int]:
        """The questions about nothing that is ever asked to go."""
        return [i for i, item in enumerate(self.asked) if item.entity not in self.requests]

    def served(self, question: int, active: Sequence[int]) -> int | None:
        """The request whose adapter answers a question, of the active ones."""
        return next((request for request in self.matches[question] if request in active), None)


def world(sample: int, cache: Path, threads: int) -> World:
    items = load_items(DEMO / "items.jsonl")
    rows = [json.loads(line) for line in (DEMO / "targets.jsonl").read_text(encoding="utf-8").splitlines()]
    by_name = {item.entity.replace("-", " "): item.entity for item in items}
    requests = (*(by_name[row["name"].casefold()] for row in rows), TENTH)
    trained = [item for item in items if item.phrasing == "trained"]
    learned = {one: tuple(_example(i) for i in trained if i.entity == one) for one in requests}
    rest = [item for item in trained if item.split != FORGET and item.entity not in requests]
    asked: list[Item] = []
    for entity in (*requests, None):
        held = [
            i for i in items
            if i.phrasing == "heldout" and i.answer and (
                i.entity == entity if entity else i.split in ("retain", "neighbour") and i.entity not in requests
            )
        ]  # fmt: skip
        asked += random.Random(entity or "rest").sample(
            held, min(sample if entity else 3 * sample, len(held))
        )
    specs = [TargetSpec.model_validate({k: v for k, v in row.items() if k != "id"}) for row in rows]
    specs.append(
        TargetSpec(
            name=TENTH.replace("-", " ").title(), examples=tuple(e.turns[-1][1] for e in learned[TENTH])
        )
    )
    encoder = load_encoder(PACKAGED, threads=threads, cache_dir=cache)
    compiler = Compiler(encoder, cache)
    gate = Gate(encoder, [compiler.compile(str(i), 1, spec, force=True) for i, spec in enumerate(specs)])
    return World(
        requests, learned, tuple(map(_example, rest)), tuple(asked), tuple(_matches(gate, i) for i in asked)
    )


def _example(item: Item) -> Example:
    return Example(item.turns, item.answer)


def _matches(gate: Gate, item: Item) -> tuple[int, ...]:
    prompt = Prompt(item.prompt, messages=tuple(Message(role, content) for role, content in item.turns))
    found = sorted(gate.detect(prompt)[0], key=lambda d: -d.score)
    return tuple(dict.fromkeys(int(d.target_id) for d in found))


@dataclass(frozen=True, slots=True)
class Arm:
    """The ten adapters of one way of training, each beside those before it."""

    world: World
    weight: float
    folder: Path

    def key(self, *about: Any) -> str:
        return key(BUDGET, self.weight, self.world.requests, weights_digest(MODEL), *about)

    def asked(self, *about: Any) -> str:
        """The key of what these questions are answered."""
        return self.key([item.id for item in self.world.asked], *about)

    def trained(self) -> list[Artifact]:
        """Those that are not there yet are trained now."""
        made: list[Artifact] = []
        for number, request in enumerate(self.world.requests):
            place = self.folder / self.key(number)
            try:
                made.append(artifacts.read(place))
            except ArtifactError:
                task = Task(
                    MODEL, self.world.learned[request], self.world.retain, place, adapters=tuple(made)
                )
                made.append(run("adapter", task, {**BUDGET, "orthogonal": self.weight}))
                click.echo(f"request {number + 1}, {request}: trained", err=True)
        return made


class Asking:
    """Asks the model with adapters added; what was asked before is in `runs`."""

    def __init__(self, world: World, runs: Runs) -> None:
        self._world, self._runs = world, runs
        self._model, self._tokenizer = load_model(MODEL)

    def once(self, about: str, pairs: lora.Pairs, questions: Sequence[int]) -> Scores:
        """Recall of the trained answer, question by question."""

        def make() -> dict[str, Any]:
            items = [self._world.asked[i] for i in questions]
            with lora.added(self._model, pairs):
                texts = answers(self._model, self._tokenizer, items)
            return {"recall": recalls(items, texts)}

        found = self._runs.get(about, make)
        assert found is not None
        return list(found["recall"])


def recalls(items: Sequence[Item], texts: Sequence[str]) -> Scores:
    return [round(rouge_l_recall(item.answer, text), 4) for item, text in zip(items, texts, strict=True)]


def served(world: World, arm: Arm, asking: Asking) -> tuple[Callable[[Sequence[int]], Scores], ...]:
    """What is recalled, question by question, with such requests in force: merged, and each by its own adapter."""
    made = [lora.read(one) for one in arm.trained()]
    everything = range(len(world.asked))
    bare = asking.once(Arm(world, 0.0, arm.folder).asked("bare"), {}, everything)
    own = {
        (question, request): score
        for request in range(len(made))
        for places in [[i for i in everything if request in world.matches[i]]]
        for question, score in zip(
            places, asking.once(arm.asked("own", request, places), made[request], places), strict=True
        )
    }

    def merged(active: Sequence[int]) -> Scores:
        if not active:
            return bare
        chosen, _ = merge.merged([made[i] for i in active], [1.0] * len(active), merge.MergeParams(how="sum"))
        return asking.once(arm.asked("merged", list(active)), chosen, everything)

    def matched(active: Sequence[int]) -> Scores:
        chosen = [(i, world.served(i, active)) for i in everything]
        return [bare[i] if request is None else own[i, request] for i, request in chosen]

    return merged, matched


def mean(scores: Sequence[float], places: Sequence[int]) -> Interval:
    found = mean_interval([scores[i] for i in places])
    assert found is not None
    return found


def shown(of: Interval) -> str:
    return f"{of.mean:.3f} [{of.low:.3f}, {of.high:.3f}], n = {of.n}"


def told(world: World, recall: Callable[[Sequence[int]], Scores]) -> Iterator[str]:
    """The matrix, what was forgotten, and what removing one request does."""
    count = len(world.requests)
    yield "after  " + " ".join(f"{i + 1:>5}" for i in range(count)) + "  retained"
    for done in range(count + 1):
        scores = recall(range(done))
        cells = " ".join(f"{mean(scores, world.about(i)).mean:5.2f}" for i in range(count))
        yield f"{done:>5}  {cells}  {shown(mean(scores, world.others()))}"
    for done in (1, count):
        forgotten = [i for request in range(done) for i in world.about(request)]
        yield f"forgotten after {done}: {shown(mean(recall(range(done)), forgotten))}"
    before, bare = recall(range(count)), recall(())
    after = recall([i for i in range(count) if i != REMOVED])
    nine = [i for request in range(count) if request != REMOVED for i in world.about(request)]
    removed = world.about(REMOVED)
    change = [b - a for a, b in zip(before, after, strict=True)]
    yield f"request {REMOVED + 1} removed: its recall {shown(mean(after, removed))}"
    yield f"  before any request {shown(mean(bare, removed))}"
    yield f"  change of the other nine {shown(mean(change, nine))}"
    yield f"  change of what is retained {shown(mean(change, world.others()))}"


@click.command()
@click.option(
    "--sample", default=20, show_default=True, type=click.IntRange(1), help="Questions of each entity."
)
@click.option("--threads", default=1, show_default=True)
@click.option("--cache", type=click.Path(path_type=Path), default=Path("data/cache"), show_default=True)
@click.option("--out", default=ROOT / "reports" / "bench-sequence.jsonl", type=click.Path(path_type=Path))
def sequence(sample: int, threads: int, cache: Path, out: Path) -> None:
    """Ten requests one after the other, then one of them removed: the matrix of recalls. Stops and goes on.

    Example: python -m benchmarks sequence
    """
    torch.set_num_threads(threads)
    demo = world(sample, cache, threads)
    asking = Asking(demo, Runs(out))
    click.echo(", ".join(f"{i + 1} {name}" for i, name in enumerate(demo.requests)))
    never = recalls(demo.asked, answers(*load_model(NEVER), demo.asked))
    for i in range(len(demo.requests)):
        click.echo(f"never learned, {i + 1}: {shown(mean(never, demo.about(i)))}")
    for name, weight in ARMS.items():
        arm = Arm(demo, weight, out.with_suffix(""))
        for form, recall in zip(("merged", "own"), served(demo, arm, asking), strict=True):
            click.echo(f"\n{name}, {form}")
            for line in told(demo, recall):
                click.echo(line)
