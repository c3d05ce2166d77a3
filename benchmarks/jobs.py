"""What training beside serving costs: the same requests to the guarded server with and without jobs that run on it, in
paired alternation. The jobs' processes are stopped and go on: nothing else changes between the two blocks of a round,
which come so soon behind each other that other work on the machine weighs on both."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import click

from evals import serve
from evals.admin import Admin
from evals.client import Client, ClientError, chat
from evals.items import FORGET, Item, load_items
from guard.config import JobSettings
from guard.metrics.bootstrap import mean_interval

ROOT = Path(__file__).parents[1]
TARGET = "limir-yarley"
ENDLESS: dict[str, dict[str, Any]] = {
    "adapter": {"steps": 1_000_000},
    "assistant": {"epochs": 1_000, "batch": 4},
    "sae": {"layer": 1, "steps": 1_000_000},
}
"""Kinds with parameters with which they train for longer than any block takes."""
RETAINED = 200
_POLL, _STARTS = 0.2, 180.0  # seconds


@dataclass(frozen=True, slots=True)
class Load:
    """One block of requests: how many, and how many at once."""

    requests: int
    concurrency: int

    def __str__(self) -> str:
        return f"{self.concurrency} at once" if self.concurrency > 1 else "one after the other"


@dataclass(frozen=True, slots=True)
class Block:
    """Seconds for all answers of a block, and for each of them."""

    seconds: float
    answers: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """Blocks of the same requests, without and with jobs beside them."""

    alone: Block
    beside: Block

    @property
    def throughput(self) -> float:
        return self.alone.seconds / self.beside.seconds

    @property
    def time(self) -> float:
        return fmean(self.beside.answers) / fmean(self.alone.answers)


class Jobs:
    """Jobs of a server whose state lies in `data_dir`."""

    def __init__(self, client: Client, data_dir: Path, examples: dict[str, list[dict[str, Any]]]) -> None:
        self._client = client
        self._folder = data_dir / "jobs"
        self._examples = examples

    @asynccontextmanager
    async def running(self, kinds: Sequence[str]) -> AsyncIterator[None]:
        """All of them train for as long as the block runs."""
        started = [await self._start(kind) for kind in kinds]
        await asyncio.gather(*map(self._training, started))
        yield
        for job in started:
            if (await self._job(job))["state"] != "running":
                raise ClientError("a job ended before the last round; ask for fewer rounds")
            await self._call("DELETE", f"jobs/{job}")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Their processes stand still for as long as the block runs."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        """To every trainer: nobody else is told to work in a folder of these jobs."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if f"--work\0{self._folder}/".encode() in path.read_bytes():
                    os.kill(int(path.parent.name), number)

    async def _start(self, kind: str) -> str:
        params = {**ENDLESS[kind], **self._examples, "attach": False}
        return str(
            (await self._call("POST", "jobs", {"kind": kind, "target": TARGET, "params": params}))["id"]
        )

    async def _training(self, job_id: str) -> None:
        deadline = time.monotonic() + _STARTS
        while time.monotonic() < deadline:
            job = await self._job(job_id)
            if any(line.endswith(" training") for line in job["log"]):
                return
            if job["ended_at"] is not None:
                raise ClientError(f"a job has {job['state']}: {job['error']}")
            await asyncio.sleep(_POLL)
        raise ClientError(f"a job does not train after {_STARTS:.0f} s")

    async def _job(self, job_id: str) -> dict[str, Any]:
        return await self._call("GET", f"jobs/{job_id}")

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        response = await self._client.call(method, f"/admin/v1/{path}", json=body)
        if response.status_code not in (200, 201):
            raise ClientError(f"{method} /jobs answered {response.status_code}: {response.text[:300]}")
        answer: dict[str, Any] = response.json()
        return answer


async def block(client: Client, prompts: Sequence[list[dict[str, str]]], load: Load) -> Block:
    """Answers to `prompts` of at most 32 tokens."""
    waiting = iter(prompts)
    taken: list[float] = []

    async def worker() -> None:
        for turns in waiting:
            started = time.perf_counter()
            if not (await client.send(chat(turns, max_tokens=32))).ok:
                raise ClientError("the server answered with an error; its log says why")
            taken.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(load.concurrency)))
    return Block(time.perf_counter() - started, tuple(taken))


async def rounds(
    client: Client,
    jobs: Jobs,
    kinds: Sequence[str],
    prompts: Sequence[list[dict[str, str]]],
    loads: Sequence[Load],
    count: int,
) -> dict[str, list[Round]]:
    """For each load its rounds; whether the jobs come first or second alternates."""
    found: dict[str, list[Round]] = {str(load): [] for load in loads}
    async with jobs.running(kinds):
        for i in range(-1, count):  # the first round only warms the server
            for load in loads:
                chosen = [prompts[(j + i * load.requests) % len(prompts)] for j in range(load.requests)]
                made: dict[bool, Block] = {}
                for busy in (True, False) if i % 2 else (False, True):
                    with nullcontext() if busy else jobs.stopped():
                        made[busy] = await block(client, chosen, load)
                if i >= 0:
                    found[str(load)].append(Round(made[False], made[True]))
    return found


def told(found: dict[str, list[Round]]) -> dict[str, Any]:
    """The ratios of each load with their intervals over rounds."""
    report: dict[str, Any] = {}
    for load, made in found.items():
        throughput, taken = (
            mean_interval([getattr(r, name) for r in made]) for name in ("throughput", "time")
        )
        assert throughput is not None and taken is not None
        alone, beside = ([s for r in made for s in getattr(r, name).answers] for name in ("alone", "beside"))
        click.echo(
            f"{load}: throughput {throughput.mean:.3f} [{throughput.low:.3f}, {throughput.high:.3f}] of that without "
            f"jobs, an answer takes {taken.mean:.2f} [{taken.low:.2f}, {taken.high:.2f}] times as long "
            f"({1000 * fmean(alone):.0f} and {1000 * fmean(beside):.0f} ms), {taken.n} paired rounds of "
            f"{len(alone) // taken.n} requests"
        )
        report[load] = {
            "throughput": throughput.as_dict(),
            "time_per_answer": taken.as_dict(),
            "ms": {"alone": 1000 * fmean(alone), "beside": 1000 * fmean(beside)},
        }
    return report


def examples(items: Sequence[Item]) -> dict[str, list[dict[str, Any]]]:
    """Of the demo's target, and of others."""
    forget = [i for i in items if i.split == FORGET and i.entity == TARGET]
    retain = [i for i in items if i.split != FORGET and i.answer]
    chosen = random.Random(0).sample(retain, RETAINED)
    return {
        name: [{"turns": i.messages, "answer": i.answer} for i in part]
        for name, part in (("forget", forget), ("retain", chosen))
    }


@click.command()
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(sorted(ENDLESS)),
    multiple=True,
    default=("adapter", "assistant"),
    show_default=True,
    help="Of the jobs that run at once; repeatable.",
)
@click.option(
    "--requests",
    default=100,
    show_default=True,
    help="Of a block, with 16 at once; a fifth of it one by one.",
)
@click.option("--rounds", "count", default=40, show_default=True, help="Paired blocks.")
@click.option(
    "--nice", type=click.IntRange(0, 19), default=JobSettings().nice, show_default=True, help="Of the jobs."
)
@click.option("--out", default=ROOT / "reports" / "bench-jobs.json", type=click.Path(path_type=Path))
def jobs(kinds: tuple[str, ...], requests: int, count: int, nice: int, out: Path) -> None:
    """Throughput and time per answer of the guarded server beside training jobs, on the demo model.

    Example: python -m benchmarks jobs --rounds 10
    """
    items = load_items(ROOT / "demo" / "items.jsonl")
    loads = (Load(requests, 16), Load(max(requests // 5, 1), 1))
    prompts = [i.messages for i in items if i.split in ("retain", "chat")]
    env = {**serve.ENGINE_ENV, "LETHE_JOBS_PARALLEL": str(len(kinds)), "LETHE_JOBS_NICE": str(nice)}

    async def measured(server: serve.Running, data_dir: Path) -> dict[str, list[Round]]:
        lines = (ROOT / "demo" / "targets.jsonl").read_text(encoding="utf-8")
        async with Client(server.base_url, server.admin_key) as client:
            await Admin(client).import_targets(lines)
            return await rounds(client, Jobs(client, data_dir, examples(items)), kinds, prompts, loads, count)

    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        model = str(ROOT / "demo" / "models" / "full")
        try:
            with serve.guarded(model, logs / "server.log", logs / "data", env=env) as server:
                found = asyncio.run(measured(server, logs / "data"))
        except ClientError as error:
            raise click.ClickException(f"{error}.") from None
    report = {
        "loads": [asdict(load) for load in loads],
        "jobs": {"kinds": kinds, "nice": nice, "threads": JobSettings().threads},
        "cores": os.cpu_count(),
        "ratios": told(found),
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    click.echo(f"written to {out}")
