"""Probes: `/livez` says that the process is up, `/readyz` that everything a guarded answer needs is proven live."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from starlette.responses import JSONResponse


def health_router(unready: Callable[[], Awaitable[str | None]]) -> APIRouter:
    """`unready` gives the reason why this process should get no traffic, or None."""
    router = APIRouter(tags=["health"])

    @router.get("/livez", summary="The process is up")
    async def livez() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @router.get(
        "/readyz", summary="Engine, edit sites, detectors and a snapshot are live", responses={503: {}}
    )
    async def readyz() -> JSONResponse:
        reason = await unready()
        if reason is None:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "unready", "reason": reason}, 503, {"Retry-After": "1"})

    return router
