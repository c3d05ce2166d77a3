"""Adapters in the frontend: which of them the engine holds, brought there before a request needs one.

An adapter that the engine does not hold would be read inside a step, where an error ends the engine. So it is
always added by a call of its own, and nothing is taken away that a request still uses. How many are held is
bounded here; vLLM's own bound is set out of reach (`guard.engine.launch`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from vllm.lora.request import LoRARequest

from guard.artifacts import Artifact
from guard.errors import ArtifactError, GuardUnavailable
from guard.interventions.lora_adapter import adapter_id
from guard.types import Edit

log = logging.getLogger("lethe.engine")


def adapter_of(edits: Iterable[Edit]) -> str | None:
    """The adapter that edits ask for; there is at most one."""
    return next((edit.table for edit in edits if edit.site == "adapter"), None)


class Engine(Protocol):
    """What is used of vLLM's client."""

    async def add_lora(self, lora_request: LoRARequest) -> bool: ...
    async def remove_lora(self, lora_id: int) -> bool: ...


class Adapters:
    """The unlearning adapters of one engine, by the digest of their artifact; at most `bound` of them in its
    memory, the longest unused go first. With a bound of 0 the engine runs no adapters."""

    def __init__(self, engine: Engine, bound: int) -> None:
        self._engine = engine
        self._bound = bound
        self._known: dict[str, LoRARequest] = {}
        self._held: OrderedDict[str, int] = OrderedDict()  # digest -> requests that use it
        self._bringing = asyncio.Lock()
        self._freed = asyncio.Event()

    @classmethod
    def of(cls, engine: Any) -> Adapters:
        """With the bound that the launcher wrote into the engine's configuration."""
        config = engine.vllm_config
        ours = (config.additional_config or {}).get("lethe", {}).get("adapters", 0)
        return cls(engine, ours if config.lora_config is not None else 0)

    async def load(self, artifact: Artifact) -> None:
        """Make an adapter known, and prove that the engine takes it.

        Raises:
            ArtifactError: the engine runs no adapters, or it refuses this one.
        """
        if not self._bound:
            raise ArtifactError("This server runs no adapters; set adapters.slots.")
        digest = artifact.digest
        request = LoRARequest(f"lethe-{digest}", adapter_id(digest), str(artifact.folder))
        if any(r.lora_int_id == request.lora_int_id for d, r in self._known.items() if d != digest):
            raise ArtifactError(
                f"Another adapter has the number of {digest[:16]}; train it with another seed."
            )
        self._known[digest] = request
        try:
            async with self.using(digest):
                pass
        except GuardUnavailable:
            del self._known[digest]
            raise ArtifactError(
                f"The engine cannot take the adapter {digest[:16]} in; see its log."
            ) from None

    async def unload(self, digest: str) -> None:
        """Forget an adapter, once no request uses it any more; new ones are refused at once."""
        self._known.pop(digest, None)
        while self._held.get(digest):
            await self._wait()
        async with self._bringing:
            if digest in self._held and digest not in self._known:
                del self._held[digest]
                await self._engine.remove_lora(adapter_id(digest))

    @asynccontextmanager
    async def option(self, edits: tuple[Edit, ...]) -> AsyncIterator[dict[str, LoRARequest]]:
        """What vLLM's `generate` must be told beside the edits, valid while the block runs.

        Raises:
            GuardUnavailable: an edit needs an adapter that is not to be had.
        """
        digest = adapter_of(edits)
        if digest is None:
            yield {}
        else:
            async with self.using(digest) as request:
                yield {"lora_request": request}

    @asynccontextmanager
    async def using(self, digest: str) -> AsyncIterator[LoRARequest]:
        """Hold an adapter in the engine while the block runs.

        Raises:
            GuardUnavailable: it is not known here, or the engine could not take it in.
        """
        if digest not in self._held:
            async with self._bringing:
                if digest not in self._held:
                    await self._bring(digest)
        request = self._request(digest)
        self._held[digest] += 1
        self._held.move_to_end(digest)
        try:
            yield request
        finally:
            self._held[digest] -= 1
            self._freed.set()

    def _request(self, digest: str) -> LoRARequest:
        if digest not in self._known:
            raise GuardUnavailable("An adapter is not loaded; try again.", reason="adapter")
        return self._known[digest]

    async def _bring(self, digest: str) -> None:
        request = self._request(digest)
        while len(self._held) >= self._bound:
            idle = next((d for d, uses in self._held.items() if not uses), None)
            if idle is None:
                await self._wait()
                continue
            del self._held[idle]
            await self._engine.remove_lora(adapter_id(idle))
        try:
            await self._engine.add_lora(request)
        except Exception as error:
            log.exception("the engine does not take an adapter in")
            raise GuardUnavailable("An adapter could not be loaded; try again.", reason="adapter") from error
        self._held[digest] = 0

    async def _wait(self) -> None:
        self._freed.clear()
        await self._freed.wait()
