"""`/snapshots`: the states that the targets went through, and the way back to one."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Header, Query
from starlette.responses import JSONResponse

from guard.register import Caller, Precondition, etag_of
from guard.store.audit import Filter
from server.admin.audit import shown
from server.admin.decisions import sequence, within
from server.admin.route import LIMIT, MAX_LIMIT, allowed, answers, encode_cursor, settled
from server.admin.schemas import Lagging, RolledBack, SnapshotPage
from server.admin.services import Services
from server.auth import Permission, Principal

Json = dict[str, Any]


def add_routes(router: APIRouter, services: Services) -> None:
    @router.get("/snapshots", responses=answers(_200=SnapshotPage))
    def list_snapshots(
        who: Principal = allowed(services, Permission.READ_TARGETS),
        limit: int = Query(LIMIT, ge=1, le=MAX_LIMIT),
        cursor: str | None = None,
    ) -> JSONResponse:
        """The snapshots that changed targets, newest first, as far back as the audit trail goes."""
        wanted = Filter(snapshots=True, tenant=within(who, None))
        page = services.audit.page(wanted, limit=limit, before=sequence(cursor))
        version = services.register.snapshot.version
        content = {
            "current": version,
            "data": [_view(shown(row)) for row in page.data],
            "next_cursor": encode_cursor(page.before),
        }
        return JSONResponse(content, headers={"ETag": etag_of(version)})

    @router.post("/snapshots/{number}/rollback", responses=answers(404, 412, _200=RolledBack, _202=Lagging))
    async def roll_back(
        number: int,
        dry_run: bool = False,
        if_match: str | None = Header(None),
        who: Principal = allowed(services, Permission.WRITE_TARGETS),
    ) -> JSONResponse:
        """Make the targets what they were at that snapshot, as new versions. What was purged since stays purged; what
        was registered since is deleted. Enforced when this answers."""
        caller = Caller(who.tenant, Precondition(if_match))
        done = await services.register.roll_back(number, dry_run=dry_run, caller=caller)
        tag = {"ETag": etag_of(done["snapshot"])}
        return JSONResponse(done, headers=tag) if dry_run else await settled(services, done, 200, tag)


def _view(row: Json) -> Json:
    counts = {name: row["detail"].get(name, 0) for name in ("created", "updated", "deleted", "purged")}
    return {**{name: row[name] for name in ("snapshot", "time", "action", "key_id", "subject")}, **counts}
