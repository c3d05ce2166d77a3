"""Ours beside vLLM's: the admin API, the probes and what the gate needs, attached to the built application."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.types import Scope

from guard.audit import DecisionLog
from guard.config import Settings
from guard.context import RequestContext
from guard.engine import serving
from guard.engine.asking import Asking
from guard.engine.launch import Proof
from guard.engine.reading import encode
from guard.errors import GuardUnavailable
from guard.evidence import Evidence
from guard.library import Library
from guard.pipeline import Guard
from guard.register import Register
from guard.replica import Replica
from guard.store import Key, Store
from guard.types import Message, Prompt
from server.admin import Services as AdminServices
from server.admin import acts, admin_router
from server.auth import Authenticator, Principal
from server.checks import Checker, Scorer
from server.console import Desk, console_router
from server.console.sessions import Sessions
from server.door import STOPPING, Door
from server.drift import Probe, Watcher
from server.gate import GateServices, Tracer
from server.guardrail import Guardrail, guardrail_router
from server.health import health_router
from server.jobs import Runner
from server.limits import Limiter
from server.metrics import Metrics, Sources
from server.playground import EnginePlayground
from server.tenancy import TenantHeader

if TYPE_CHECKING:
    from guard.engine.client import GuardedAsyncLLM


@dataclass(frozen=True)
class Services:
    """What lives as long as the server: state, keys, the register and the guard over it."""

    settings: Settings
    store: Store
    library: Library
    register: Register
    jobs: Runner
    log: DecisionLog
    authenticator: Authenticator
    evidence: Evidence
    guard: Guard
    replica: Replica
    limiter: Limiter
    open_inference: bool
    probes: tuple[Probe, ...] = ()


@dataclass(frozen=True)
class Live:
    """The running server as `/status` and `/readyz` see it."""

    services: Services
    engine: GuardedAsyncLLM
    proof: Proof
    drift: Watcher | None = None
    door: Door = field(default_factory=Door)

    async def unready(self) -> str | None:
        """Why no traffic should come, or None. The proof of the start holds while engine and worker live."""
        if self.door.closed:
            return STOPPING
        held = self.services.library.loaded()
        try:
            await self.engine.check_health()
            statuses = await self.engine.collective_rpc("lethe_status")
        except Exception as error:  # whatever the engine throws, it is not ready
            return f"The engine does not answer ({type(error).__name__})."
        if not all(status["guarded"] and status["sites"] for status in statuses):
            return "A worker has lost its edit sites."
        held &= self.services.library.loaded()  # artifacts may come and go while the engine is asked
        if any(held - set(status["tables"]) for status in statuses):
            return "A worker has lost the table of an artifact."
        return self.services.replica.unready

    async def status(self) -> Mapping[str, Any]:
        """What is live: snapshot and targets, the engine's proof, the detectors, how inference is opened."""
        from guard.detection import DETECTORS

        reason = await self.unready()
        replica = self.services.replica
        auth = self.services.settings.auth
        return {
            **self.services.register.status(),
            "ready": reason is None,
            "reason": reason,
            "engine": asdict(self.proof),
            "snapshot_age_s": round(replica.age, 3),
            "replicas": await asyncio.to_thread(self._replicas),
            "detectors": sorted(DETECTORS),
            "keys": {"expiring": [_expiring(key) for key in self.services.authenticator.expiring()]},
            "inference": {"open": self.services.open_inference, "demo": auth.demo, "no_auth": auth.no_auth},
            "bypasses": self.services.guard.bypasses,
            "decisions_dropped": self.services.log.dropped,
            "evidence_key": self.services.evidence.fingerprint,
            "drift": self.drift and self.drift.status(),
        }

    def _replicas(self) -> list[dict[str, Any]] | None:
        """The servers of this store and how far each has followed it; None: the store does not answer."""
        replica = self.services.replica
        try:
            live = replica.live()
        except GuardUnavailable:
            return None
        return [
            {"name": one.name, "snapshot": one.snapshot, "here": one.id == replica.id, "seen_at": one.seen_at}
            for one in live
        ]


def _expiring(key: Key) -> dict[str, Any]:
    """What `/status` tells of a key that ends soon."""
    return {"id": key.id, "expires_at": datetime.fromtimestamp(key.expires_at or 0.0, UTC).isoformat()}


def attach(
    app: FastAPI, services: Services, engine: GuardedAsyncLLM, proof: Proof, tracing: Tracer | None = None
) -> Watcher | None:
    """Mount what is ours and hand the gate its services. What is returned is to be run beside serving."""
    limits = services.settings.limits

    async def render(body: dict[str, Any], messages: tuple[Message, ...]) -> Prompt:
        return await serving.render(app, engine, body, messages)

    check = Checker(services.guard, render, engine.model_config.served_model_name, limits.max_n)
    score = Scorer(check, engine, lambda text: encode(text, engine.get_tokenizer()))
    drift = watcher(services, score) if services.probes else None
    door = Door()
    live = Live(services, engine, proof, drift, door)

    metrics = Metrics(
        Sources(
            services.register,
            services.guard,
            services.log,
            services.library,
            services.store,
            services.replica,
            services.authenticator,
            drift,
        ),
        live.unready,
    )

    def record(context: RequestContext, status: int, finished_at: float) -> None:
        metrics.count(context, status, finished_at)
        services.log.record(context, status=status, finished_at=finished_at)

    async def control(who: Principal, scope: Scope) -> None:
        await asyncio.to_thread(services.store.audit.add, acts.of_control(who, scope), "begun")

    admin = AdminServices(
        services.register,
        services.jobs,
        services.log,
        services.authenticator,
        services.evidence,
        check,
        score,
        live.status,
        services.store.audit,
        metrics.denied,
        services.replica.settled,
    )
    app.include_router(admin_router(admin))
    guardrail = Guardrail(check, record)
    app.include_router(guardrail_router(guardrail, services.authenticator.require))
    if services.settings.console.enabled:
        app.include_router(console_router(_desk(services, admin, check, engine)))
    app.include_router(health_router(live.unready))
    metrics.mount(app)
    app.openapi_schema = None
    app.state.lethe = GateServices(
        require=services.authenticator.require,
        tenants=TenantHeader(services.settings.auth.gateway),
        control=control,
        admit=services.limiter.admit,
        record=record,
        failed=metrics.failed,
        open_inference=services.open_inference,
        two_sides=services.settings.server.admin_port is not None,
        max_body_bytes=services.settings.server.max_body_bytes,
        max_n=limits.max_n,
        judge_tools=services.guard.tools,
        still=services.guard.still,
        tracing=tracing,
        door=door,
    )
    return drift


def _desk(services: Services, admin: AdminServices, check: Checker, engine: GuardedAsyncLLM) -> Desk:
    """What the console's pages are made of. Its own tries are in the decision log, and not in the metrics."""
    settings = services.settings.console
    return Desk(
        admin,
        EnginePlayground(check, Asking(engine), services.log.record),
        services.settings.reports_dir,
        settings,
        Sessions(settings.idle_minutes * 60, settings.session_hours * 3600),
    )


def watcher(services: Services, score: Scorer) -> Watcher:
    """Probes wait while half of the guard's threads are in use."""
    guard, threads = services.guard, services.settings.detection.concurrency
    return Watcher(
        services.probes,
        services.settings.drift,
        score,
        lambda: services.register.snapshot.version,
        lambda: 2 * guard.judging >= threads,
    )
