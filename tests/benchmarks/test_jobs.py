"""The benchmark of training beside serving compares the same requests, and says what it measured."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager

import pytest

from benchmarks import jobs
from benchmarks.jobs import Block, Load, Round, rounds, told

LOADS = (Load(4, 2), Load(2, 1))
PROMPTS = [[{"role": "user", "content": str(i)}] for i in range(10)]


class Fake:
    """Jobs that slow every answer by half while they run."""

    def __init__(self) -> None:
        self.busy = False
        self.log: list[tuple[str, tuple[str, ...], bool]] = []

    @asynccontextmanager
    async def running(self, kinds):
        self.busy = True
        yield
        self.busy = False

    @contextmanager
    def stopped(self):
        self.busy = False
        yield
        self.busy = True

    async def block(self, client, prompts, load):
        self.log.append((str(load), tuple(turns[0]["content"] for turns in prompts), self.busy))
        each = 1.5 if self.busy else 1.0
        return Block(each * len(prompts) / load.concurrency, (each,) * len(prompts))


async def test_both_blocks_of_a_round_ask_the_same_and_their_order_alternates(monkeypatch, capsys):
    fake = Fake()
    monkeypatch.setattr(jobs, "block", fake.block)
    found = await rounds(None, fake, ("adapter",), PROMPTS, LOADS, 3)
    asked = [fake.log[i : i + 2] for i in range(0, len(fake.log), 2)]
    assert [[busy for *_, busy in pair] for pair in asked] == [[True, False]] * 2 + [[False, True]] * 2 + [
        [True, False]
    ] * 2 + [[False, True]] * 2
    assert all(first[:2] == second[:2] for first, second in asked)
    assert len({first[1] for first, _ in asked[::2]}) == 4, "every round asks something else"
    assert [len(made) for made in found.values()] == [3, 3], "the first round only warms"
    report = told(found)
    assert report["2 at once"]["throughput"]["mean"] == pytest.approx(1 / 1.5)
    assert report["one after the other"]["time_per_answer"]["mean"] == pytest.approx(1.5)
    said = capsys.readouterr().out
    assert "2 at once: throughput 0.667 [0.667, 0.667]" in said and "3 paired rounds of 4 requests" in said


def test_the_ratios_are_those_of_beside_to_alone():
    one = Round(Block(2.0, (0.1, 0.3)), Block(5.0, (0.4, 0.8)))
    assert (one.throughput, one.time) == (pytest.approx(0.4), pytest.approx(3.0))
