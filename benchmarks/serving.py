"""Bare vLLM and the guarded server with the same arguments, driven in turn by vLLM's own benchmark client.

Each round sends the same requests, at the same moments, to one server and then to the other; who goes first alternates.
What is compared is compared within a round: the machine's other work falls on both. Answers have a fixed length, so
that both do the same work; matched answers may be shorter, so throughput counts the tokens that came.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import click

from benchmarks.driving import (
    DEMO,
    ROOT,
    Load,
    Pair,
    Prompts,
    Server,
    Setup,
    Side,
    bare_server,
    guarded_server,
    mixed,
    paired,
)
from benchmarks.ratios import MEASURES, first_tokens
from benchmarks.register import people
from benchmarks.reporting import Report, Row, reported
from benchmarks.sites import make_model
from evals.admin import Admin
from evals.client import Client, ClientError
from evals.items import Item, load_items

SHOWN = ("demo-methods", "ruwen-grisquist")
"""The target that has an artifact for every method, and what items about it are filed under."""
INVENTED = "benchmark"  # tag of invented targets
OPEN = 0.6  # share of what bare vLLM takes at once that comes in an open loop
CALIBRATED_WITHIN = 1_200.0
APART = 1_000_000  # prompts of one condition; the next one's are numbered from there


PLAIN, SEMANTIC, ADAPTERS = Setup(), Setup(semantic=True), Setup(adapters=True)


@dataclass(frozen=True, slots=True)
class Condition:
    """What is registered (`method`: the one target that has every method, with this one; `examples`: invented people
    with so many, in the place of the demo's targets), what share of the prompts is about it, and what it is compared
    with: bare vLLM, or the same guarded server with prompts about nothing."""

    name: str
    mode: Literal["shadow", "enforce"] | None = "enforce"
    matched: float = 0.0
    method: str | None = None
    examples: int = 0
    beside: Literal["bare", "unmatched"] = "bare"
    open: bool = False
    setup: Setup = PLAIN


CONDITIONS = (
    Condition("unregistered", None),
    Condition("shadow", "shadow"),
    Condition("unmatched"),
    Condition("matched_1", matched=0.01),
    Condition("matched_10", matched=0.1),
    Condition("matched_100", matched=1.0),
    Condition("open_unmatched", open=True),
    Condition("open_matched_10", matched=0.1, open=True),
    *(
        Condition(f"matched_10_{method}", matched=0.1, method=method, beside="unmatched")
        for method in ("embedding_corruption", "sae_clamp", "token_penalty")
    ),
    Condition("examples_10", examples=10),
    Condition("examples_10000", examples=10_000),
    Condition("semantic", setup=SEMANTIC),
    Condition("semantic_matched_10", matched=0.1, setup=SEMANTIC),
    Condition("adapters_idle", setup=ADAPTERS),
    Condition("adapters_matched_10", matched=0.1, method="lora_adapter", setup=ADAPTERS),
)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model that is served, and what is asked of it unless something else is said."""

    prefix: str
    load: Load
    conditions: tuple[str, ...]


SUBJECTS = {
    "demo": Subject("", Load(64, 32, None, 128, 8), tuple(c.name for c in CONDITIONS)),
    "half-billion": Subject("half_billion_", Load(24, 4, None, 16, 9), ("unmatched",)),
}
OF_THE_DEMO = ("sae_clamp", "lora_adapter")  # methods whose artifacts are made for one model


def wanted_targets(condition: Condition) -> list[dict[str, Any]]:
    """All that is to be registered."""
    lines = (ROOT / "demo" / "targets.jsonl").read_text(encoding="utf-8").splitlines()
    mode = condition.mode if condition.mode and not condition.examples else "off"
    targets = [{**json.loads(line), "mode": mode} for line in lines]
    if condition.method:
        targets = [shown(target, condition.method) for target in targets]
    return targets + [{**one, "tags": [INVENTED]} for one in people(condition.examples, random.Random(0))]


def shown(target: dict[str, Any], method: str) -> dict[str, Any]:
    """The target with that rung of its ladder only; any other does nothing."""
    if target["id"] != SHOWN[0]:
        return {**target, "mode": "off"}
    return {**target, "intervention": [r for r in target["intervention"] if r["method"] == method]}


async def register(server: Server, condition: Condition) -> None:
    """What the condition wants and nothing else, calibrated."""
    wanted = wanted_targets(condition)
    async with Client(server.base_url, server.key) as client:
        admin = Admin(client)
        gone = {one["id"] for one in await admin.targets(INVENTED)} - {one["id"] for one in wanted}
        for target_id in sorted(gone):
            await admin.delete(target_id)
        await admin.import_targets("\n".join(map(json.dumps, wanted)))
        await calibrated(admin)
        if condition.method:
            artifacts = (await admin.target(SHOWN[0]))["artifacts"]
            if any(one["state"] != "ready" for one in artifacts):
                raise click.ClickException(f"The artifact of {condition.method} is not ready: {artifacts}.")


async def calibrated(admin: Admin) -> None:
    """Waits until no target goes by pooled thresholds: their calibration takes the processors that are measured."""
    told = 0.0
    loop = asyncio.get_running_loop()
    ends = loop.time() + CALIBRATED_WITHIN
    while left := (await admin.status())["pooled"]:
        if loop.time() > ends:
            raise ClientError(
                f"{left} targets were not calibrated within {CALIBRATED_WITHIN / 60:.0f} minutes"
            )
        if loop.time() > told + 30:
            click.echo(f"  {left} targets are not calibrated yet")
            told = loop.time()
        await asyncio.sleep(1)


def about(items: Sequence[Item], condition: Condition) -> list[Item]:
    """The items that are asked: of those to be forgotten, under one method, those of its target."""
    return [i for i in items if not (condition.method and i.split == "forget" and i.entity != SHOWN[1])]


def sides(
    bare: Server, guarded: Server, condition: Condition, items: Sequence[Item], load: Load, first: int
) -> tuple[Side, Side]:
    """What is compared under a condition. One server is never asked the same twice."""
    prompts = mixed(about(items, condition), condition.matched, load.requests, first)
    if condition.beside == "bare":
        return Side(bare, prompts), Side(guarded, prompts)
    return Side(guarded, mixed(items, 0, load.requests, first + APART // 2)), Side(guarded, prompts)


def open_loop(bare: Server, prompts: Prompts, load: Load, rate: float | None) -> Load:
    """The load with requests that come by themselves: so many a second, or as a share of what bare vLLM takes."""
    if rate is None:
        blocks = [bare.drive(prompts(number), load, 0) for number in (-1, 0)]  # the first one warms it
        rate = OPEN * load.requests / blocks[1].seconds
    return replace(load, rate=rate, concurrency=None)


def measure(
    bare: Server,
    guarded: Server,
    items: Sequence[Item],
    load: Load,
    conditions: Iterable[tuple[int, Condition]],
) -> Iterator[tuple[Condition, Load, list[Pair]]]:
    """The rounds of every condition; its number keeps its prompts apart from those of others."""
    for number, condition in conditions:
        click.echo(f"{condition.name}: {load.rounds} rounds of twice {load.requests} requests")
        asyncio.run(register(guarded, condition))
        used = replace(load, rate=None)
        if condition.open:
            unmatched = mixed(items, 0, load.requests, number * APART + APART // 2)
            used = open_loop(bare, unmatched, used, load.rate)
        one, other = sides(bare, guarded, condition, items, used, number * APART)
        yield condition, used, list(paired(one, other, used))


def row(prefix: str, model: str, condition: Condition, load: Load, pairs: Sequence[Pair]) -> Row:
    """What is told of a condition's rounds."""
    name = f"{prefix}{condition.name}"
    found = {f"{name}_{measure}": of(pairs) for measure, of in MEASURES.items()}
    acted = sum(second.acted for _, second in pairs) / (load.requests * len(pairs))
    how = {"model": model, "beside": condition.beside, "load": asdict(load), **asdict(condition.setup)}
    how["acted_upon"] = acted
    return Row(name, how, {k: v for k, v in found.items() if v is not None}, first_tokens=first_tokens(pairs))


@contextlib.contextmanager
def servers(model: Path, arguments: Sequence[str], setup: Setup) -> Iterator[tuple[Server, Server]]:
    """Bare vLLM and the guarded server, side by side."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bare = stack.enter_context(bare_server(model, setup, folder, arguments))
        yield bare, stack.enter_context(guarded_server(model, setup, folder, arguments))


def chosen(model: str, wanted: Sequence[str]) -> list[tuple[int, Condition]]:
    """The conditions with their numbers. Raises ClickException: one needs what only the demo has."""
    names = wanted or SUBJECTS[model].conditions
    found = [(number, c) for number, c in enumerate(CONDITIONS) if c.name in names]
    for _, condition in found:
        if model != "demo" and condition.method in OF_THE_DEMO:
            raise click.ClickException(f"{condition.name} needs an artifact that only the demo model has.")
    return found


@click.command()
@click.option(
    "--model",
    type=click.Choice(list(SUBJECTS)),
    default="demo",
    show_default=True,
    help="The demo's, or one of 0.5 billion random weights.",
)
@click.option("--requests", type=click.IntRange(min=1), help="Requests of one block: 64; of half-billion 24.")
@click.option("--concurrency", type=click.IntRange(min=1), help="Requests at once: 32; of half-billion 4.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Requests that come in a second under the conditions `open_*`; 0.6 of what bare vLLM takes at once where it "
    "is left out.",
)
@click.option("--tokens", type=click.IntRange(min=2), help="Tokens of an answer: 128; of half-billion 16.")
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help="Paired blocks under each condition, beside one that only warms: 8; of half-billion 9.",
)
@click.option(
    "--condition",
    "wanted",
    multiple=True,
    type=click.Choice([c.name for c in CONDITIONS]),
    help="May be repeated. Where it is left out: all; of half-billion `unmatched`.",
)
@reported
def serving(model: str, wanted: tuple[str, ...], report: Report, **changes: Any) -> None:
    """The guarded server beside bare vLLM over HTTP, as ratios within one run. What answers mean is judged under the
    conditions `semantic*` only, names and literal answers under all.

    Example: lethe bench serving --condition unmatched --condition matched_10 --rounds 4
    """
    subject = SUBJECTS[model]
    load = replace(subject.load, **{name: value for name, value in changes.items() if value is not None})
    items = load_items(ROOT / "demo" / "items.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        path, arguments = DEMO, list[str]()
        if model != "demo":
            path = make_model(ROOT / "benchmarks" / "shapes" / f"{model}.json", Path(folder))
            arguments = ["--chat-template", str(ROOT / "demo" / "chat_template.jinja")]
        for setup, conditions in groupby(chosen(model, wanted), lambda found: found[1].setup):
            with servers(path, arguments, setup) as (bare, guarded):
                for condition, used, pairs in measure(bare, guarded, items, load, conditions):
                    report.add(row(subject.prefix, model, condition, used, pairs))
