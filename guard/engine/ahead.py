"""The untouched run of a call, which may begin while its prompt is judged: a clean request then waits for neither.

Nothing that it says is given away before somebody asks for its `outputs`, which is done where the verdict is to let
the request through. Else it is dropped: once the engine has been told to forget it, another run can take its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Self

from vllm.outputs import RequestOutput

GRACE_S = 0.002
"""Verdicts on short prompts, and on what was judged before, come within it, and then no run has begun to be dropped."""


class Ahead:
    """`run` makes the engine's stream; it is called once. On the way out of its block, what still runs is dropped."""

    def __init__(
        self, run: Callable[[], AsyncGenerator[RequestOutput, None]], grace_s: float = GRACE_S
    ) -> None:
        self._run = run
        self._grace_s = grace_s
        self._first: asyncio.Task[RequestOutput | None] | None = None
        self._stream: AsyncGenerator[RequestOutput, None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.drop()

    def begin(self, may: Callable[[], bool]) -> None:
        """Let the run begin by itself, if it is neither asked for nor dropped within the grace and then `may`."""
        self._first = asyncio.create_task(self._begin(may))

    async def _begin(self, may: Callable[[], bool]) -> RequestOutput | None:
        await asyncio.sleep(self._grace_s)
        if not may():
            return None
        self._stream = self._run()
        return await anext(self._stream, None)

    async def outputs(self) -> AsyncGenerator[RequestOutput, None]:
        """What the run says, from its beginning on. Raises what the engine raises, whenever that was."""
        first: RequestOutput | None = None
        if self._first is not None and self._stream is None:
            self._first.cancel()
        elif self._first is not None:
            first = await self._first
        self._first, self._stream = None, self._stream or self._run()
        async with aclosing(self._stream) as outputs:
            if first is not None:
                yield first
            async for output in outputs:
                yield output

    async def drop(self) -> None:
        """Give the run up. When this returns, the engine has been told, whatever the run had come to."""
        if self._first is not None:
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
            self._first = None
        if self._stream is not None:
            await self._stream.aclose()
            self._stream = None
