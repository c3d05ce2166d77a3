"""`/audit`: what admins did."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Query

from guard.errors import Forbidden
from guard.store.audit import Filter, Outcome
from server.admin.decisions import seconds, sequence, within
from server.admin.route import LIMIT, MAX_LIMIT, allowed, answers, encode_cursor
from server.admin.schemas import Objects, OpenObject
from server.admin.services import Services
from server.auth import Permission, Principal

Json = dict[str, Any]


def add_routes(router: APIRouter, services: Services) -> None:
    reader = allowed(services, Permission.READ_AUDIT)

    @router.get("/audit", responses=answers(_200=Objects))
    def list_acts(
        who: Principal = reader,
        target: str | None = None,
        action: str | None = None,
        key: str | None = None,
        outcome: Outcome | None = None,
        since: str | None = Query(None, description="ISO 8601, or seconds since the epoch"),
        until: str | None = Query(None, description="not included; as since"),
        limit: int = Query(LIMIT, ge=1, le=MAX_LIMIT),
        cursor: str | None = None,
    ) -> Json:
        """What was done by whom, newest first; for a tenant, what its own keys did."""
        wanted = Filter(
            target=target,
            action=action,
            key_id=key,
            outcome=outcome,
            tenant=within(who, None),
            since=seconds("since", since),
            until=seconds("until", until),
        )
        page = services.audit.page(wanted, limit=limit, before=sequence(cursor))
        return {"data": [shown(row) for row in page.data], "next_cursor": encode_cursor(page.before)}

    @router.get("/audit/verify", responses=answers(_200=OpenObject))
    def verify_acts(who: Principal = reader, head: str | None = None) -> Json:
        """Whether rows were changed or removed; `head` is one that an earlier answer gave."""
        if who.tenant is not None:
            raise Forbidden("A key that belongs to a tenant may not read the whole trail.")
        found = services.audit.verify(head)
        return {
            "valid": found.problem is None,
            "problem": found.problem,
            "rows": found.rows,
            "first": found.first,
            "head": found.head,
        }


def shown(row: Json) -> Json:
    return {**row, "time": datetime.fromtimestamp(row["time"], UTC).isoformat()}
