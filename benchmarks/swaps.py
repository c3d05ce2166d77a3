"""Do streams stand still while the register changes? Clients stream from the guarded server without a pause; windows
with a change in them are compared with as many of the same length without one."""

from __future__ import annotations

import asyncio
import itertools
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import httpx

from benchmarks.driving import CHAT, DEMO, ROOT, Server, Setup, guarded_server, numbered
from benchmarks.ratios import gap_intervals
from benchmarks.register import person
from benchmarks.reporting import Report, Row, reported
from benchmarks.serving import Condition, register
from evals.admin import Admin
from evals.client import Client, ClientError, events
from evals.items import load_items

CHANGED = "changed-again-and-again"
_WARM = 5.0


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, by the clock that gaps are measured with."""

    start: float
    end: float


@dataclass
class Gaps:
    """Between the texts of each stream: when a gap ended and how long it was."""

    seen: list[tuple[float, float]] = field(default_factory=list)

    def within(self, span: Span) -> list[float]:
        """Those that touch the span."""
        return [gap for at, gap in self.seen if at >= span.start and at - gap <= span.end]


async def stream(http: httpx.AsyncClient, bodies: Iterator[dict[str, Any]], gaps: Gaps) -> None:
    """One answer after another, until it is cancelled."""
    for body in bodies:
        last = None
        async with http.stream("POST", CHAT, json=body) as response:
            if response.status_code != 200:
                raise ClientError(f"a stream was answered {response.status_code}")
            async with aclosing(events(response)) as datas:
                async for data in datas:
                    if '"content":"' not in data or '"content":""' in data:
                        continue
                    now = time.perf_counter()
                    if last is not None:
                        gaps.seen.append((now, now - last))
                    last = now


async def alternate(
    admin: Admin, versions: Iterator[dict[str, Any]], changes: int, seconds: float
) -> tuple[list[Span], list[Span], list[float]]:
    """Windows that begin with a change and last until it is in force, `seconds` at least; beside each one of the same
    length without; and how long each change took."""
    busy, quiet, took = [], [], []
    await asyncio.sleep(_WARM)
    for number in range(changes):
        start = time.perf_counter()
        await admin.put(CHANGED, next(versions))
        took.append(time.perf_counter() - start)
        await asyncio.sleep(max(0.0, seconds - took[-1]))
        busy.append(Span(start, time.perf_counter()))
        await asyncio.sleep(seconds / 2)  # what the change left to be done is counted nowhere
        start = time.perf_counter()
        await asyncio.sleep(busy[-1].end - busy[-1].start)
        quiet.append(Span(start, time.perf_counter()))
        if (number + 1) % 10 == 0:
            click.echo(f"  {number + 1} changes, the last in {took[-1]:.2f} s")
    return busy, quiet, took


async def watched(
    server: Server,
    prompts: Sequence[list[dict[str, str]]],
    streams: int,
    tokens: int,
    changes: int,
    seconds: float,
) -> tuple[Gaps, list[Span], list[Span], list[float]]:
    """Gaps of all streams while the register changes. Raises ClientError: a stream or a change failed."""
    rng, gaps, number = random.Random(0), Gaps(), itertools.count()
    specs = [person(rng)[0] for _ in range(2)]
    versions = itertools.cycle(spec.model_dump(mode="json", exclude_unset=True) for spec in specs)

    def bodies() -> Iterator[dict[str, Any]]:
        for i in number:
            turns = numbered(prompts[i % len(prompts)], i)
            yield {"model": server.name, "messages": turns, "max_tokens": tokens, "stream": True,
                   "temperature": 0, "ignore_eos": True}  # fmt: skip

    async with (
        Client(server.base_url, server.key) as client,
        httpx.AsyncClient(base_url=server.base_url, headers=server.headers, timeout=60) as http,
    ):
        running = [asyncio.create_task(stream(http, bodies(), gaps)) for _ in range(streams)]
        changing = asyncio.create_task(alternate(Admin(client), versions, changes, seconds))
        try:
            done, _ = await asyncio.wait([*running, changing], return_when=asyncio.FIRST_COMPLETED)
            for task in done:  # a stream ends only by failing
                task.result()
            busy, quiet, took = changing.result()
        finally:
            for task in (*running, changing):
                task.cancel()
            await asyncio.gather(*running, changing, return_exceptions=True)
    return gaps, busy, quiet, took


def row(
    gaps: Gaps, busy: Sequence[Span], quiet: Sequence[Span], took: Sequence[float], how: dict[str, Any]
) -> Row:
    """The 99th percentile of gaps in windows with a change, beside that of those without."""
    difference, ratio = gap_intervals(
        [[gap * 1000 for gap in gaps.within(span)] for span in quiet],
        [[gap * 1000 for gap in gaps.within(span)] for span in busy],
    )
    seconds = sorted(took)
    changes = {"median_s": seconds[len(seconds) // 2], "most_s": seconds[-1], "n": len(seconds)}
    about = {"model": "demo", **how, "changes": changes}
    return Row("swap", about, {"swap_gap_p99": ratio}, {"swap_gap_p99_difference_ms": difference})


@click.command()
@click.option(
    "--changes", type=click.IntRange(min=2), default=50, show_default=True, help="Swaps of the snapshot."
)
@click.option("--examples", type=click.IntRange(min=1), default=1_000, show_default=True,
              help="Of invented people that are registered meanwhile.")  # fmt: skip
@click.option("--streams", type=click.IntRange(min=1), default=8, show_default=True, help="Answers at once.")
@click.option("--tokens", type=click.IntRange(min=2), default=128, show_default=True, help="Of an answer.")
@click.option(
    "--seconds", type=click.FloatRange(min=0.1), default=1.0, show_default=True, help="Of a window at least."
)
@reported
def swaps(changes: int, examples: int, streams: int, tokens: int, seconds: float, report: Report) -> None:
    """How much longer streams pause while a target changes than while none does: the 99th percentile of the gaps
    between texts, on the demo.

    Example: lethe bench swaps --changes 50
    """
    items = load_items(ROOT / "demo" / "items.jsonl")
    prompts = [item.messages for item in items if item.split in ("retain", "chat")]
    with tempfile.TemporaryDirectory() as folder, guarded_server(DEMO, Setup(), Path(folder)) as server:
        asyncio.run(register(server, Condition("swaps", examples=examples)))
        click.echo(f"{changes} changes beside {streams} streams and {examples} examples")
        found = asyncio.run(watched(server, prompts, streams, tokens, changes, seconds))
    how = {"examples": examples, "streams": streams, "tokens": tokens, "seconds": seconds}
    report.add(row(*found, how))
