"""Where edited requests wait: some methods keep state in the worker for each sample, which bounds their number."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from guard import interventions
from guard.errors import BadRequest
from guard.types import Edit


class Queue:
    """So many `places`. Who comes first goes first: a request of many samples is not passed by for ever."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._free = places
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def held(self, wanted: int) -> AsyncIterator[None]:
        """Have `wanted` places while the block runs.

        Raises:
            BadRequest: there are not so many.
        """
        if wanted > self.places:
            raise BadRequest("n is too large for this request; ask for fewer answers at once.", param="n")
        async with self._turn:
            while self._free < wanted:
                self._freed.clear()
                await self._freed.wait()
            self._free -= wanted
        try:
            yield
        finally:
            self._free += wanted
            self._freed.set()


class Queues:
    """One queue for each method that bounds how many samples hold state at once."""

    def __init__(self) -> None:
        self._queues: dict[str, Queue] = {}

    @asynccontextmanager
    async def passed(self, edits: Sequence[Edit], samples: int) -> AsyncIterator[None]:
        """Have a place for every edit of every sample while the block runs.

        Raises:
            BadRequest: the request alone needs more than there are.
        """
        async with AsyncExitStack() as stack:
            # In one order for everybody, so that no two requests wait for each other.
            for method, count in sorted(Counter(edit.method for edit in edits).items()):
                resident = interventions.load(method).resident
                if resident is not None:
                    queue = self._queues.setdefault(method, Queue(resident))
                    await stack.enter_async_context(queue.held(count * samples))
            yield
