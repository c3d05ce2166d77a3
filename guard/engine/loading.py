"""Artifacts into the engine: a table in every worker, and proof that it has an effect before anybody may use it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from guard import artifacts, interventions
from guard.artifacts import Artifact
from guard.engine import canary
from guard.engine.lora import adapter_of
from guard.engine.reading import encode, read
from guard.errors import ArtifactError, LetheError
from guard.library import Place
from guard.types import Chosen, Match, Plan, Span

if TYPE_CHECKING:
    from guard.engine.client import GuardedAsyncLLM

log = logging.getLogger("lethe.engine")
T = TypeVar("T")

_TOKENS = 8
_SEED = "5eed5eed5eed5eed"


async def load_artifact(engine: GuardedAsyncLLM, artifact: Artifact, *, prove: bool = True) -> None:
    """Put an artifact into every worker; `prove` demands that it changes the answer to its canary prompt.

    Raises:
        ArtifactError: it does not fit the model, or has no effect. No worker holds it then.
    """
    try:
        answers = await engine.collective_rpc(
            "lethe_load", args=(artifact.digest, str(artifact.folder), engine.origin)
        )
        if reason := next((answer for answer in answers if answer is not None), None):
            raise ArtifactError(reason)
        plan, prompt = _plan(engine, artifact)
        if adapter_of(plan.edits) is not None:
            await engine.adapters.load(artifact)
        if prove:
            await _prove(engine, artifact, plan, prompt)
    except BaseException:
        await unload_artifact(engine, artifact.digest)
        raise


async def unload_artifact(engine: GuardedAsyncLLM, digest: str) -> None:
    """Let every worker forget the artifact of that digest; an adapter, when the requests that use it have ended."""
    await engine.collective_rpc("lethe_unload", args=(digest, engine.origin))
    await engine.adapters.unload(digest)


def _plan(engine: GuardedAsyncLLM, artifact: Artifact) -> tuple[Plan, list[int]]:
    """What the method does to the canary prompt, and that prompt: the common one, or the token ids that the
    artifact brings as the fact `canary` because it acts on some prompts only. Parameters are the method's own, or
    those of the fact `params`.

    Raises:
        ArtifactError: the method cannot plan with the artifact's facts.
    """
    tokenizer, manifest = engine.get_tokenizer(), artifact.manifest
    try:
        ids = list(manifest.facts.get("canary") or encode(canary.TEXT, tokenizer))
        prompt = read(ids, tokenizer)
        match = Match("canary", 1, 1.0, 0.5, "lexical", (Span(0, len(prompt.text)),))
        wanted = {**manifest.facts.get("params", {}), "artifact": artifact.digest}
        params = interventions.check_params(manifest.method, wanted).model_dump()
        chosen = Chosen(manifest.method, params, (match,), manifest.facts)
        return interventions.load(manifest.method).plan(chosen, prompt, lambda _: _SEED), ids
    except Exception as error:
        log.exception("the facts of an artifact could not be used")
        raise ArtifactError(
            f"The artifact {artifact.digest[:16]} lacks what {manifest.method} needs: {error}."
        ) from error


async def _prove(engine: GuardedAsyncLLM, artifact: Artifact, plan: Plan, prompt: list[int]) -> None:
    """Raises ArtifactError: the answer to the canary prompt is as without the edits, or they failed."""
    name = artifact.digest[:16]
    try:
        effect = await canary.effect(engine, prompt, plan.edits, tokens=_TOKENS) if plan.edits else None
    except LetheError as error:
        raise ArtifactError(f"The artifact {name} failed its canary: {error.message}") from error
    if effect is None or not effect.shows:
        raise ArtifactError(f"The artifact {name} does not change what the model says to its canary prompt.")


class EngineWorkers:
    """The workers as `guard.library` calls them, from a thread that is not the engine's; calls block.

    Made on the engine's event loop by `of`.
    """

    def __init__(
        self, engine: GuardedAsyncLLM, base_model: str | None, places: frozenset[Place], timeout_s: float
    ) -> None:
        self.base_model = base_model
        self.places = places
        self._engine = engine
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def of(cls, engine: GuardedAsyncLLM, timeout_s: float = 120.0) -> EngineWorkers:
        """The workers of a running engine."""
        statuses = await engine.collective_rpc("lethe_status")
        found = [{(site, layer) for site, layer, _ in status["sites"]} for status in statuses]
        try:
            folder = artifacts.weights_folder(engine.model_config.model)
            base_model = await asyncio.to_thread(artifacts.weights_digest, folder)
        except ArtifactError as error:
            log.warning("no artifact can be used: %s", error.message)
            base_model = None
        return cls(engine, base_model, frozenset(set.intersection(*found)), timeout_s)

    def load(self, artifact: Artifact, *, canary: bool) -> None:
        self._wait(load_artifact(self._engine, artifact, prove=canary))

    def unload(self, digest: str) -> None:
        """No new request gets the artifact; an adapter's memory is freed when the last one that uses it ends."""
        self._wait(self._engine.collective_rpc("lethe_unload", args=(digest, self._engine.origin)))
        asyncio.run_coroutine_threadsafe(self._engine.adapters.unload(digest), self._loop)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(self._timeout_s)
        except TimeoutError:
            future.cancel()
            raise ArtifactError("The engine did not take the artifact in time; try again.") from None
