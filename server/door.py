"""The way in for requests that generate. Who stops the server closes it and waits for those inside."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from guard.errors import GuardUnavailable

STOPPING = "The server is stopping; another one answers."


class Door:
    """For one event loop. `closed` once it was closed; it is not opened again."""

    def __init__(self) -> None:
        self.closed = False
        self._inside = 0
        self._left = asyncio.Event()

    @contextmanager
    def passing(self) -> Iterator[None]:
        """The length of a request.

        Raises:
            GuardUnavailable: the door is closed. Nothing was done, so that another server may be asked.
        """
        if self.closed:
            raise GuardUnavailable(STOPPING)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._left.set()

    async def close(self, seconds: float) -> None:
        """Let nobody in, and wait until nobody is inside, but no longer than `seconds`."""
        self.closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._inside:
                    self._left.clear()
                    await self._left.wait()
