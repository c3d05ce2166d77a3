"""How fast an endpoint is asked: a limit of requests per second, and the rests that it asks for itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

LONGEST = 60.0  # seconds; a server that asks for a longer rest gets this one
BUSY = 429


class Pace:
    """Requests wait for their `turn`: at most `rate` a second, evenly spread, and none before a rest is over."""

    def __init__(
        self,
        rate: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._gap = 1 / rate if rate else 0.0
        self._clock, self._sleep = clock, sleep
        self._next = 0.0
        self._rest = 0.0

    async def turn(self) -> None:
        """Returns when the next request may go."""
        while True:
            now = self._clock()
            at = max(now, self._next, self._rest)
            self._next = at + self._gap
            if at > now:
                await self._sleep(at - now)
            if self._clock() >= self._rest:  # none was asked for meanwhile
                return

    def heed(self, response: httpx.Response) -> None:
        """The `Retry-After` of a 429 is a rest for every request that has not gone yet."""
        if response.status_code == BUSY and (seconds := asked_rest(response.headers.get("retry-after"))):
            self._rest = max(self._rest, self._clock() + min(seconds, LONGEST))


def asked_rest(header: str | None, now: datetime | None = None) -> float | None:
    """Seconds from a `Retry-After` of either form (RFC 9110, 10.2.3); None where it is missing or neither."""
    if header is None:
        return None
    try:
        return max(0.0, float(int(header)))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(header)
    except ValueError:
        return None
    aware = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (aware - (now or datetime.now(UTC))).total_seconds())
