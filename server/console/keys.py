"""Keys: made, shown once, rotated, revoked."""

from __future__ import annotations

import asyncio
from datetime import datetime

from starlette.responses import Response

from guard.errors import LetheError
from server.admin.keys import future, view_of
from server.admin.route import validated
from server.admin.schemas import KeyBody, RotateBody
from server.auth import ROLES, Permission
from server.console.desk import Page, Visit


async def show(visit: Visit) -> Response:
    return _page(visit)


async def create(visit: Visit) -> Response:
    """The only page that ever shows the key itself."""
    given = {name: visit.given(name).strip() or None for name in ("role", "tenant", "expires_at")}
    try:
        wanted = validated(KeyBody, given)
        moment: datetime | None = wanted.expires_at
        made, key = await asyncio.to_thread(
            visit.services.authenticator.create, wanted.role, wanted.tenant, future(moment)
        )
    except LetheError as error:
        if error.status >= 500:
            raise
        return _page(visit, error.status, wrong={error.param or "": error.message}, given=given)
    lagging = bool(await visit.services.settled())
    return _page(visit, 201, made={**view_of(made), "key": key}, lagging=lagging)


async def rotate(visit: Visit) -> Response:
    """A new key in the place of this one, which stays good for as long as the admin API gives by default."""
    wanted = RotateBody()
    authenticator = visit.services.authenticator
    made, key = await asyncio.to_thread(
        authenticator.rotate, visit.part("id"), wanted.grace_seconds, future(wanted.expires_at)
    )
    lagging = bool(await visit.services.settled())
    return _page(visit, 201, made={**view_of(made), "key": key}, lagging=lagging)


async def revoke(visit: Visit) -> Response:
    await asyncio.to_thread(visit.services.authenticator.revoke, visit.part("id"))
    return await visit.done("/keys", "revoked")


def _page(visit: Visit, status: int = 200, **more: object) -> Response:
    listed = [view_of(key) for key in visit.services.authenticator.all()]
    values = {
        "made": None,
        "lagging": False,
        "wrong": {},
        "given": {},
        "roles": ROLES,
        "listed": listed,
        **more,
    }
    return visit.page("keys.html", status, here="keys", **values)


PAGES = (
    Page("POST", "/keys/{id}/rotate", rotate, Permission.KEYS, whole=True, act=lambda _: "keys.rotate"),
    Page("GET", "/keys", show, Permission.KEYS, whole=True),
    Page("POST", "/keys", create, Permission.KEYS, whole=True, act=lambda _: "keys.create"),
    Page("POST", "/keys/{id}/revoke", revoke, Permission.KEYS, whole=True, act=lambda _: "keys.revoke"),
)
