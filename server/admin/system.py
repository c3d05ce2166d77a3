"""`/check`, `/score` and `/status`: would this be matched, how likely is that answer, what is live."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends

from guard.errors import Forbidden
from server.admin.route import allowed, answers, json_body, takes, validated
from server.admin.schemas import CheckBody, OpenObject, ScoreBody
from server.admin.services import Services
from server.auth import Permission, Principal

Json = dict[str, Any]


def add_routes(router: APIRouter, services: Services) -> None:
    @router.post("/check", responses=answers(_200=OpenObject), openapi_extra=takes(CheckBody))
    async def check(
        who: Principal = allowed(services, Permission.CHECK), body: Json = Depends(json_body)
    ) -> Mapping[str, Any]:
        """Would this be matched, by what, how surely; judged as generation would be, generating nothing."""
        return await services.check(_wanted(validated(CheckBody, body), who))

    @router.post("/score", responses=answers(_200=OpenObject), openapi_extra=takes(ScoreBody))
    async def score(
        who: Principal = allowed(services, Permission.SCORE), body: Json = Depends(json_body)
    ) -> Mapping[str, Any]:
        """How likely is that answer, under exactly the edits that a generation would get; the verdict is that on the
        messages alone."""
        return await services.score(_wanted(validated(ScoreBody, body), who))

    @router.get("/status", responses=answers(_200=OpenObject))
    async def status(who: Principal = allowed(services, Permission.READ_STATUS)) -> Mapping[str, Any]:
        """The snapshot, the targets by state, the engine and its sites; a tenant is told of its own targets."""
        found = await services.status()
        if who.tenant is None:
            return found
        return {**found, **services.register.status(who.tenant), "keys": None, "drift": None}


def _wanted(body: CheckBody, who: Principal) -> Json:
    """The body, for the tenant that the key belongs to."""
    wanted = body.model_dump(exclude_none=True)
    if who.tenant is not None and wanted.setdefault("tenant", who.tenant) != who.tenant:
        raise Forbidden(f"This key checks for the tenant '{who.tenant}' only.", param="tenant")
    return wanted
