"""Bare vLLM and the guarded server with the same arguments, driven in turn by vLLM's own benchmark client.

Each round sends the same requests, at the same moments, to one server and then to the other; who goes first alternates.
What is compared is compared within a round: the machine's other work falls on both. Answers have a fixed length, so
that both do the same work; matched answers may be shorter, so throughput counts the tokens that came.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import click
import numpy as np
import psutil

from benchmarks.sites import make_model
from evals import serve
from evals.admin import Admin
from evals.client import Client
from evals.items import Item, load_items
from guard.metrics.bootstrap import Interval, mean_interval

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "demo" / "models" / "full"
SAMPLES = 2_000
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Load:
    """One block: how many requests, how many at once (None: as they come), how many come in a second (None: at once),
    the tokens of an answer, and how many paired blocks."""

    requests: int
    concurrency: int | None
    rate: float | None
    tokens: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Condition:
    """What is registered, and what share of the prompts is about it."""

    name: str
    mode: Literal["shadow", "enforce"] | None
    matched: float = 0.0


CONDITIONS = (
    Condition("unregistered", None),
    Condition("shadow", "shadow"),
    Condition("unmatched", "enforce"),
    Condition("matched_1", "enforce", 0.01),
    Condition("matched_10", "enforce", 0.1),
    Condition("matched_100", "enforce", 1.0),
)


@dataclass(frozen=True)
class Block:
    """What one block of requests took: seconds, output tokens, the times to each first token and between tokens in
    seconds, processor seconds of the server's processes, and their resident bytes at its end."""

    seconds: float
    tokens: int
    first: tuple[float, ...]
    between: tuple[float, ...]
    cpu: float
    memory: int


@dataclass(frozen=True)
class Meter:
    """The processes of a server: its whole group."""

    group: int

    @classmethod
    def of(cls, base_url: str) -> Meter:
        port = urlsplit(base_url).port
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr.port == port and found.pid:
                return cls(os.getpgid(found.pid))
        raise click.ClickException("The server's processes cannot be seen.")

    def read(self) -> tuple[float, int]:
        """Processor seconds and resident bytes."""
        seconds, resident = 0.0, 0
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) == self.group:
                    times = process.cpu_times()
                    seconds += times.user + times.system
                    resident += process.memory_info().rss
        return seconds, resident


@dataclass(frozen=True)
class Server:
    base_url: str
    key: str | None
    meter: Meter
    name: str = "demo"

    def drive(self, prompts: Sequence[list[dict[str, str]]], load: Load, seed: int) -> Block:
        """One block of requests, streamed. Raises ClickException: one of them failed."""
        from vllm.benchmarks.datasets import SampleRequest
        from vllm.benchmarks.serve import TaskType, benchmark

        requests = [
            SampleRequest(turns[-1]["content"], 1, load.tokens, chat_messages=list(turns))
            for turns in prompts
        ]
        np.random.seed(seed)  # vLLM's client draws the moments of arrival from it
        before, _ = self.meter.read()
        with contextlib.redirect_stdout(io.StringIO()):
            found = asyncio.run(
                benchmark(
                    task_type=TaskType.GENERATION,
                    endpoint_type="openai-chat",
                    api_url=self.base_url + CHAT,
                    base_url=self.base_url,
                    model_id=self.name,
                    model_name=self.name,
                    tokenizer=None,
                    input_requests=requests,
                    logprobs=None,
                    request_rate=load.rate or float("inf"),
                    burstiness=1.0,
                    disable_tqdm=True,
                    num_warmups=0,
                    profile=False,
                    selected_percentile_metrics=[],
                    selected_percentiles=[99.0],
                    ignore_eos=True,
                    goodput_config_dict={},
                    max_concurrency=load.concurrency,
                    lora_modules=None,
                    extra_headers={"Authorization": f"Bearer {self.key}"} if self.key else None,
                    extra_body={"temperature": 0.0},
                    ready_check_timeout_sec=0,
                )
            )
        after, memory = self.meter.read()
        if failed := [error for error in found["errors"] if error]:
            raise click.ClickException(f"{len(failed)} requests failed; the first: {failed[0][:200]}")
        between = tuple(gap for gaps in found["itls"] for gap in gaps)
        return Block(
            found["duration"],
            found["total_output_tokens"],
            tuple(found["ttfts"]),
            between,
            after - before,
            memory,
        )


Pair = tuple[Block, Block]
"""What bare vLLM and the guarded server took for the same requests."""

Prompts = Callable[[int], list[list[dict[str, str]]]]
"""The prompts of a round."""


def paired(bare: Server, guarded: Server, prompts: Prompts, load: Load) -> Iterator[Pair]:
    """Rounds; the first only warms both and is not given."""
    for number in range(-1, load.rounds):
        chosen = prompts(number)
        order = (bare, guarded) if number % 2 else (guarded, bare)
        blocks = {server.base_url: server.drive(chosen, load, max(number, 0)) for server in order}
        if number >= 0:
            yield blocks[bare.base_url], blocks[guarded.base_url]


def mixed(items: Sequence[Item], matched: float, requests: int) -> Prompts:
    """Prompts of which the share `matched` is about what the demo forgets, spread evenly; no two rounds are alike."""
    forget = [item.messages for item in items if item.split == "forget"]
    others = [item.messages for item in items if item.split in ("retain", "chat")]

    def of(number: int) -> list[list[dict[str, str]]]:
        first = (number + 1) * requests
        about = [forget if int((i + 1) * matched) > int(i * matched) else others for i in range(requests)]
        return [pool[(first + i) % len(pool)] for i, pool in enumerate(about)]

    return of


def quantile_ratio(pairs: Sequence[tuple[float, float]], quantile: float, seed: int = 0) -> Interval | None:
    """The ratio of second to first at a quantile, with its interval over resampled pairs."""
    if not pairs:
        return None
    data, rng = np.asarray(pairs), np.random.default_rng(seed)
    ratio = lambda rows: float(np.divide(*np.quantile(rows, quantile, axis=0)[::-1]))  # noqa: E731
    drawn = [ratio(data[rng.integers(0, len(data), len(data))]) for _ in range(SAMPLES)]
    low, high, upper = (float(x) for x in np.quantile(drawn, [0.025, 0.975, 0.95]))
    return Interval(len(data), ratio(data), low, high, upper)


def _by_round(of: Callable[[Block], float]) -> Callable[[Sequence[Pair]], Interval | None]:
    """The mean over rounds of guarded over bare."""
    return lambda pairs: mean_interval([of(guarded) / of(bare) for bare, guarded in pairs])


def _by_request(quantile: float) -> Callable[[Sequence[Pair]], Interval | None]:
    """Guarded over bare at a quantile of the times to the first token, over the pairs of requests of all rounds."""
    return lambda pairs: quantile_ratio(
        [both for bare, guarded in pairs for both in zip(bare.first, guarded.first, strict=True)], quantile
    )


MEASURES: dict[str, Callable[[Sequence[Pair]], Interval | None]] = {
    "throughput": _by_round(lambda block: block.tokens / block.seconds),
    "ttft_p50": _by_request(0.5),
    "ttft_p95": _by_request(0.95),
    "ttft_p99": _by_request(0.99),
    # Not the median: where a chunk holds several tokens, the gap between them is none.
    "itl_mean": _by_round(lambda block: float(np.mean(block.between))),
    "itl_p99": _by_round(lambda block: float(np.quantile(block.between, 0.99))),
    "cpu_per_token": _by_round(lambda block: block.cpu / block.tokens),
    "memory": _by_round(lambda block: float(block.memory)),
}
"""Guarded over bare; of throughput more is better, of all others less."""


def worse(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """The ratios that are certainly worse than stored ones: intervals apart, on the wrong side."""
    found = []
    for name in sorted(now.keys() & before.keys()):
        more_is_better = name.endswith("throughput")
        new, old = now[name], before[name]
        apart = new["high"] < old["low"] if more_is_better else new["low"] > old["high"]
        if apart:
            found.append(f"{name}: {new['mean']:.3f}, was {old['mean']:.3f}")
    return found


async def register(server: Server, condition: Condition) -> None:
    """The demo's targets as the condition wants them."""
    lines = (ROOT / "demo" / "targets.jsonl").read_text(encoding="utf-8").splitlines()
    targets = [json.loads(line) | {"mode": condition.mode or "off"} for line in lines]
    async with Client(server.base_url, server.key) as client:
        await Admin(client).import_targets("\n".join(map(json.dumps, targets)))


def measure(
    bare: Server, guarded: Server, items: Sequence[Item], load: Load, conditions: Sequence[Condition]
) -> dict[str, dict[str, float]]:
    """Every ratio under every condition, `CONDITION_MEASURE`."""
    ratios: dict[str, dict[str, float]] = {}
    for condition in conditions:
        asyncio.run(register(guarded, condition))
        pairs = list(paired(bare, guarded, mixed(items, condition.matched, load.requests), load))
        for name, of in MEASURES.items():
            if (interval := of(pairs)) is not None:
                ratios[f"{condition.name}_{name}"] = interval.as_dict()
                told = f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}], n = {interval.n}"
                click.echo(f"{condition.name:>13} {name:<14} {told}")
    return ratios


@contextlib.contextmanager
def servers(model: Path, arguments: Sequence[str]) -> Iterator[tuple[Server, Server]]:
    """Bare vLLM and the guarded server, side by side."""
    args = [*serve.engine_args(str(model)), *arguments]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bare = stack.enter_context(serve.bare(str(model), folder / "bare.log", args=args))
        guarded = stack.enter_context(
            serve.guarded(str(model), folder / "guarded.log", folder / "data", args=args)
        )
        yield (
            Server(bare.base_url, None, Meter.of(bare.base_url)),
            Server(guarded.base_url, guarded.admin_key, Meter.of(guarded.base_url)),
        )


@click.command()
@click.option(
    "--model",
    type=click.Choice(["demo", "half-billion"]),
    default="demo",
    show_default=True,
    help="The demo's, or one of 0.5 billion random weights.",
)
@click.option("--requests", default=64, show_default=True, help="Requests of one block.")
@click.option("--concurrency", default=32, show_default=True, help="Requests at once; 0: as they come.")
@click.option("--rate", type=float, help="Requests that come in a second; all at once where it is left out.")
@click.option("--tokens", default=128, show_default=True, help="Tokens of an answer.")
@click.option("--rounds", default=8, show_default=True, help="Paired blocks under each condition.")
@click.option(
    "--condition",
    "wanted",
    multiple=True,
    type=click.Choice([c.name for c in CONDITIONS]),
    help="May be repeated; all where it is left out.",
)
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A stored report: exit 1 where a ratio is certainly worse than there.",
)
@click.option("--out", default=ROOT / "benchmarks" / "report.json", show_default=True,
              type=click.Path(dir_okay=False, path_type=Path))  # fmt: skip
def serving(
    model: str,
    requests: int,
    concurrency: int,
    rate: float | None,
    tokens: int,
    rounds: int,
    wanted: tuple[str, ...],
    against: Path | None,
    out: Path,
) -> None:
    """The guarded server beside bare vLLM over HTTP, as ratios within one run.

    Example: lethe bench serving --condition unmatched --condition matched_10 --rounds 4
    """
    stored = json.loads(against.read_text(encoding="utf-8"))["ratios"] if against else {}
    load = Load(requests, concurrency or None, rate, tokens, rounds)
    conditions = [c for c in CONDITIONS if not wanted or c.name in wanted]
    items = load_items(ROOT / "demo" / "items.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        path, arguments = DEMO, list[str]()
        if model != "demo":
            path = make_model(ROOT / "benchmarks" / "shapes" / f"{model}.json", Path(folder))
            arguments = ["--chat-template", str(ROOT / "demo" / "chat_template.jinja")]
        with servers(path, arguments) as (bare, guarded):
            ratios = measure(bare, guarded, items, load, conditions)
    report = {"model": model, "load": asdict(load), "machine": machine(), "ratios": ratios}
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    click.echo(f"written to {out}")
    if found := worse(ratios, stored):
        raise click.ClickException("worse than stored: " + "; ".join(found))


def machine() -> dict[str, Any]:
    return {"processor": platform.processor() or platform.machine(), "cores": len(os.sched_getaffinity(0))}
