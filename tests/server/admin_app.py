"""The admin API as an application of its own, over a real store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from guard.artifacts import ArtifactStore
from guard.audit import DecisionLog
from guard.config import JobSettings
from guard.errors import LetheError
from guard.evidence import Evidence
from guard.register import Register
from guard.replica import Laggard
from guard.store import Store
from server.admin import PREFIX, Services, admin_router
from server.auth import Authenticator
from server.jobs import Runner
from tests.guard.register_fakes import SECRETS, make_register, open_store

ADMIN = "the-admin-key-of-the-tests"


@dataclass
class Admin:
    """`http` speaks as admin; `key` makes tokens of other roles; `laggards` are other servers that do not follow."""

    store: Store
    register: Register
    log: DecisionLog
    authenticator: Authenticator
    jobs: Runner
    laggards: list[Laggard]
    services: Services
    app: FastAPI
    http: TestClient
    denied: list[LetheError]

    def key(self, role: Any, tenant: str | None = None) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.authenticator.create(role, tenant, None)[1]}"}


@contextmanager
def admin(folder: Path, **options: Any) -> Iterator[Admin]:
    """`options` are those of the runner of jobs, which takes jobs and runs none until it is started."""
    store = open_store(folder)
    register = make_register(store, folder / "artifacts")
    asyncio.run(register.load())
    log = DecisionLog(store.decisions, SECRETS)
    authenticator = Authenticator(store.keys, ADMIN)
    library = ArtifactStore(folder / "artifacts")
    jobs = Runner(store.jobs, register, library, JobSettings(), folder / "jobs", **options)

    async def check(body: dict[str, Any]) -> dict[str, Any]:
        unread = [{"message": 0, "start": 4, "end": 9}]
        return {"decision": {"action": "allow", "targets": [], "unread": unread}, "asked": body}

    async def status() -> dict[str, Any]:
        return register.status()

    laggards: list[Laggard] = []

    async def settled() -> list[Laggard]:
        return laggards

    app, denied = FastAPI(), list[LetheError]()
    evidence = Evidence(store, register, SECRETS)
    services = Services(
        register,
        jobs,
        log,
        authenticator,
        evidence,
        check,
        check,
        status,
        store.audit,
        denied.append,
        settled,
    )
    app.include_router(admin_router(services))
    headers = {"Authorization": f"Bearer {ADMIN}"}
    base_url = f"http://lethe{PREFIX}"
    with TestClient(app, base_url=base_url, headers=headers, raise_server_exceptions=False) as http:
        yield Admin(store, register, log, authenticator, jobs, laggards, services, app, http, denied)
    register.close()
    store.close()
