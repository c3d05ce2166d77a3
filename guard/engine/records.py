"""Proof that edits happened: workers count, the frontend asks, and nothing is answered before it is told.

A worker writes one `Record` per edited request into a bounded ring when the request has passed its last
planned position, another when an edit of its answer fails later, when a gate fires, and when the likelihoods of a
forced answer are complete. The frontend drains the ring with one call for all requests that wait. Records that do not
arrive, or do not add up, fail their request.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from guard.errors import GuardUnavailable
from guard.types import AppliedEdit, Edit, Sighting

log = logging.getLogger("lethe.engine")

_RING = 65_536


@dataclass(frozen=True, slots=True)
class Record:
    """What a worker did to one request: its counts per edit, or why it could not; which gate fired; the natural
    logarithms of the likelihoods of its forced tokens."""

    ticket: str
    request: str
    edits: tuple[AppliedEdit, ...] = ()
    error: str | None = None
    sighting: Sighting | None = None
    scores: tuple[float, ...] = ()

    def to_wire(self) -> list[Any]:
        edits = [[e.site, e.layer, e.planned, e.applied, e.from_cache] for e in self.edits]
        sighting = (
            [self.sighting.table, self.sighting.excess, self.sighting.positions] if self.sighting else None
        )
        return [self.ticket, self.request, edits, self.error, sighting, self.scores]

    @classmethod
    def from_wire(cls, wire: Sequence[Any]) -> Record:
        ticket, request, edits, error, seen, scores = wire
        sighting = Sighting(seen[0], seen[1], tuple(seen[2])) if seen else None
        return cls(ticket, request, tuple(AppliedEdit(*e) for e in edits), error, sighting, tuple(scores))


class Ring:
    """The worker's side. When nobody drains, the oldest records are lost, and their requests fail."""

    def __init__(self, size: int = _RING) -> None:
        self._records: deque[Record] = deque(maxlen=size)

    def write(self, record: Record) -> None:
        self._records.append(record)

    def drain(self, origin: str = "") -> list[list[Any]]:
        """Records since the last call of tickets that begin with `origin`, in their wire form: of one frontend among
        those of this engine, or of all."""
        taken, left = [], deque[Record](maxlen=self._records.maxlen)
        for record in self._records:
            taken.append(record.to_wire()) if record.ticket.startswith(origin) else left.append(record)
        self._records = left
        return taken


@dataclass
class _Expected:
    """A request that waits: its edits, its number of samples, and what came of it: records of its edits by sample,
    sightings, scores."""

    edits: tuple[Edit, ...]
    n: int
    records: dict[int, list[Record]] = field(default_factory=dict)
    sightings: list[Sighting] = field(default_factory=list)
    scores: tuple[float, ...] = ()

    def take(self, record: Record) -> None:
        if record.sighting is not None:
            self.sightings.append(record.sighting)
        elif record.scores:
            self.scores = record.scores
        else:
            sample = _sample(record.request) if self.n > 1 else 0
            self.records.setdefault(sample, []).append(record)


class Reports:
    """The frontend's side. `drain` asks every worker for its records and returns one list per worker."""

    def __init__(self, drain: Callable[[], Awaitable[list[list[Any]]]], timeout_s: float = 30.0) -> None:
        self._drain = drain
        self._timeout_s = timeout_s
        self._expected: dict[str, _Expected] = {}
        self._round: asyncio.Task[None] | None = None
        self._workers = 1

    @contextmanager
    def expecting(self, ticket: str, edits: tuple[Edit, ...], n: int) -> Iterator[None]:
        """Keep records of `ticket` while the block runs; records of anything else are thrown away."""
        self._expected[ticket] = _Expected(edits, n)
        try:
            yield
        finally:
            del self._expected[ticket]

    async def confirm(self, ticket: str, sample: int) -> tuple[AppliedEdit, ...]:
        """What was done to sample number `sample` of a request that has given its first token.

        Raises:
            GuardUnavailable: no record of it came, a worker failed, or the counts are not those planned.
        """
        expected = self._expected[ticket]
        if len(expected.records.get(sample, ())) < self._workers:
            await self._fresh_round()
        records = expected.records.get(sample, [])
        if len(records) < self._workers or not all(_adds_up(r, expected.edits) for r in records):
            log.error("an edited request is not confirmed: %s", _why(records))
            raise GuardUnavailable("The answer could not be vouched for; try again.", reason="edit")
        return records[0].edits

    async def confirm_end(self, ticket: str, sample: int) -> None:
        """Before a finished sample is given away whose edits went on behind its prompt.

        Raises:
            GuardUnavailable: an edit failed after the first token.
        """
        await self._fresh_round()
        self._failed_on_the_way(self._expected[ticket].records.get(sample, []))

    async def sightings(self, ticket: str) -> tuple[Sighting, ...]:
        """The gates that have fired, in any sample, on what has led to the output that has just come.

        Raises:
            GuardUnavailable: a worker does not know of the request, or could not observe it.
        """
        expected = self._expected[ticket]
        await self._fresh_round()
        records = [record for found in expected.records.values() for record in found]
        self._failed_on_the_way(records)
        if not records:
            log.error("an observed request is not confirmed: %s", _why(records))
            raise GuardUnavailable("The answer could not be vouched for; try again.", reason="edit")
        return tuple(expected.sightings)

    async def scores(self, ticket: str) -> tuple[float, ...]:
        """The likelihoods of the forced tokens of a request of one sample that has ended.

        Raises:
            GuardUnavailable: they did not come.
        """
        expected = self._expected[ticket]
        await self._fresh_round()
        self._failed_on_the_way(expected.records.get(0, []))
        if not expected.scores:
            raise GuardUnavailable("The likelihoods did not come; try again.")
        return expected.scores

    def _failed_on_the_way(self, records: list[Record]) -> None:
        if any(record.error is not None for record in records):
            log.error("a request failed on the way: %s", _why(records))
            raise GuardUnavailable("The answer could not be vouched for; try again.", reason="edit")

    async def _fresh_round(self) -> None:
        """A drain that was under way when we came may have left before our record was written: not that one."""
        if self._round is not None and not self._round.done():
            await self._next_round()
        await self._next_round()

    async def _next_round(self) -> None:
        if self._round is None or self._round.done():
            self._round = asyncio.create_task(self._collect())
        try:
            # Shielded: the round serves everybody who waits, also when one of them goes away.
            await asyncio.wait_for(asyncio.shield(self._round), self._timeout_s)
        except TimeoutError:
            raise GuardUnavailable("The engine does not answer; try again.", reason="engine") from None

    async def _collect(self) -> None:
        try:
            answers = await self._drain()
        except Exception:
            log.exception("the workers' records could not be read")
            return
        self._workers = max(len(answers), 1)
        for answer in answers:
            for wire in answer:
                record = Record.from_wire(wire)
                expected = self._expected.get(record.ticket)
                if expected is not None:
                    expected.take(record)


def _sample(request: str) -> int:
    """vLLM names sample i of a request with n > 1 `i_<request id>`."""
    return int(request.split("_", 1)[0])


def _adds_up(record: Record, edits: tuple[Edit, ...]) -> bool:
    return (
        record.error is None
        and len(record.edits) == len(edits)
        and all(
            len(edit.positions) == done.planned == done.applied + done.from_cache
            for edit, done in zip(edits, record.edits, strict=True)
        )
    )


def _why(records: list[Record]) -> str:
    if not records:
        return "no record"
    return "; ".join(
        r.error or ", ".join(f"{e.applied}+{e.from_cache}/{e.planned} at {e.site}" for e in r.edits)
        for r in records
    )
