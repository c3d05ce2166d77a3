"""Whether what must stay answerable still is. A set of probes, prompts with the answer that each should get, is judged
as the check judges and scored as `/score` scores: beside the score under the verdict, that of a request which nothing
matches, in the same round, so that only what the targets do lies between the two.

Probes step back behind clients: one at a time, with pauses, and none while the guard is busy. They are no requests of a
client and stand neither in the decision log nor in its counts. Their texts are never logged; a line's number is.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from guard.config import DriftSettings
from guard.errors import ConfigError
from guard.types import Admission, Decision
from server.admin.schemas import CheckBody
from server.checks import Scorer

log = logging.getLogger("lethe.guard")

ROUTE = "/admin/v1/score"
LOOK_SECONDS = 1.0
CHANGED_SECONDS = 60.0
"""A changed snapshot is looked at no sooner than this after the beginning of the round before."""
PAUSE = 3.0
"""Probes take at most one part in four of the time of a round."""
PATIENCE_SECONDS = 60.0
"""How long a probe waits for a busy guard; then the round is skipped."""

Outcome = Literal["done", "skipped", "failed"]


class ProbeRow(CheckBody):
    """A line of the file: what the check takes, and the answer that must stay likely."""

    answer: str = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Probe:
    """What is asked, as the check takes it; the answer that must stay likely; the line of the file."""

    body: Mapping[str, Any]
    answer: str
    line: int


@dataclass(frozen=True, slots=True)
class Reading:
    """One probe: the targets that would act on it, whether one in shadow mode would, whether the answer would come from
    the model, and how much less likely each of its tokens is under the verdict, on average, in nats."""

    targets: frozenset[str]
    shadowed: bool
    drop: float | None


@dataclass(frozen=True)
class Round:
    """All probes once, begun under `snapshot`. A reply in place of the model's answer has no likelihood: such probes
    are `refused`, and `mean_drop` is over the `scored` others (None without any). `targets` counts matched probes."""

    snapshot: int
    finished_at: float
    probes: int
    matched: int
    shadowed: int
    refused: int
    scored: int
    mean_drop: float | None
    targets: Mapping[str, int]

    @classmethod
    def of(cls, readings: Sequence[Reading], snapshot: int, finished_at: float) -> Round:
        drops = [reading.drop for reading in readings if reading.drop is not None]
        return cls(
            snapshot,
            finished_at,
            probes=len(readings),
            matched=sum(bool(reading.targets) for reading in readings),
            shadowed=sum(reading.shadowed for reading in readings),
            refused=len(readings) - len(drops),
            scored=len(drops),
            mean_drop=sum(drops) / len(drops) if drops else None,
            targets=dict(Counter(target for reading in readings for target in reading.targets)),
        )

    @property
    def matched_share(self) -> float:
        return self.matched / self.probes


class Busy(Exception):
    """The guard had no room for probes in time."""


@dataclass
class Watcher:
    """`snapshot` gives the number of the state in force, `busy` whether clients need the guard now. `clock` gives
    seconds since the epoch; `last` is the latest round that was done."""

    probes: Sequence[Probe]
    settings: DriftSettings
    score: Scorer
    snapshot: Callable[[], int]
    busy: Callable[[], bool]
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    last: Round | None = None
    rounds: Counter[Outcome] = field(default_factory=Counter)
    started_at: float = 0.0
    _begun: float | None = None
    _seen: int | None = None

    async def run(self) -> None:
        """Until cancelled."""
        self.started_at = self.clock()
        while True:
            if self.due():
                await self.round()
            await self.sleep(LOOK_SECONDS)

    def due(self) -> bool:
        """Whether the time has come, or the snapshot has changed since the last round that was done."""
        if self._begun is None:
            return True
        since = self.monotonic() - self._begun
        changed = self.snapshot() != self._seen
        return since >= self.settings.every_s or (changed and since >= CHANGED_SECONDS)

    async def round(self) -> None:
        """Every probe once. A round that cannot be finished leaves the numbers of the one before, and is counted."""
        self._begun, snapshot = self.monotonic(), self.snapshot()
        readings: list[Reading] = []
        outcome: Outcome = "done"
        try:
            for probe in self.probes:
                await self._room()
                readings.append(await self._spaced(probe))
        except Busy:
            outcome = "skipped"
        except Exception as error:  # told by its type alone: a message may hold a part of the prompt
            outcome = "failed"
            line = self.probes[len(readings)].line
            log.error("drift: the probe in line %d could not be scored (%s)", line, type(error).__name__)
        else:
            self._seen = snapshot
            self.last = Round.of(readings, snapshot, self.clock())
        self.rounds[outcome] += 1

    def status(self) -> dict[str, Any]:
        """What `/status` shows: the latest round, how rounds ended, and the limits."""
        last = self.last
        return {
            "last": {**asdict(last), "matched_share": last.matched_share} if last else None,
            "rounds": dict(self.rounds),
            "limits": {
                "matched_share": self.settings.max_matched_share,
                "mean_drop": self.settings.max_drop,
            },
        }

    async def _room(self) -> None:
        """
        Raises:
            Busy: clients needed the guard all the time.
        """
        until = self.monotonic() + PATIENCE_SECONDS
        while self.busy():
            if self.monotonic() >= until:
                raise Busy
            await self.sleep(LOOK_SECONDS)

    async def _spaced(self, probe: Probe) -> Reading:
        begun = self.monotonic()
        reading = await self._read(probe)
        await self.sleep(PAUSE * (self.monotonic() - begun))
        return reading

    async def _read(self, probe: Probe) -> Reading:
        checker, engine = self.score.checker, self.score.engine
        context = checker.context(probe.body, ROUTE)
        judged = await checker.judged(probe.body, context)
        decision = judged.admission.decision
        ids = self.score.tokens(probe.answer)
        clean = Admission(Decision("allow", decision.snapshot))
        under, without = [
            await engine.score(judged.prompt, admission, ids) for admission in (judged.admission, clean)
        ]
        matches = (*decision.matches, *context.withheld)
        return Reading(
            frozenset(match.target_id for match in matches if not match.shadow),
            any(match.shadow for match in matches),
            None if under is None or without is None else (sum(without) - sum(under)) / len(ids),
        )


def read_probes(path: Path) -> tuple[Probe, ...]:
    """The probes of a file of JSON lines.

    Raises:
        ConfigError: it cannot be read, or a line is no probe; told by its number, not by its text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"drift.probes: {path} cannot be read ({type(error).__name__}).") from None
    probes = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = ProbeRow.model_validate(json.loads(line))
        except ValidationError as error:
            first = error.errors()[0]
            wrong = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
            raise ConfigError(f"drift.probes: line {number} of {path}: {wrong}.") from None
        except ValueError:
            raise ConfigError(f"drift.probes: line {number} of {path} is not JSON.") from None
        body = row.model_dump(exclude_none=True, exclude={"answer"})
        probes.append(Probe(body, row.answer, number))
    if not probes:
        raise ConfigError(f"drift.probes: {path} holds no probe.")
    return tuple(probes)
