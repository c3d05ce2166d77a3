"""The web console, `/console`: pages rendered here, for people who answer for what is forgotten.

It works without scripts; one script renews pages that change. Assets are its own files.
"""

from __future__ import annotations

from functools import partial
from itertools import groupby

from fastapi import APIRouter
from starlette.requests import Request

from server.console import assets, audit, decisions, jobs, keys, overview, playing, reports, targets
from server.console.desk import PREFIX, Desk, Page, endpoint, guarded, log_in, log_out, show_login

PAGES: tuple[Page, ...] = (
    *overview.PAGES,
    *targets.PAGES,
    *playing.PAGES,
    *decisions.PAGES,
    *jobs.PAGES,
    *reports.PAGES,
    *audit.PAGES,
    *keys.PAGES,
    Page("POST", "/logout", log_out, None),
)


def console_router(desk: Desk) -> APIRouter:
    """All routes of the console, to be included in the application. Each answers its own errors."""
    router = APIRouter()

    def add(path: str, methods: list[str], serve: object) -> None:
        router.add_route(PREFIX + path, serve, methods=methods, include_in_schema=False)  # type: ignore[arg-type]

    by_path = sorted(PAGES, key=lambda page: page.path)
    for path, found in groupby(by_path, key=lambda page: page.path):
        pages = {page.method: page for page in found}
        add(path, list(pages), endpoint(desk, pages))
    add("/login", ["GET"], guarded(desk, partial(show_login, desk)))
    add("/login", ["POST"], guarded(desk, partial(log_in, desk)))

    async def asset(request: Request) -> object:
        return assets.answer(request)

    add("/static/{name}", ["GET"], guarded(desk, asset))  # type: ignore[arg-type]
    return router


__all__ = ["PAGES", "PREFIX", "Desk", "console_router"]
