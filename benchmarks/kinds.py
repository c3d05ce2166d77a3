"""Every kind of trainer on one target of the demo: it trains as a job of a guarded server, the server takes the result
into use, and what the server then does is compared with what the artifact does in the trainer's own process.

Of a method it is compared how likely the answers to questions in held-out wordings are (TOFU's probability). The
process plans by the target's names as trainers do, the server by what its gate matched. The noise of both has the
server's seeds: with others the means over some forty questions would differ by chance.

A detector is trained for a target whose name stands in no question, so that whatever is found is found by that one; and
without near misses, so that there is something to compare in questions about others too. How well detectors tell near
misses apart is measured by `classifiers`.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from classifiers.activations import load_model
from classifiers.data import Example
from classifiers.edited import Reader, Speaker, Treatment
from classifiers.encoding import Encoding
from evals import serve
from evals.admin import Admin, matches
from evals.client import Client, ClientError
from evals.items import FORGET, Item, load_items
from guard.artifacts import Artifact, ArtifactStore
from guard.crypto import Secrets
from guard.detection import Compiler, Gate, read_head
from guard.metrics.bootstrap import Interval, mean_interval, paired_difference
from guard.targets import TargetSpec
from guard.types import Message, Prompt

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "demo" / "models" / "full"
RETAINED = ("neighbour", "retain")
METHODS: dict[str, dict[str, Any]] = {
    "corruption": {},
    "sae": {"layer": 1, "steps": 800, "batch": 512},
    "steering": {},
    "neurons": {"share": 1.0, "both_sides": True},
    "assistant": {"epochs": 20, "seed": 1},
    "adapter": {"rank": 4, "steps": 120, "learning_rate": 0.002},
}
"""Kinds whose artifacts belong to methods, with what the demo's own artifacts were trained with."""
DETECTORS: dict[str, dict[str, Any]] = {"ood": {"near": 0}, "classifier": {"near": 0}}
UNNAMED = ("unnamed", {"name": "Ledger of the ninth reading room", "kind": "subject"})
LIMIT = 0.02
ENV = {**serve.ENGINE_ENV, "LETHE_ADAPTERS_SLOTS": "4"}
COLUMNS = (
    "untouched",
    "trainer's",
    "server's",
    "server's - trainer's",
    "others, expected",
    "others, server's",
)
_AT_ONCE = 8
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Questions:
    """What is trained on, in trained wordings, and what is asked, in held-out ones."""

    forget: list[Item]
    retain: list[Item]
    asked: list[Item]
    others: list[Item]


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure for each question: of the untouched model or gate, in the trainer's process, and in the server; and of
    questions about anything else, what the server should make of them (of a method nothing, they are not matched) and
    what it makes of them."""

    untouched: list[float]
    trainer: list[float]
    server: list[float]
    others_expected: list[float]
    others_server: list[float]


@dataclass(frozen=True, slots=True)
class Made:
    """What a job made, and the seconds that it took."""

    artifact: Artifact
    seconds: float


def questions(items: Sequence[Item], entity: str, others: int, seed: int) -> Questions:
    """About one entity, and of each split of RETAINED at most so many of the `others`."""
    rng = random.Random(seed)
    own = [item for item in items if item.split == FORGET and item.entity == entity]
    trained = [item for item in items if item.split != FORGET and item.phrasing == "trained"]
    asked = [[i for i in items if (i.split, i.phrasing) == (split, "heldout")] for split in RETAINED]
    return Questions(
        [item for item in own if item.phrasing == "trained"],
        trained,
        [item for item in own if item.phrasing == "heldout"],
        [item for part in asked for item in rng.sample(part, min(others, len(part)))],
    )


def fact(item: Item) -> str:
    """What it asks for: items of one fact differ in their wording only."""
    return item.id.rsplit(".", 1)[0]


def rows(items: Iterable[Item]) -> list[dict[str, Any]]:
    """Examples as the admin API takes them."""
    return [{"turns": i.messages, "answer": i.answer} for i in items]


class Served:
    """The guarded server, and where its artifacts and its secret lie."""

    def __init__(self, client: Client, data_dir: Path) -> None:
        self._admin = Admin(client)
        self._client = client
        self._artifacts = ArtifactStore(data_dir / "artifacts")
        self._secrets = Secrets.load(data_dir)

    @asynccontextmanager
    async def registered(self, target: str, spec: dict[str, Any]) -> AsyncIterator[None]:
        """The target is there for as long as the block runs."""
        await self._admin.put(target, spec)
        try:
            yield
        finally:
            await self._admin.delete(target)

    async def train(self, kind: str, target: str, params: dict[str, Any], about: Questions) -> Made:
        """What a job made and put into the target.

        Raises:
            ClientError: it failed, or its artifact was not taken.
        """
        given = {**params, "forget": rows(about.forget), "retain": rows(about.retain)}
        job = await self._call("POST", "jobs", {"kind": kind, "target": target, "params": given})
        while job["ended_at"] is None:
            await asyncio.sleep(0.5)
            job = await self._call("GET", f"jobs/{job['id']}")
        if job["state"] != "succeeded" or not job["attached"]:
            raise ClientError(f"{kind}: {job['state']}: {job['error'] or job['log'][-1]}")
        began, ended = (datetime.fromisoformat(job[name]) for name in ("started_at", "ended_at"))
        return Made(self._artifacts.get(job["artifact"]), (ended - began).total_seconds())

    async def likelihoods(self, asked: Sequence[Item]) -> list[float]:
        """The probability of each right answer, as the server would give it."""

        async def one(item: Item) -> float:
            body = {"messages": item.messages, "continuation": item.answer}
            scores = (await self._call("POST", "score", body))["logprobs"]
            if scores is None:
                raise ClientError(f"the server would refuse the question {item.id}")
            return math.exp(sum(scores) / len(scores))

        return await _each(asked, one)

    async def found(self, target: str, asked: Sequence[Item]) -> list[float]:
        """1 for each question that matches the target, else 0."""

        async def one(item: Item) -> float:
            return float(matches(await self._call("POST", "check", {"messages": item.messages}), target))

        return await _each(asked, one)

    def seed(self, target: str) -> Callable[[Prompt], str]:
        """The seed of each prompt's noise (guard.pipeline)."""
        return lambda prompt: self._secrets.digest("noise", target, ",".join(map(str, prompt.token_ids)))[:16]

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        response = await self._client.call(method, f"/admin/v1/{path}", json=body)
        if response.status_code not in (200, 201):
            raise ClientError(
                f"{method} {path.split('/')[0]} answered {response.status_code}: {response.text[:300]}"
            )
        answer: dict[str, Any] = response.json()
        return answer


async def _each(asked: Sequence[Item], one: Callable[[Item], Awaitable[T]]) -> list[T]:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def limited(item: Item) -> T:
        async with gate:
            return await one(item)

    return list(await asyncio.gather(*map(limited, asked)))


class Bench:
    """The demo model and the guard's encoder in this process, and the server beside them."""

    def __init__(self, served: Served, about: Questions, target: dict[str, Any], cache: Path) -> None:
        self._served = served
        self._about = about
        self._target = target
        self._model, self._tokenizer = load_model(MODEL)
        self._encoder = Encoding(folder=cache).load()
        self._cache = cache

    async def method(self, kind: str) -> tuple[Made, Measured]:
        """Likelihoods of the right answers."""
        name, about = self._target["id"], self._about
        speaker = Speaker(self._model, self._tokenizer, [self._served.seed(name)])
        reader = Reader(self._tokenizer, (self._target["name"], *self._target["aliases"]))
        asked, others = ([reader.row(_example(i)) for i in part] for part in (about.asked, about.others))
        untouched, kept = (speaker.scores(part, None, "probability") for part in (asked, others))
        async with self._served.registered(name, self._target):
            made = await self._served.train(kind, name, METHODS[kind], about)
            trainer = speaker.scores(asked, Treatment.of(made.artifact, MODEL), "probability")
            server, beside = [await self._served.likelihoods(part) for part in (about.asked, about.others)]
        return made, Measured(untouched, trainer, server, kept, beside)

    async def detector(self, kind: str) -> tuple[Made, Measured]:
        """1 for each question that is found, else 0."""
        name, spec = UNNAMED
        about = self._about
        compiled = Compiler(self._encoder, self._cache).compile(name, 1, TargetSpec(**spec))
        plain = Gate(self._encoder, [compiled])
        far = replace(about, retain=[item for item in about.retain if item.split == "chat"])
        async with self._served.registered(name, spec):
            made = await self._served.train(kind, name, DETECTORS[kind], far)
            trained = Gate(self._encoder, [compiled.with_heads([read_head(made.artifact, self._encoder)])])
            server, beside = [await self._served.found(name, part) for part in (about.asked, about.others)]
        found, mistaken = (self._found(trained, part) for part in (about.asked, about.others))
        return made, Measured(self._found(plain, about.asked), found, server, mistaken, beside)

    def _found(self, gate: Gate, asked: Sequence[Item]) -> list[float]:
        reader = Reader(self._tokenizer, ())
        prompts = (
            replace(reader.row(_example(i)).prompt, messages=tuple(Message(*turn) for turn in i.turns))
            for i in asked
        )
        return [float(bool(gate.detect(prompt)[0])) for prompt in prompts]


def _example(item: Item) -> Example:
    return Example(item.turns, item.answer)


def told(kind: str, made: Made, measured: Measured, about: Questions) -> dict[str, Any]:
    """The figures of one kind, means with intervals over facts, printed and returned."""
    facts, beside = [fact(i) for i in about.asked], [fact(i) for i in about.others]

    def mean(values: Sequence[float], groups: Sequence[str]) -> Interval:
        found = mean_interval(values, groups=groups)
        assert found is not None
        return found

    apart = paired_difference(measured.server, measured.trainer, groups=facts)
    assert apart is not None
    figures = {
        "untouched": mean(measured.untouched, facts),
        "trainer": mean(measured.trainer, facts),
        "server": mean(measured.server, facts),
        "server - trainer": apart,
        "others, expected": mean(measured.others_expected, beside),
        "others, server": mean(measured.others_server, beside),
    }
    beside_apart = abs(figures["others, server"].mean - figures["others, expected"].mean)
    holds = max(abs(apart.mean), beside_apart) <= LIMIT
    shown = " ".join(f"{one.mean:7.4f} [{one.low:7.4f}, {one.high:7.4f}]" for one in figures.values())
    click.echo(f"{kind:11} {made.seconds:6.1f} {shown} {'holds' if holds else 'DOES NOT HOLD'}")
    return {
        "kind": kind,
        "seconds": made.seconds,
        "artifact": made.artifact.manifest.measured,
        "figures": {name: one.as_dict() for name, one in figures.items()},
        "largest difference of a question": max(
            abs(a - b) for a, b in zip(measured.server, measured.trainer, strict=True)
        ),
        "holds": holds,
    }


async def measure(
    running: serve.Running,
    data_dir: Path,
    wanted: Sequence[str],
    target: dict[str, Any],
    about: Questions,
    cache: Path,
) -> list[dict[str, Any]]:
    """All wanted kinds, one after the other."""
    async with Client(running.base_url, running.admin_key) as client:
        bench = Bench(Served(client, data_dir), about, target, cache)
        report = []
        for kind in wanted:
            measured = await (bench.detector(kind) if kind in DETECTORS else bench.method(kind))
            report.append(told(kind, *measured, about))
        return report


@click.command()
@click.option(
    "--kind",
    "wanted",
    type=click.Choice([*METHODS, *DETECTORS]),
    multiple=True,
    help="Only this; may be repeated.",
)
@click.option("--target", "name", default="limir-yarley", show_default=True, help="A target of the demo.")
@click.option("--others", default=60, show_default=True, help="Questions of each split about anything else.")
@click.option("--seed", default=0, show_default=True, help="Of the choice of these.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path("data/cache"), show_default=True)
@click.option("--out", default=ROOT / "reports" / "bench-kinds.json", type=click.Path(path_type=Path))
def kinds(wanted: tuple[str, ...], name: str, others: int, seed: int, cache: Path, out: Path) -> None:
    """Whether what jobs train does in the server what it does in the trainer's process.

    Example: python -m benchmarks kinds --kind steering --kind neurons
    """
    lines = (ROOT / "demo" / "targets.jsonl").read_text(encoding="utf-8").splitlines()
    known = {row["id"]: row for row in map(json.loads, lines)}
    if name not in known or "intervention" in known[name]:
        raise click.UsageError(
            f"Give one of the demo's targets without a ladder of its own: {', '.join(known)}."
        )
    about = questions(load_items(ROOT / "demo" / "items.jsonl"), name, others, seed)
    click.echo(
        f"{name}: trained on {len(about.forget)} and {len(about.retain)} examples, asked {len(about.asked)} questions "
        f"about it and {len(about.others)} others\n{'kind':11} {'s':>6} "
        + " ".join(f"{column:25}" for column in COLUMNS)
    )
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        data_dir = Path(folder) / "data"
        log = out.with_suffix(".log")
        with serve.guarded(str(MODEL), log, data_dir, env=ENV) as running:
            chosen = wanted or (*METHODS, *DETECTORS)
            report = asyncio.run(measure(running, data_dir, chosen, known[name], about, cache))
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"target": name, "rows": report}, indent=2) + "\n", encoding="utf-8")
    click.echo(f"written to {out}")
