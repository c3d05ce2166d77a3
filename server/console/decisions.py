"""The decision feed, and one decision with its trace."""

from __future__ import annotations

import asyncio
from typing import get_args

from starlette.responses import Response

from guard.errors import BadRequest, NotFound
from guard.store.decisions import Filter
from guard.types import Action
from server.admin.decisions import seconds, sequence, within
from server.admin.route import encode_cursor
from server.auth import Permission
from server.console.desk import Page, Visit, number
from server.playground import BYPASS

ACTIONS = get_args(Action)
LIMIT = 50


async def feed(visit: Visit) -> Response:
    """Newest first. Only the first page renews itself: the others do not change."""
    action = visit.asked("action")
    if action not in (None, *ACTIONS):
        raise BadRequest(f"action must be one of {', '.join(ACTIONS)}.", param="action")
    wanted = Filter(
        target=visit.asked("target"),
        action=action,
        tenant=within(visit.who, visit.asked("tenant")),
        since=seconds("since", visit.asked("since")),
        until=seconds("until", visit.asked("until")),
    )
    limit = number(visit.asked("limit"), "limit", LIMIT, 500)
    before = sequence(visit.asked("cursor"))
    page = await asyncio.to_thread(visit.services.log.page, wanted, limit=limit, before=before)
    return visit.page(
        "decisions.html",
        here="decisions",
        decisions=page.data,
        cursor=encode_cursor(page.before),
        actions=ACTIONS,
        bypassed=bypassed,
    )


async def decision(visit: Visit) -> Response:
    found = await asyncio.to_thread(visit.services.log.get, visit.part("id"))
    if found is None or visit.who.tenant not in (None, found["tenant"]):
        raise NotFound("There is no such decision; it is kept for decision_log.retain_days.", param="id")
    return visit.page("decision.html", here="decisions", decision=found, bypassed=bypassed(found))


def bypassed(found: dict[str, object]) -> bool:
    """Whether the guard let this request through without a judgement, or somebody asked without the guard."""
    events = found.get("events")
    return isinstance(events, list) and any(event.get("event") == BYPASS for event in events)


PAGES = (
    Page("GET", "/decisions", feed, Permission.READ_DECISIONS),
    Page("GET", "/decisions/{id}", decision, Permission.READ_DECISIONS),
)
