"""`lethe train auto` on three targets of different kinds of the demo, as an operator runs it: a guarded server, a
budget, and no word about methods. Then the server is asked.

The search gets trained wordings and chooses by a part of these that no trainer reads. Asked of the server are held-out
wordings, which nobody has seen, greedily, and the same of the model that never learned the targets. Of retained
questions the answers must be the same ones as before the target was there.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.kinds import ENV, MODEL, RETAINED, fact
from benchmarks.losses import NEVER, answers
from classifiers.activations import load_model
from evals import serve
from evals.admin import Admin
from evals.client import Client, ClientError, chat, failed
from evals.items import FORGET, Item, load_items
from guard.metrics.bootstrap import Interval, mean_interval, paired_difference
from guard.metrics.rouge import rouge_l_recall

ROOT = Path(__file__).parents[1]
TARGETS = ("limir-yarley", "breline-fusion", "pellelt")
"""An entity, a subject, a skill."""
TOLERANCE = 0.05
_TOKENS, _AT_ONCE = 64, 8
_START_S = 1_800.0  # a machine with other work to do takes its time


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked: `own` questions of each target, and `others`, whose answers must stay as they are."""

    own: dict[str, list[Item]]
    others: list[Item]


@dataclass(frozen=True, slots=True)
class Found:
    """Of one target: the ladder's methods, seconds that the search took, and the ROUGE-L recall of each own question
    untouched, by the model that never learned it, and as the server answers it now; how many of the others are answered
    as before."""

    target: str
    ladder: list[str]
    seconds: float
    facts: list[str]
    untouched: list[float]
    never: list[float]
    now: list[float]
    same: int
    others: int

    @property
    def figures(self) -> dict[str, Interval]:
        values = {"untouched": self.untouched, "never learned": self.never, "server": self.now}
        found = {name: mean_interval(one, groups=self.facts) for name, one in values.items()}
        found["server - never"] = paired_difference(self.now, self.never, groups=self.facts)
        return {name: one for name, one in found.items() if one is not None}

    @property
    def holds(self) -> bool:
        return self.figures["server - never"].mean <= TOLERANCE and self.same == self.others

    @property
    def line(self) -> str:
        shown = " ".join(
            f"{one.mean:6.3f} [{one.low:6.3f}, {one.high:6.3f}]" for one in self.figures.values()
        )
        told = (
            f"{self.target:15} {len(self.now):4} {shown} {self.same:4} of {self.others} {self.seconds:6.0f} s"
        )
        return f"{told}  {', '.join(self.ladder)}  {'holds' if self.holds else 'DOES NOT HOLD'}"


def asked(items: Sequence[Item], targets: Sequence[str], others: int, seed: int) -> Asked:
    """Held-out wordings; of each split of RETAINED at most so many of the `others`."""
    held = [item for item in items if item.phrasing == "heldout"]
    rng = random.Random(seed)
    kept = [[item for item in held if item.split == split] for split in RETAINED]
    return Asked(
        {name: [i for i in held if i.split == FORGET and i.entity == name] for name in targets},
        [item for part in kept for item in rng.sample(part, min(others, len(part)))],
    )


def write_examples(items: Sequence[Item], target: str, folder: Path) -> list[str]:
    """Trained wordings of the target and of all that must stay, as files; the options that name them."""
    trained = [item for item in items if item.phrasing == "trained"]
    sets = {
        "forget": [item for item in trained if item.split == FORGET and item.entity == target],
        "retain": [item for item in trained if item.split != FORGET],
    }
    for name, found in sets.items():
        rows = ({"turns": i.messages, "answer": i.answer, "source": fact(i)} for i in found)
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return [word for name in sets for word in (f"--{name}", str(folder / f"{name}.jsonl"))]


def recalls(items: Sequence[Item], said: Sequence[str]) -> list[float]:
    return [rouge_l_recall(item.answer, text) for item, text in zip(items, said, strict=True)]


class Operator:
    """Somebody with a server, an admin key, and so many minutes for each target."""

    def __init__(
        self, running: serve.Running, data_dir: Path, minutes: float, settings: Sequence[str]
    ) -> None:
        self._running, self._data_dir = running, data_dir
        self._minutes, self._settings = minutes, settings

    def search(self, target: str, files: Sequence[str], out: Path) -> float:
        """Seconds that `lethe train auto` took. Raises ClientError: it failed."""
        command = [str(Path(sys.executable).with_name("lethe")), "train", "auto", "--target", target]
        command += ["--model", str(MODEL), "--out", str(out), "--budget", str(self._minutes), *files]
        command += [word for text in self._settings for word in ("--set", text)]
        env = {
            **os.environ,
            "LETHE_SERVER": self._running.base_url,
            "LETHE_ADMIN_KEY": str(self._running.admin_key),
            "LETHE_DATA_DIR": str(self._data_dir),
        }
        started = time.monotonic()
        if subprocess.run(command, env=env, check=False).returncode:
            raise ClientError(f"lethe train auto failed for {target}")
        return time.monotonic() - started

    async def say(self, items: Sequence[Item], at_once: int) -> list[str]:
        """The server's answers. Sums depend on the batch: what is to be the same is asked one at a time."""
        async with Client(self._running.base_url, self._running.admin_key) as client:
            requests = [chat(item.messages, max_tokens=_TOKENS) for item in items]
            got = await client.send_all(requests, concurrency=at_once)
        if broken := failed(got):
            raise ClientError(f"the server did not answer: {broken[0]}")
        return [answer.text for answer in got]

    async def register(self, target: dict[str, Any]) -> None:
        async with Client(self._running.base_url, self._running.admin_key) as client:
            await Admin(client).put(target["id"], target)

    async def ladder(self, target: str) -> list[str]:
        async with Client(self._running.base_url, self._running.admin_key) as client:
            return [rung["method"] for rung in (await Admin(client).target(target))["intervention"]]

    async def remove(self, target: str) -> None:
        async with Client(self._running.base_url, self._running.admin_key) as client:
            await Admin(client).delete(target)


def measure(
    operator: Operator,
    target: dict[str, Any],
    items: Sequence[Item],
    of: Asked,
    before: Sequence[str],
    out: Path,
) -> Found:
    """One target, from its registration to its removal. `before` are the answers to the others without any target."""
    name = target["id"]
    own = of.own[name]
    untouched = asyncio.run(operator.say(own, _AT_ONCE))
    asyncio.run(operator.register(target))
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        seconds = operator.search(name, write_examples(items, name, Path(folder)), out / name)
    now, after = asyncio.run(operator.say(own, _AT_ONCE)), asyncio.run(operator.say(of.others, 1))
    ladder = asyncio.run(operator.ladder(name))
    asyncio.run(operator.remove(name))
    same = sum(one == other for one, other in zip(before, after, strict=True))
    never = recalls(own, answers(*load_model(NEVER), own))
    facts = [fact(item) for item in own]
    return Found(
        name, ladder, seconds, facts, recalls(own, untouched), never, recalls(own, now), same, len(of.others)
    )


@click.command()
@click.option("--target", "wanted", multiple=True, help="Only this target of the demo; may be repeated.")
@click.option("--minutes", default=8.0, show_default=True, help="The budget for each target.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Passed on to `lethe train auto`."
)
@click.option("--others", default=50, show_default=True, help="Retained questions of each split.")
@click.option("--seed", default=0, show_default=True, help="Of the choice of these.")
@click.option(
    "--out", default=ROOT / "reports" / "bench-auto", type=click.Path(path_type=Path), show_default=True
)
def auto(
    wanted: tuple[str, ...], minutes: float, settings: tuple[str, ...], others: int, seed: int, out: Path
) -> None:
    """What `lethe train auto` makes of a person, a subject and a skill. What it has tried is kept in --out.

    Example: python -m benchmarks auto --minutes 8
    """
    lines = (ROOT / "demo" / "targets.jsonl").read_text(encoding="utf-8").splitlines()
    known = {row["id"]: row for row in map(json.loads, lines)}
    names = wanted or TARGETS
    if strange := [name for name in names if name not in known]:
        raise click.UsageError(f"{strange[0]} is no target of the demo.")
    items = load_items(ROOT / "demo" / "items.jsonl")
    of = asked(items, names, others, seed)
    report, log = [], out / "server.log"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        data_dir = Path(folder) / "data"
        with serve.guarded(str(MODEL), log, data_dir, env=ENV, timeout=_START_S) as running:
            operator = Operator(running, data_dir, minutes, settings)
            before = asyncio.run(operator.say(of.others, 1))
            for name in names:
                report.append(measure(operator, known[name], items, of, before, out))
                click.echo(report[-1].line)
    rows = [
        {
            "target": one.target,
            "kind": known[one.target]["kind"],
            "ladder": one.ladder,
            "seconds": round(one.seconds, 1),
            "figures": {name: figure.as_dict() for name, figure in one.figures.items()},
            "same": one.same,
            "others": one.others,
            "holds": one.holds,
        }
        for one in report
    ]
    (out / "report.json").write_text(json.dumps({"minutes": minutes, "rows": rows}, indent=2) + "\n")
    click.echo(
        f"target          n    {', '.join(report[0].figures)}; retained answers as before; seconds; ladder"
    )
    for one in report:
        click.echo(one.line)
    click.echo(f"written to {out / 'report.json'}; the pages are {out}/TARGET/report.html")
