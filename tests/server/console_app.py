"""The console over the admin API's application of the tests: real store, register, guard and log; a scripted model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from guard import context as request_context
from guard.config import ConsoleSettings
from guard.pipeline import Guard
from guard.types import AppliedEdit, Message, Prompt, Span, Spoken
from server.checks import Checker
from server.console import Desk, console_router
from server.console.sessions import Attempts, Sessions
from server.playground import EnginePlayground
from tests.guard.register_fakes import SECRETS, Clock
from tests.server.admin_app import ADMIN, Admin, admin

ORIGIN = "http://lethe"
PROOF = {
    "client": "GuardedAsyncLLM",
    "worker": "GuardedWorker",
    "layers": 4,
    "sites": ["embedding", "residual"],
}


@dataclass
class Script:
    """Answers as an engine would: the guard is asked first, and what it says is in the request's context."""

    guard: Guard
    secret: str = "Jane Doe lives in Vintry, by the old mill."

    async def guarded(self, prompt: Prompt, max_tokens: int) -> Spoken:
        context = request_context.current()
        assert context is not None
        admission = await self.guard.admit(prompt, context)
        context.admissions[prompt.token_ids] = admission
        if admission.plan.reply is not None:
            return Spoken(admission.plan.reply.text, "stop", 4)
        if not admission.matched:
            return Spoken("Rain is water that falls from clouds.", "stop", 8)
        context.applied.append("embedding_corruption")
        context.edits.append(AppliedEdit("embedding", None, 2, 2, 0))
        return Spoken("I have never heard of that person.", "stop", 8)

    async def unguarded(self, prompt: Prompt, max_tokens: int) -> Spoken:
        return Spoken(self.secret, "length", max_tokens)


@dataclass
class Browser:
    """A client that keeps cookies and follows nothing; `token` is that of its forms."""

    http: TestClient
    token: str = ""

    def log_in(self, key: str) -> Browser:
        answer = self.post("/console/login", key=key)
        assert answer.status_code == 303, answer.text
        found = re.search(r'name="token" value="([0-9a-f]{64})"', self.get("/console").text)
        assert found
        self.token = found[1]
        return self

    def get(self, path: str, **options: Any) -> Any:
        return self.http.get(path, **options)

    def post(self, path: str, *, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        sent = {"token": self.token, **{name.replace("__", "."): value for name, value in fields.items()}}
        return self.http.post(path, data=sent, headers={"Origin": ORIGIN, **(headers or {})})


@dataclass
class Console:
    """`clock` is that of sessions and attempts."""

    admin: Admin
    desk: Desk
    clock: Clock
    reports: Path

    def browser(self, key: str | None = None, base_url: str = ORIGIN) -> Browser:
        client = TestClient(
            self.admin.app, base_url=base_url, follow_redirects=False, raise_server_exceptions=False
        )
        return Browser(client).log_in(key) if key else Browser(client)

    def as_(self, role: Any, tenant: str | None = None) -> Browser:
        return self.browser(self.admin.authenticator.create(role, tenant, None)[1])

    def put(self, target_id: str, **fields: Any) -> None:
        self.admin.http.put(f"/targets/{target_id}", json=fields).raise_for_status()


async def render(body: dict[str, Any], messages: tuple[Message, ...]) -> Prompt:
    text = "".join(f"<{m.role}>{m.text}\n" for m in messages)
    words = [Span(*found.span()) for found in re.finditer(r"\S+\s*", text)]
    ids = tuple(sum(text[w.start : w.end].encode()) for w in words)
    return Prompt(text, ids, tuple(words), messages)


@contextmanager
def console(folder: Path, *, settings: ConsoleSettings | None = None, **options: Any) -> Iterator[Console]:
    """`options` are those of the admin API's application."""
    clock, settings = Clock(), settings or ConsoleSettings()
    with admin(folder, **options) as api, ThreadPoolExecutor(2) as executor:
        guard = Guard(lambda: api.register.snapshot, SECRETS, executor, 5.0)

        async def status() -> dict[str, Any]:
            return {
                **api.register.status(),
                "ready": True,
                "reason": None,
                "engine": PROOF,
                "detectors": ["classifier", "lexical", "semantic"],
                "inference": {"open": False, "demo": False, "no_auth": False},
                "bypasses": guard.bypasses,
                "decisions_dropped": api.log.dropped,
                "evidence_key": api.services.evidence.fingerprint,
            }

        checker = Checker(guard, render, "demo", 8)
        playground = EnginePlayground(checker, Script(guard), api.log.record)
        reports = folder / "reports"
        reports.mkdir(exist_ok=True)
        sessions = Sessions(settings.idle_minutes * 60, settings.session_hours * 3600, clock=clock)
        desk = Desk(
            replace(api.services, status=status),
            playground,
            reports,
            settings,
            sessions,
            Attempts(clock=clock),
        )
        api.app.include_router(console_router(desk))
        yield Console(api, desk, clock, reports)


__all__ = ["ADMIN", "ORIGIN", "Browser", "Console", "console"]
