"""`/keys`: who may call, and as what."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from guard.errors import BadRequest, Forbidden
from guard.store.keys import Key
from server.admin.route import allowed, answers, json_body, settled, takes, validated
from server.admin.schemas import KeyBody, KeyPage, Lagging, NewKey, OpenObject, RotateBody
from server.admin.services import Services
from server.auth import Permission, Principal

Json = dict[str, Any]


def add_routes(router: APIRouter, services: Services) -> None:
    def unconfined(who: Principal = allowed(services, Permission.KEYS)) -> Principal:
        if who.tenant is not None:
            raise Forbidden("A key that belongs to a tenant may not manage keys.")
        return who

    admin = Depends(unconfined)

    @router.get("/keys", responses=answers(_200=KeyPage))
    def list_keys(who: Principal = admin) -> Json:
        """All keys, oldest first, without the keys themselves."""
        return {"data": [view_of(key) for key in services.authenticator.all()], "next_cursor": None}

    @router.post(
        "/keys", status_code=201, responses=answers(_201=NewKey, _202=Lagging), openapi_extra=takes(KeyBody)
    )
    async def create_key(who: Principal = admin, body: Json = Depends(json_body)) -> JSONResponse:
        """A new key, shown this once and stored as a digest."""
        wanted = validated(KeyBody, body)
        expires_at = future(wanted.expires_at)
        key, token = await run_in_threadpool(
            services.authenticator.create,
            wanted.role,
            wanted.tenant,
            expires_at,
            speaks=wanted.speaks_for_tenants,
        )
        return await settled(services, {**view_of(key), "key": token}, 201)

    @router.post(
        "/keys/{id}/rotate",
        status_code=201,
        responses=answers(404, _201=NewKey, _202=Lagging),
        openapi_extra=takes(RotateBody),
    )
    async def rotate_key(
        id: str,  # noqa: A002
        who: Principal = admin,
        body: Json = Depends(json_body),
    ) -> JSONResponse:
        """A new key in the place of this one, shown this once. The old one stays good for `grace_seconds`."""
        wanted = validated(RotateBody, body)
        key, token = await run_in_threadpool(
            services.authenticator.rotate, id, wanted.grace_seconds, future(wanted.expires_at)
        )
        return await settled(services, {**view_of(key), "key": token}, 201)

    @router.delete("/keys/{id}", responses=answers(404, _200=OpenObject, _202=Lagging))
    async def revoke_key(id: str, who: Principal = admin) -> JSONResponse:  # noqa: A002 - the name in the path
        """Revoke a key, at once."""
        await run_in_threadpool(services.authenticator.revoke, id)
        return await settled(services, {"id": id, "deleted": True})


def future(moment: datetime | None) -> float | None:
    if moment is None:
        return None
    seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if seconds <= time.time():
        raise BadRequest("expires_at: this time has passed.", param="expires_at")
    return seconds


def view_of(key: Key) -> Json:
    return {
        "id": key.id,
        "role": key.role,
        "tenant": key.tenant,
        "created_at": _iso(key.created_at),
        "expires_at": _iso(key.expires_at) if key.expires_at is not None else None,
        "last_used_at": _iso(key.used_at) if key.used_at is not None else None,
        "speaks_for_tenants": key.speaks,
        "successor": key.successor,
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
