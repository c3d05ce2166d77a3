"""Readiness: what must be there while traffic comes."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from server.app import Live
from server.door import STOPPING
from server.health import health_router

SOUND = {"guarded": True, "sites": [["embedding", None, "embed"]], "tables": ["a", "b"]}


@dataclass
class Engine:
    statuses: list[dict[str, Any]] = field(default_factory=lambda: [SOUND])

    async def check_health(self) -> None:
        pass

    async def collective_rpc(self, method: str) -> list[dict[str, Any]]:
        return self.statuses


def live(engine: Engine, *loaded: set[str], stale: str | None = None) -> Live:
    """`loaded` are the artifacts that must be there, before and after the engine was asked; `stale` says why what is
    served may be out of date."""
    answers = iter(loaded)
    library = SimpleNamespace(loaded=lambda: set(next(answers)))
    services = SimpleNamespace(library=library, replica=SimpleNamespace(unready=stale))
    return Live(services, engine, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("statuses", "reason"),
    [
        ([SOUND], None),
        ([SOUND, {**SOUND, "tables": ["b"]}], "A worker has lost the table of an artifact."),
        ([{**SOUND, "sites": []}], "A worker has lost its edit sites."),
        ([{**SOUND, "guarded": False}], "A worker has lost its edit sites."),
    ],
)
async def test_a_worker_that_lost_something_stops_readiness(statuses, reason):
    assert await live(Engine(statuses), {"a"}, {"a"}).unready() == reason


async def test_targets_that_may_be_out_of_date_stop_readiness():
    assert await live(Engine(), set(), set(), stale="They may be old.").unready() == "They may be old."


@pytest.mark.parametrize(("before", "after"), [({"a"}, {"a", "new"}), ({"a", "gone"}, {"a"})])
async def test_artifacts_may_come_and_go_while_the_engine_is_asked(before, after):
    assert await live(Engine(), before, after).unready() is None


async def test_an_engine_that_does_not_answer_is_not_ready():
    engine = Engine()
    engine.collective_rpc = None  # type: ignore[assignment]
    assert "TypeError" in await live(engine, set(), set()).unready()


async def test_a_server_that_stops_is_not_ready():
    stopping = live(Engine(), set(), set())
    await stopping.door.close(0)
    assert await stopping.unready() == STOPPING


@pytest.mark.parametrize(("reason", "status"), [(None, 200), ("A worker has lost its edit sites.", 503)])
async def test_a_server_that_is_not_ready_says_why_and_when_to_ask_again(reason, status):
    async def unready() -> str | None:
        return reason

    app = FastAPI()
    app.include_router(health_router(unready))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://lethe") as client:
        response = await client.get("/readyz")
        assert (await client.get("/livez")).status_code == 200
    assert (response.status_code, response.json().get("reason")) == (status, reason)
    assert response.headers.get("retry-after") == (None if reason is None else "1")
