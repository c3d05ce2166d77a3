"""`/decisions`: what the guard did to requests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Query
from pydantic import TypeAdapter, ValidationError

from guard.errors import BadRequest, NotFound
from guard.store.decisions import Filter
from guard.types import Action
from server.admin.route import LIMIT, MAX_LIMIT, allowed, answers, decode_cursor, encode_cursor
from server.admin.schemas import Objects, OpenObject
from server.admin.services import Services
from server.auth import Permission, Principal

_TIME = TypeAdapter(datetime)


def add_routes(router: APIRouter, services: Services) -> None:
    reader = allowed(services, Permission.READ_DECISIONS)

    @router.get("/decisions", responses=answers(_200=Objects))
    def list_decisions(
        who: Principal = reader,
        target: str | None = None,
        action: Action | None = None,
        tenant: str | None = None,
        since: str | None = Query(None, description="ISO 8601, or seconds since the epoch"),
        until: str | None = Query(None, description="not included; as since"),
        limit: int = Query(LIMIT, ge=1, le=MAX_LIMIT),
        cursor: str | None = None,
    ) -> dict[str, Any]:
        """Decisions, newest first."""
        wanted = Filter(
            target=target,
            action=action,
            tenant=within(who, tenant),
            since=seconds("since", since),
            until=seconds("until", until),
        )
        page = services.log.page(wanted, limit=limit, before=sequence(cursor))
        return {"data": page.data, "next_cursor": encode_cursor(page.before)}

    @router.get("/decisions/{id}", responses=answers(404, _200=OpenObject))
    def get_decision(id: str, who: Principal = reader) -> dict[str, Any]:  # noqa: A002 - the name in the path
        """One decision, by the id that the response's header gave."""
        found = services.log.get(id)
        if found is None or who.tenant not in (None, found["tenant"]):
            raise NotFound("There is no such decision; it is kept for decision_log.retain_days.", param="id")
        return found


def within(who: Principal, tenant: str | None) -> str | None:
    """A caller confined to a tenant reads that tenant's decisions and no others."""
    if who.tenant is not None and tenant not in (None, who.tenant):
        return ""
    return who.tenant or tenant


def sequence(cursor: str | None) -> int | None:
    decoded = decode_cursor(cursor)
    if decoded is None:
        return None
    if not decoded.isascii() or not decoded.isdigit() or len(decoded) > 18:
        raise BadRequest("The cursor is not one that this server gave.", param="cursor")
    return int(decoded)


def seconds(name: str, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        moment = _TIME.validate_python(
            value.replace(" ", "+")
        )  # an unescaped + of a time zone arrives as a space
    except ValidationError:
        raise BadRequest(f"{name} must be a time such as 2030-01-31T12:00:00Z.", param=name) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
