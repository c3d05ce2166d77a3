"""This process among those that serve from one store: it follows what the others write, tells how far it is, and knows
since when it cannot tell whether what it serves is current.

A thread looks at the store whenever somebody announces a change, and every second in any case. While the store does not
answer, the last state is served on, for `max_age` seconds at most: after that `snapshot` raises, so that every request
is refused with a 503 that is safe to send elsewhere, and `unready` says why. The age of a state begins before the look
that confirmed it, so it is never younger than it seems.
"""

from __future__ import annotations

import asyncio
import logging
import secrets as random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from guard.errors import GuardUnavailable, LetheError
from guard.register import Register
from guard.snapshot import Snapshot
from guard.store import Store
from guard.store.replicas import Standing

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
REPORT_SHARE = 0.1  # of `max_age`: so often a replica says that it is there, even where nothing changes
LEASE_SHARE = (
    1.5  # of `max_age`: so long after it last said so a replica may still serve, its report's age included
)
SETTLE_SECONDS = 5.0
SETTLE_LOOK_SECONDS = 0.05
LEAVE_SECONDS = 5.0


class Keyring(Protocol):
    """Who knows the keys in memory; `number` is that of the last change of them that holds here."""

    number: int

    def follow(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Laggard:
    """A process that may still serve and does not have a change in force, or has not said so."""

    name: str
    snapshot: int


UNKNOWN = Laggard("unknown", 0)
"""Stands for those that cannot be asked for, because the store does not answer."""


class Replica:
    """`name` tells it from the others for operators; `clock` gives seconds since the epoch, `monotonic` never goes
    back."""

    def __init__(
        self,
        store: Store,
        register: Register,
        keyring: Keyring,
        *,
        name: str,
        max_age: float,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = random.token_hex(8)
        self._store = store
        self._register = register
        self._keyring = keyring
        self._name = name
        self._max_age = max_age
        self._clock = clock
        self._monotonic = monotonic
        self._confirmed = monotonic()  # the state was just read
        self._reported: tuple[int, int] | None = None
        self._reported_at = 0.0
        self._failure = ""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self.follow()
        self._thread = threading.Thread(target=self._loop, name="lethe-replica", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop following; nobody waits for this process any more."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(LEAVE_SECONDS)
        try:
            self._store.replicas.leave(self.id)
        except GuardUnavailable as error:
            logger.warning("this server could not be signed off: %s", error.message)

    @property
    def age(self) -> float:
        """Seconds since what is served here was certainly current."""
        return self._monotonic() - self._confirmed

    @property
    def unready(self) -> str | None:
        """Why no request may be served from this process's state, or None."""
        if self.age <= self._max_age:
            return None
        return f"The targets served here may be out of date since {self.age:.0f} seconds: {self._failure}"

    @property
    def snapshot(self) -> Snapshot:
        """What is enforced now.

        Raises:
            GuardUnavailable: it may be out of date for too long.
        """
        if self.age > self._max_age:
            raise GuardUnavailable("The targets served here may be out of date; try again.", reason="store")
        return self._register.snapshot

    def follow(self) -> None:
        """Put in force what others have changed, and tell the others.

        Raises:
            GuardUnavailable: that cannot be known or done.
        """
        looked = self._monotonic()
        self._keyring.follow()
        self._register.follow()
        self._confirmed = looked
        self._report()

    async def settled(self) -> list[Laggard]:
        """Wait until every live process has in force what this one has now; those that do not have it in time."""
        wanted = (self._register.snapshot.version, self._keyring.number)
        ends = self._monotonic() + SETTLE_SECONDS
        while True:
            laggards = await asyncio.to_thread(self._behind, *wanted)
            if not laggards or self._monotonic() >= ends:
                return laggards
            await asyncio.sleep(SETTLE_LOOK_SECONDS)

    def live(self) -> list[Standing]:
        """All processes that serve from this store now. Blocks."""
        return self._store.replicas.live(self._clock())

    def _behind(self, snapshot: int, keys: int) -> list[Laggard]:
        try:
            live = self.live()
        except GuardUnavailable:
            return [UNKNOWN]
        return [
            Laggard(one.name, one.snapshot)
            for one in live
            if one.id != self.id and (one.snapshot < snapshot or one.keys < keys)
        ]

    def _report(self) -> None:
        now, standing = self._monotonic(), (self._register.followed, self._keyring.number)
        if standing != self._reported or now - self._reported_at >= REPORT_SHARE * self._max_age:
            seen = self._clock()
            self._store.replicas.report(
                Standing(
                    self.id, self._name, *standing, seen_at=seen, lease=seen + LEASE_SHARE * self._max_age
                )
            )
            self._reported, self._reported_at = standing, now

    def _loop(self) -> None:
        listener = self._store.listener()
        while not self._stopping.is_set():
            listener.wait(LOOK_SECONDS)
            try:
                self.follow()
                self._failure = ""
            except Exception as error:
                told = error.message if isinstance(error, LetheError) else type(error).__name__
                if told != self._failure:
                    logger.error("what other servers changed cannot be followed: %s", told)
                self._failure = told
        listener.close()
