"""`/check` and `/status`: would this be matched, what is live."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends

from guard.errors import Forbidden
from server.admin.route import allowed, answers, json_body, takes, validated
from server.admin.schemas import CheckBody, OpenObject
from server.admin.services import Services
from server.auth import Permission, Principal

Json = dict[str, Any]


def add_routes(router: APIRouter, services: Services) -> None:
    @router.post("/check", responses=answers(_200=OpenObject), openapi_extra=takes(CheckBody))
    async def check(
        who: Principal = allowed(services, Permission.CHECK), body: Json = Depends(json_body)
    ) -> Mapping[str, Any]:
        """Would this be matched, by what, how surely; judged as generation would be, generating nothing."""
        wanted = validated(CheckBody, body).model_dump(exclude_none=True)
        if who.tenant is not None and wanted.setdefault("tenant", who.tenant) != who.tenant:
            raise Forbidden(f"This key checks for the tenant '{who.tenant}' only.", param="tenant")
        return await services.check(wanted)

    @router.get("/status", responses=answers(_200=OpenObject))
    async def status(who: Principal = allowed(services, Permission.READ_STATUS)) -> Mapping[str, Any]:
        """The snapshot, the targets by state, the engine and its sites."""
        return await services.status()
