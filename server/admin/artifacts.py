"""`/artifacts`: what was trained for the methods that need it, and whether every worker holds it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse

from guard.errors import Forbidden
from server.admin.route import allowed, answers, begin, json_body, settled, takes, validated
from server.admin.schemas import ArtifactBody, ArtifactPage, ArtifactView, Lagging, RemovedArtifact
from server.admin.services import Services
from server.auth import Permission, Principal

Json = dict[str, Any]


def add_routes(router: APIRouter, services: Services) -> None:
    def unconfined(who: Principal = allowed(services, Permission.ENGINE)) -> Principal:
        if who.tenant is not None:
            raise Forbidden("A key that belongs to a tenant may not change artifacts.")
        return who

    engineer = Depends(unconfined)

    @router.get("/artifacts", responses=answers(_200=ArtifactPage))
    async def list_artifacts(who: Principal = allowed(services, Permission.READ_ARTIFACTS)) -> Json:
        """All artifacts by digest; for a tenant, those that its own targets name."""
        return {"data": await services.register.artifacts(who.tenant), "next_cursor": None}

    @router.post(
        "/artifacts",
        status_code=201,
        responses=answers(404, 422, _201=ArtifactView, _202=Lagging),
        openapi_extra=takes(ArtifactBody),
    )
    async def load_artifact(who: Principal = engineer, body: Json = Depends(json_body)) -> JSONResponse:
        """Load what `lethe artifacts add` put into the store. Rungs that wait for it are in force when this
        answers."""
        digest = validated(ArtifactBody, body).digest
        await begin(services, digest)
        return await settled(services, await services.register.load_artifact(digest), 201)

    @router.delete("/artifacts/{digest}", responses=answers(404, _200=RemovedArtifact, _202=Lagging))
    async def remove_artifact(digest: str, who: Principal = engineer) -> JSONResponse:
        """Erase an artifact from the workers and the store. Rungs that name it wait; the next ready one applies."""
        await begin(services, digest)
        await services.register.remove_artifact(digest)
        return await settled(services, {"digest": digest, "deleted": True})
