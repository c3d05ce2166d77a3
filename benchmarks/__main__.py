"""`python -m benchmarks unmatched | sites`: guarded against bare vLLM, in paired alternation; `auto`,
`jobs` and `kinds` train on a guarded server; the others need none."""

from __future__ import annotations

import asyncio
import json
import platform
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks.auto import auto
from benchmarks.classifiers import classifiers
from benchmarks.detection import detection
from benchmarks.edits import edits
from benchmarks.features import features
from benchmarks.jobs import jobs
from benchmarks.kinds import kinds
from benchmarks.losses import losses
from benchmarks.pooling import pooling
from benchmarks.relearning import relearning
from benchmarks.sequence import sequence
from benchmarks.sites import sites
from benchmarks.slices import slices
from benchmarks.subject import subject
from benchmarks.tofu import tofu_command
from benchmarks.twin import twin
from evals import serve
from evals.admin import Admin
from evals.client import Client, chat
from evals.items import load_items
from guard.metrics.bootstrap import mean_interval

ROOT = Path(__file__).parents[1]
CONDITIONS = ("no targets", "demo targets")


@dataclass(frozen=True, slots=True)
class Load:
    """One block of requests: how many, and how many at once."""

    requests: int
    concurrency: int
    rounds: int


async def block(base_url: str, key: str | None, prompts: list[list[dict[str, str]]], load: Load) -> float:
    """Seconds that one block takes on one server."""
    async with Client(base_url, key) as client:
        started = time.perf_counter()
        requests = [chat(turns, max_tokens=32) for turns in prompts]
        answers = await client.send_all(requests, concurrency=load.concurrency)
        elapsed = time.perf_counter() - started
    if not all(answer.ok for answer in answers):
        raise click.ClickException("A server answered with an error; its log says why.")
    return elapsed


async def ratios(bare: str, guarded: str, key: str | None, prompts: list, load: Load) -> list[float]:
    """Guarded over bare throughput, one for each round; which server goes first alternates."""
    found = []
    for i in range(-1, load.rounds):  # the first round only warms both
        chosen = [prompts[(j + i * load.requests) % len(prompts)] for j in range(load.requests)]
        order = (("bare", bare, None), ("guarded", guarded, key))
        seconds = {name: await block(url, k, chosen, load) for name, url, k in order[:: 1 if i % 2 else -1]}
        if i >= 0:
            found.append(seconds["bare"] / seconds["guarded"])
    return found


async def measure(
    bare: serve.Running, guarded: serve.Running, prompts: list, load: Load
) -> dict[str, object]:
    """The ratio under each condition, with its interval."""
    report = {}
    for condition in CONDITIONS:
        if condition == "demo targets":
            async with Client(guarded.base_url, guarded.admin_key) as client:
                await Admin(client).import_targets(
                    (ROOT / "demo" / "targets.jsonl").read_text(encoding="utf-8")
                )
        found = await ratios(bare.base_url, guarded.base_url, guarded.admin_key, prompts, load)
        interval = mean_interval(found)
        assert interval is not None
        report[condition] = interval.as_dict()
        click.echo(f"unmatched throughput, {condition}: {interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
                   f" of bare vLLM, {interval.n} paired rounds")  # fmt: skip
    return report


@click.group()
def main() -> None:
    """Speed of the guarded server and engine, as ratios to bare vLLM in the same run; and of detection."""


@main.command()
@click.option("--requests", default=200, show_default=True, help="Requests of one block.")
@click.option("--concurrency", default=16, show_default=True, help="Requests at once.")
@click.option("--rounds", default=8, show_default=True, help="Paired blocks under each condition.")
@click.option("--out", default=ROOT / "reports" / "bench-unmatched.json", type=click.Path(path_type=Path))
def unmatched(requests: int, concurrency: int, rounds: int, out: Path) -> None:
    """Throughput of unmatched requests, over HTTP: bare vLLM beside the guarded server on the demo model.

    Example: python -m benchmarks unmatched --rounds 4
    """
    load = Load(requests, concurrency, rounds)
    items = [i for i in load_items(ROOT / "demo" / "items.jsonl") if i.split in ("retain", "chat")]
    prompts = [i.messages for i in items]
    model = str(ROOT / "demo" / "models" / "full")
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bare = stack.enter_context(serve.bare(model, logs / "bare.log"))
        guarded = stack.enter_context(serve.guarded(model, logs / "guarded.log", logs / "data"))
        found = asyncio.run(measure(bare, guarded, prompts, load))
    report = {
        "load": asdict(load),
        "machine": platform.processor(),
        "ratios": {"unmatched_throughput": found},
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    click.echo(f"written to {out}")


main.add_command(auto)
main.add_command(classifiers)
main.add_command(detection)
main.add_command(edits)
main.add_command(features)
main.add_command(jobs)
main.add_command(kinds)
main.add_command(losses)
main.add_command(pooling)
main.add_command(relearning)
main.add_command(sequence)
main.add_command(sites)
main.add_command(slices)
main.add_command(subject)
main.add_command(tofu_command)
main.add_command(twin)

if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
