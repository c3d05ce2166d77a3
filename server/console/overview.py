"""The first page: is everything live, and what needs somebody's attention."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from server.auth import Permission
from server.console.desk import ENTRY, Page, Visit

SHOWN = 20


async def overview(visit: Visit) -> Response:
    """A key that belongs to a tenant sees the counts and failures of its own targets."""
    register, tenant = visit.services.register, visit.who.tenant
    status = {**await visit.services.status(), **register.status(tenant)}
    expired: list[dict[str, Any]] = []
    if visit.who.may(Permission.READ_TARGETS) and status["targets"]["expired"]:
        expired, _ = register.views(limit=SHOWN, state="expired", tenant=tenant)
    ending = visit.services.authenticator.expiring() if visit.whole and visit.who.may(Permission.KEYS) else []
    return visit.page("overview.html", here="", status=status, expired=expired, ending=ending, shown=SHOWN)


PAGES = (Page("GET", "", overview, ENTRY),)
