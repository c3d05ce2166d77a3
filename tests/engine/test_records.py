"""No record, no answer: what the frontend makes of what the workers report."""

from __future__ import annotations

import asyncio

import pytest

from guard.engine.records import Record, Reports, Ring
from guard.errors import GuardUnavailable
from guard.types import AppliedEdit, Edit, Sighting

EDIT = Edit("embedding", "embedding_corruption", (1, 5, 9), "0123456789abcdef")


def record(ticket="t", request="t-1", applied=3, cached=0, planned=3, error=None):
    edits = () if error else (AppliedEdit("embedding", None, planned, applied, cached),)
    return Record(ticket, request, edits, error)


class Workers:
    """Rings that a test fills; every drain takes a turn of the loop and is counted."""

    def __init__(self, *rings: Ring) -> None:
        self.rings, self.drains = rings, 0

    async def drain(self):
        self.drains += 1
        taken = [ring.drain() for ring in self.rings]
        await asyncio.sleep(0.01)
        return taken


async def confirmed(*records, n=1, sample=0, edits=(EDIT,)):
    ring = Ring()
    for r in records:
        ring.write(r)
    reports = Reports(Workers(ring).drain)
    with reports.expecting("t", edits, n):
        return await reports.confirm("t", sample)


async def test_a_record_that_adds_up_confirms():
    assert await confirmed(record()) == (AppliedEdit("embedding", None, 3, 3, 0),)
    assert await confirmed(record(applied=1, cached=2)) == (AppliedEdit("embedding", None, 3, 1, 2),)


@pytest.mark.parametrize(
    "records",
    [
        (),
        (record(ticket="other"),),
        (record(applied=2),),
        (record(applied=2, cached=2),),
        (record(planned=2, applied=2),),
        (record(error="EditError"),),
        (Record("t", "t-1", ()),),
        (record(), record(applied=0)),
    ],
)
async def test_anything_else_fails_the_request(records):
    with pytest.raises(GuardUnavailable) as failed:
        await confirmed(*records)
    assert failed.value.reason == "edit"


async def test_every_sample_needs_its_own_record():
    second = record(request="1_t-1")
    assert await confirmed(second, n=2, sample=1)
    with pytest.raises(GuardUnavailable):
        await confirmed(second, n=2, sample=0)


async def test_every_worker_has_to_report():
    one, other = Ring(), Ring()
    one.write(record())
    reports = Reports(Workers(one, other).drain)
    with reports.expecting("t", (EDIT,), 1), pytest.raises(GuardUnavailable):
        await reports.confirm("t", 0)
    one.write(record())
    other.write(record())
    with reports.expecting("t", (EDIT,), 1):
        assert await reports.confirm("t", 0)


async def test_many_waiters_share_one_drain():
    ring = Ring()
    workers = Workers(ring)
    reports = Reports(workers.drain)

    async def one(i: int):
        with reports.expecting(f"t{i}", (EDIT,), 1):
            ring.write(record(ticket=f"t{i}"))
            return await reports.confirm(f"t{i}", 0)

    await asyncio.gather(*(one(i) for i in range(50)))
    assert workers.drains <= 2


async def test_a_drain_that_left_before_the_record_is_asked_again():
    ring = Ring()
    workers = Workers(ring)
    reports = Reports(workers.drain)
    with reports.expecting("early", (EDIT,), 1), reports.expecting("late", (EDIT,), 1):
        ring.write(record(ticket="early"))
        first = asyncio.create_task(reports.confirm("early", 0))
        await asyncio.sleep(0.005)
        ring.write(record(ticket="late"))
        assert await reports.confirm("late", 0)
        await first
    assert workers.drains == 2


async def test_a_waiter_that_goes_away_leaves_the_others_alone():
    ring = Ring()
    reports = Reports(Workers(ring).drain)
    with reports.expecting("a", (EDIT,), 1), reports.expecting("b", (EDIT,), 1):
        ring.write(record(ticket="a"))
        ring.write(record(ticket="b"))
        gone = asyncio.create_task(reports.confirm("a", 0))
        await asyncio.sleep(0)
        staying = asyncio.create_task(reports.confirm("b", 0))
        await asyncio.sleep(0)
        gone.cancel()
        assert await staying


async def test_an_engine_that_fails_or_hangs_fails_the_request():
    async def broken():
        raise RuntimeError("gone")

    async def hanging():
        await asyncio.sleep(60)

    for drain, reason in ((broken, "edit"), (hanging, "engine")):
        reports = Reports(drain, timeout_s=0.05)
        with reports.expecting("t", (EDIT,), 1), pytest.raises(GuardUnavailable) as failed:
            await reports.confirm("t", 0)
        assert failed.value.reason == reason


def test_the_ring_is_bounded_and_loses_the_oldest():
    ring = Ring(size=2)
    for i in range(3):
        ring.write(record(ticket=str(i)))
    assert [wire[0] for wire in ring.drain()] == ["1", "2"]
    assert ring.drain() == []


def test_each_frontend_of_an_engine_gets_its_own_records():
    ring = Ring(size=3)
    for ticket in ("a.1", "b.1", "a.2"):
        ring.write(Record(ticket, "r"))
    assert [wire[0] for wire in ring.drain("a")] == ["a.1", "a.2"]
    for ticket in ("b.2", "b.3", "b.4"):
        ring.write(Record(ticket, "r"))
    assert ring.drain("a") == []
    assert [wire[0] for wire in ring.drain("b")] == ["b.2", "b.3", "b.4"]  # the ring stays bounded


async def test_what_is_seen_and_scored_does_not_count_as_an_edit():
    ring, seen = Ring(), Sighting("ab" * 32, 2.0, (1, 2))
    reports = Reports(Workers(ring).drain)
    with reports.expecting("t", (EDIT,), 1):
        ring.write(record())
        ring.write(Record("t", "t-1", sighting=seen))
        ring.write(Record("t", "t-1", scores=(-0.5, -1.0)))
        assert await reports.confirm("t", 0)
        assert await reports.sightings("t") == (seen,)
        assert await reports.scores("t") == (-0.5, -1.0)


async def test_a_request_that_no_worker_knows_is_not_quiet():
    reports = Reports(Workers(Ring()).drain)
    with reports.expecting("t", (), 1):
        with pytest.raises(GuardUnavailable):
            await reports.sightings("t")
        with pytest.raises(GuardUnavailable):
            await reports.scores("t")


async def test_a_drain_that_left_before_is_not_believed():
    """What is written while a drain is on its way back must be seen by whoever asks then."""
    ring, seen = Ring(), Sighting("ab" * 32, 2.0, (1, 2))
    reports = Reports(Workers(ring).drain)
    with reports.expecting("t", (), 1):
        ring.write(Record("t", "t-1"))
        first = asyncio.create_task(reports.sightings("t"))
        await asyncio.sleep(0.002)
        ring.write(Record("t", "t-1", sighting=seen))
        assert await reports.sightings("t") == (seen,)
        await first
