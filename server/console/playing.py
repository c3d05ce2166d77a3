"""The playground's page: a prompt, what matched in it, and the answers side by side."""

from __future__ import annotations

from starlette.responses import Response

from guard.errors import BadRequest, LetheError
from server.auth import Permission
from server.console import show
from server.console.desk import Page, Visit, number
from server.playground import Played, Question

TOKENS, MOST_TOKENS = 96, 1_024


async def form(visit: Visit) -> Response:
    return _page(visit)


async def ask(visit: Visit) -> Response:
    """An auditor gets the verdict; who may generate, the guarded answer too; an admin of the whole server, both."""
    try:
        question = _question(visit)
        if visit.who.may(Permission.INFER):
            unguarded = bool(visit.given("unguarded"))
            if unguarded and not _may_see_unguarded(visit):
                raise BadRequest("Only an admin key without a tenant may ask without the guard.")
            played = await visit.desk.playground.ask(question, unguarded=unguarded)
        else:
            played = await visit.desk.playground.judge(question)
    except LetheError as error:
        return _page(visit, error.status, told=error.message)
    return _page(visit, played=played, pieces=_pieces(played))


def _act(visit: Visit) -> str | None:
    """Who asks without the guard is in the audit trail too, whether it was granted or not."""
    return "playground.unguarded" if visit.given("unguarded") else None


def _question(visit: Visit) -> Question:
    tenant = visit.given("tenant").strip() or None
    if not visit.whole and tenant not in (None, visit.who.tenant):
        raise BadRequest(f"This key asks for the tenant '{visit.who.tenant}' only.", param="tenant")
    return Question(
        text=visit.given("prompt"),
        system=visit.given("system"),
        plain=visit.given("form") == "plain",
        tenant=visit.who.tenant or tenant,
        max_tokens=number(visit.given("max_tokens") or None, "max_tokens", TOKENS, MOST_TOKENS),
        key_id=visit.who.key_id,
    )


def _pieces(played: Played) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Each message with the places that matched in it."""
    spans: dict[int, list[tuple[int, int]]] = {}
    for target in played.verdict["decision"]["targets"]:
        for place in target["evidence"]:
            if place["message"] is not None:
                spans.setdefault(place["message"], []).append((place["start"], place["end"]))
    return [(m.role, show.marked(m.text, spans.get(i, ()))) for i, m in enumerate(played.messages)]


def _may_see_unguarded(visit: Visit) -> bool:
    return visit.whole and visit.who.may(Permission.UNGUARDED)


def _page(visit: Visit, status: int = 200, **more: object) -> Response:
    values = {
        "played": None,
        "pieces": [],
        "told": None,
        "answers": visit.who.may(Permission.INFER),
        "unguarded": _may_see_unguarded(visit),
        "tokens": TOKENS,
        "most": MOST_TOKENS,
        **more,
    }
    return visit.page("playground.html", status, here="playground", **values)


PAGES = (
    Page("GET", "/playground", form, Permission.CHECK),
    Page("POST", "/playground", ask, Permission.CHECK, act=_act),
)
