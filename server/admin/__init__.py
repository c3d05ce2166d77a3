"""The admin API, `/admin/v1`: targets, snapshots, artifacts, jobs, checks, decisions, audit trail, keys and status."""

from __future__ import annotations

from fastapi import APIRouter

from server.admin import artifacts, audit, decisions, jobs, keys, snapshots, system, targets
from server.admin.route import recorded
from server.admin.services import Services

PREFIX = "/admin/v1"


def admin_router(services: Services) -> APIRouter:
    """All routes of the admin API, to be included in the application. Each answers its own errors."""
    router = APIRouter(prefix=PREFIX, route_class=recorded(services))
    for part in (targets, snapshots, artifacts, jobs, decisions, audit, keys, system):
        part.add_routes(router, services)
    return router


__all__ = ["PREFIX", "Services", "admin_router"]
