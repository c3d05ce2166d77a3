"""No more samples than places hold state at once, and nobody who waits is forgotten or passed by."""

from __future__ import annotations

import asyncio

import pytest

from guard.engine.queues import Queue, Queues
from guard.errors import BadRequest
from guard.interventions.logit_difference import LogitDifference
from guard.types import Edit

BOUND = Edit("logits", "logit_difference", (1,), "0123456789abcdef", onward=True)
FREE = Edit("embedding", "embedding_corruption", (1,), "0123456789abcdef")


class Busy:
    """Tasks that hold places until they are told to go; notes who has come in, and the most at once."""

    def __init__(self, queue: Queue) -> None:
        self.queue, self.order, self.inside, self.most = queue, [], 0, 0
        self.go: dict[str, asyncio.Event] = {}

    def start(self, name: str, wanted: int = 1) -> asyncio.Task[None]:
        self.go[name] = asyncio.Event()
        return asyncio.create_task(self._hold(name, wanted))

    async def _hold(self, name: str, wanted: int) -> None:
        async with self.queue.held(wanted):
            self.order.append(name)
            self.inside += wanted
            self.most = max(self.most, self.inside)
            try:
                await self.go[name].wait()
            finally:
                self.inside -= wanted


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_never_more_than_there_are_places_and_in_turn():
    busy = Busy(Queue(2))
    tasks = [busy.start(name) for name in "abcde"]
    await settled()
    assert busy.order == ["a", "b"]
    for name in "abcde":
        busy.go[name].set()
        await settled()
    await asyncio.gather(*tasks)
    assert (busy.order, busy.most) == (list("abcde"), 2)


async def test_many_samples_are_not_passed_by_for_ever():
    busy = Busy(Queue(3))
    tasks = [busy.start("a"), busy.start("b"), busy.start("large", 3), busy.start("c")]
    await settled()
    assert busy.order == ["a", "b"]
    for name in ("a", "b", "large", "c"):
        busy.go[name].set()
        await settled()
    await asyncio.gather(*tasks)
    assert (busy.order, busy.most) == (["a", "b", "large", "c"], 3)


async def test_who_goes_away_frees_its_place_and_its_turn():
    busy = Busy(Queue(1))
    tasks = {name: busy.start(name) for name in "abc"}
    await settled()
    tasks["b"].cancel()
    tasks["a"].cancel()
    await settled()
    assert busy.order == ["a", "c"]
    busy.go["c"].set()
    await tasks["c"]


async def test_more_than_all_places_is_refused():
    with pytest.raises(BadRequest, match="n is too large"):
        async with Queue(3).held(4):
            raise AssertionError


async def test_every_edit_of_every_sample_needs_a_place(monkeypatch):
    monkeypatch.setattr(LogitDifference, "resident", 4)
    queues = Queues()
    async with queues.passed((BOUND, BOUND, FREE), 2):
        waiting = asyncio.create_task(queues.passed((BOUND,), 1).__aenter__())
        await settled()
        assert not waiting.done()
    await waiting
    with pytest.raises(BadRequest):
        async with queues.passed((BOUND, BOUND), 3):
            raise AssertionError


async def test_methods_without_state_do_not_wait(monkeypatch):
    monkeypatch.setattr(LogitDifference, "resident", 1)
    queues = Queues()
    async with queues.passed((BOUND,), 1), asyncio.timeout(1), queues.passed((FREE, FREE), 1000):
        pass
