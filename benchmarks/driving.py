"""Servers on this machine that vLLM's own benchmark client drives, and what a block of requests took of them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click
import httpx
import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from evals import serve
from evals.items import Item
from guard.artifacts import ArtifactStore

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "demo" / "models" / "full"
CHAT = "/v1/chat/completions"
_SLOTS, _RANK = 4, 16  # the rank is the guarded server's default

Prompts = Callable[[int], list[list[dict[str, str]]]]
"""The prompts of a round."""


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
class Setup:
    """What is fixed when servers start: whether answers are judged by their meaning, and whether adapters can run."""

    semantic: bool = False
    adapters: bool = False

    @property
    def arguments(self) -> list[str]:
        """Of both servers; the guarded one sets those of adapters by itself."""
        lora = ["--enable-lora", "--max-loras", str(_SLOTS), "--max-lora-rank", str(_RANK)]
        return lora if self.adapters else []

    @property
    def env(self) -> dict[str, str]:
        """Of the guarded server."""
        slots = {"LETHE_ADAPTERS_SLOTS": str(_SLOTS)}
        return {"LETHE_OUTPUT_SEMANTIC": str(self.semantic).lower(), **(slots if self.adapters else {})}


@dataclass(frozen=True)
class Block:
    """What one block of requests took: seconds, output tokens, of each request the time to its first token and that
    per token behind it, the gaps between what came, all in seconds, processor seconds of the server's processes, their
    resident bytes at its end, and how many requests the guard acted upon."""

    seconds: float
    tokens: int
    first: tuple[float, ...]
    each: tuple[float, ...]
    gaps: tuple[float, ...]
    cpu: float
    memory: int
    acted: int = 0


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

    @property
    def headers(self) -> dict[str, str] | None:
        return {"Authorization": f"Bearer {self.key}"} if self.key else None

    def drive(self, prompts: Sequence[list[dict[str, str]]], load: Load, seed: int) -> Block:
        """One block of requests, streamed. Raises ClickException: one of them failed."""
        from vllm.benchmarks.datasets import SampleRequest
        from vllm.benchmarks.serve import TaskType, benchmark

        requests = [
            SampleRequest(turns[-1]["content"], 1, load.tokens, chat_messages=list(turns))
            for turns in prompts
        ]
        np.random.seed(seed)  # vLLM's client draws the moments of arrival from it
        acted, (before, _) = self.acted(), self.meter.read()
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
                    extra_headers=self.headers,
                    extra_body={"temperature": 0.0},
                    ready_check_timeout_sec=0,
                )
            )
        after, memory = self.meter.read()
        if failed := [error for error in found["errors"] if error]:
            whose = "the guarded server" if self.key else "bare vLLM"
            why = failed[0].strip().splitlines()[-1]
            raise click.ClickException(f"{len(failed)} of {len(requests)} requests to {whose} failed: {why}")
        return Block(
            found["duration"],
            found["total_output_tokens"],
            tuple(found["ttfts"]),
            tuple(
                sum(gaps) / (n - 1)
                for gaps, n in zip(found["itls"], found["output_lens"], strict=True)
                if n > 1
            ),
            tuple(gap for gaps in found["itls"] for gap in gaps),
            after - before,
            memory,
            self.acted() - acted,
        )

    def acted(self) -> int:
        """Requests that were not simply allowed, since the start; of bare vLLM none."""
        if self.key is None:
            return 0
        text = httpx.get(f"{self.base_url}/metrics", headers=self.headers, timeout=30).text
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        ended = [one for one in samples if one.name == "lethe_requests_total"]
        return int(sum(one.value for one in ended if one.labels["action"] != "allow"))


@dataclass(frozen=True)
class Side:
    """One of two that are compared: a server, and what it is asked."""

    server: Server
    prompts: Prompts


Pair = tuple[Block, Block]
"""What the first side took, and the second."""


def paired(one: Side, other: Side, load: Load) -> Iterator[Pair]:
    """Rounds; the first only warms both and is not given."""
    for number in range(-1, load.rounds):
        blocks = {}
        for i in (0, 1) if number % 2 else (1, 0):
            side = (one, other)[i]
            blocks[i] = side.server.drive(side.prompts(number), load, max(number, 0))
        if number >= 0:
            yield blocks[0], blocks[1]


def mixed(items: Sequence[Item], matched: float, requests: int, first: int = 0) -> Prompts:
    """Prompts of which the share `matched` is about what is to be forgotten, spread evenly. Each is numbered, from
    `first` on, so that none comes twice: a judgement that is remembered costs nothing."""
    forget = [item.messages for item in items if item.split == "forget"]
    others = [item.messages for item in items if item.split in ("retain", "chat")]

    def of(number: int) -> list[list[dict[str, str]]]:
        start = (number + 1) * requests
        about = [forget if int((i + 1) * matched) > int(i * matched) else others for i in range(requests)]
        return [numbered(pool[(start + i) % len(pool)], first + start + i) for i, pool in enumerate(about)]

    return of


def numbered(turns: Sequence[Mapping[str, str]], number: int) -> list[dict[str, str]]:
    *before, last = turns
    return [*map(dict, before), {**last, "content": f"Question {number}: {last['content']}"}]


@contextlib.contextmanager
def bare_server(model: Path, setup: Setup, folder: Path, arguments: Sequence[str] = ()) -> Iterator[Server]:
    """vLLM's own."""
    args = [*serve.engine_args(str(model)), *arguments, *setup.arguments]
    click.echo("bare vLLM starts")
    with serve.bare(str(model), folder / "bare.log", args=args) as running:
        yield Server(running.base_url, None, Meter.of(running.base_url))


@contextlib.contextmanager
def guarded_server(
    model: Path, setup: Setup, folder: Path, arguments: Sequence[str] = ()
) -> Iterator[Server]:
    """With the demo's artifacts."""
    args = [*serve.engine_args(str(model)), *arguments]
    for artifact in sorted((ROOT / "demo" / "artifacts").glob("*/")):
        ArtifactStore(folder / "data" / "artifacts").add(artifact)
    click.echo("the guarded server starts")
    with serve.guarded(
        str(model), folder / "guarded.log", folder / "data", args=args, env={**serve.ENGINE_ENV, **setup.env}
    ) as running:
        yield Server(running.base_url, running.admin_key, Meter.of(running.base_url))
