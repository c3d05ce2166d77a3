"""Does a server grow as it serves? Short answers to ever new questions, and its processes' resident memory after each
block of them; bare vLLM before the guarded server, each by itself."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click

from benchmarks import ratios
from benchmarks.driving import DEMO, ROOT, Load, Server, Setup, bare_server, guarded_server, mixed
from benchmarks.reporting import Report, Row, reported
from benchmarks.serving import Condition, register
from evals.items import Item, load_items

PER = 10_000
BLOCK = 250


def sampled(server: Server, items: Sequence[Item], requests: int, load: Load) -> list[tuple[int, int]]:
    """Requests so far and resident bytes, after each block."""
    prompts = mixed(items, 0.1, load.requests)
    found: list[tuple[int, int]] = []
    for number in range(requests // load.requests):
        block = server.drive(prompts(number), load, number)
        found.append(((number + 1) * load.requests, block.memory))
        if (number + 1) % 10 == 0:
            click.echo(f"  {found[-1][0]} requests, {block.memory / 2**20:.0f} MiB")
    return found


def row(samples: dict[str, list[tuple[int, int]]], settled: int, load: Load) -> Row:
    """The line through what was measured after `settled` requests; as a ratio, memory PER requests later to before."""
    found = {}
    for name, of in samples.items():
        found[name] = ratios.growth(*zip(*(s for s in of if s[0] >= settled), strict=True), per=PER)
    share = found["guarded"]
    later = replace(share, mean=1 + share.mean, low=1 + share.low, high=1 + share.high, upper=1 + share.upper)
    how = {
        "model": "demo",
        "load": asdict(load),
        "from": settled,
        "to": samples["guarded"][-1][0],
        "per": PER,
    }
    resident = {name: of[-1][1] for name, of in samples.items()}
    return Row(
        "memory_growth",
        {**how, "resident": resident},
        {"memory_growth": later},
        {f"{name}_memory_growth_share": of for name, of in found.items()},
    )


@click.command()
@click.option("--requests", type=click.IntRange(min=1), default=20_000, show_default=True, help="In all.")
@click.option("--settled", type=click.IntRange(min=0), default=5_000, show_default=True,
              help="Requests that are not counted: caches fill.")  # fmt: skip
@click.option("--concurrency", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--tokens", type=click.IntRange(min=2), default=8, show_default=True, help="Of an answer.")
@reported
def growth(requests: int, settled: int, concurrency: int, tokens: int, report: Report) -> None:
    """By how much a server's memory grows in 10,000 requests, on the demo, one in ten about its targets; as a ratio of
    its size, beside bare vLLM's.

    Example: lethe bench growth --requests 20000
    """
    load = Load(min(BLOCK, max(1, requests // 20)), concurrency, None, tokens, 1)
    if (requests - settled) // load.requests < 4:
        raise click.UsageError("Give at least as many --requests that four blocks come behind --settled.")
    items = load_items(ROOT / "demo" / "items.jsonl")
    samples: dict[str, list[tuple[int, int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, server in (("bare", bare_server), ("guarded", guarded_server)):
            with server(DEMO, Setup(), Path(folder)) as running:
                if running.key:
                    asyncio.run(register(running, Condition(name)))
                samples[name] = sampled(running, items, requests, load)
    report.add(row(samples, settled, load))
