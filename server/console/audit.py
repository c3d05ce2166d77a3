"""The audit trail: who changed what."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from guard.errors import BadRequest
from guard.store.audit import OUTCOMES, Filter
from server.admin.audit import shown
from server.admin.decisions import seconds, sequence, within
from server.admin.route import encode_cursor
from server.auth import Permission
from server.console.desk import Page, Visit, number

LIMIT = 50


async def index(visit: Visit) -> Response:
    """Newest first; for a tenant, what its own keys did. Whether the trail is whole is read where that is asked."""
    outcome: Any = visit.asked("outcome")
    if outcome not in (None, *OUTCOMES):
        raise BadRequest(f"outcome must be one of {', '.join(OUTCOMES)}.", param="outcome")
    wanted = Filter(
        target=visit.asked("target"),
        action=visit.asked("action"),
        key_id=visit.asked("key"),
        outcome=outcome,
        tenant=within(visit.who, None),
        since=seconds("since", visit.asked("since")),
        until=seconds("until", visit.asked("until")),
    )
    limit = number(visit.asked("limit"), "limit", LIMIT, 500)
    before = sequence(visit.asked("cursor"))
    trail = visit.services.audit
    page = await asyncio.to_thread(trail.page, wanted, limit=limit, before=before)
    verdict = await asyncio.to_thread(trail.verify) if visit.whole and visit.asked("verify") else None
    return visit.page(
        "audit.html",
        here="audit",
        acts=[shown(row) for row in page.data],
        cursor=encode_cursor(page.before),
        outcomes=OUTCOMES,
        verdict=verdict,
    )


PAGES = (Page("GET", "/audit", index, Permission.READ_AUDIT),)
