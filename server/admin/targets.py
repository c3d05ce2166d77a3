"""`/targets`: what shall be forgotten."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import JSONResponse, Response

from guard.importing import json_rows
from guard.ledger import TargetState
from guard.register import Caller, Precondition
from guard.spreadsheet import csv_rows
from server.admin.route import (
    LIMIT,
    MAX_LIMIT,
    allowed,
    answers,
    decode_cursor,
    encode_cursor,
    json_body,
    settled,
    takes,
)
from server.admin.schemas import (
    Deleted,
    ImportResult,
    Lagging,
    OpenObject,
    TargetBody,
    TargetPage,
    TargetView,
    Validation,
)
from server.admin.services import Services
from server.auth import Permission, Principal

Json = dict[str, Any]


def add_routes(router: APIRouter, services: Services) -> None:
    # The fixed paths come first: `/targets/{id}` would take them for ids.
    _add_bulk(router, services)
    _add_collection(router, services)
    _add_single_reads(router, services)
    _add_single_writes(router, services)


def _add_bulk(router: APIRouter, services: Services) -> None:
    reader = allowed(services, Permission.READ_TARGETS)
    writer = allowed(services, Permission.WRITE_TARGETS)

    @router.post("/targets/validate", responses=answers(_200=Validation), openapi_extra=takes(TargetBody))
    async def validate_target(
        force: bool = False, who: Principal = writer, body: Json = Depends(json_body)
    ) -> Json:
        """What would be refused, and why; nothing is stored."""
        problems = await services.register.validate(body, Caller(who.tenant, force=force))
        return {"valid": not problems, "problems": problems}

    @router.post("/targets/import", responses=answers(_200=ImportResult, _202=Lagging))
    async def import_targets(
        request: Request,
        atomic: bool = False,
        force: bool = False,
        dry_run: bool = False,
        who: Principal = writer,
    ) -> Response:
        """One target per JSON line of the body, or per row where it is `text/csv`; `atomic` takes all or none,
        `dry_run` stores nothing."""
        body = await request.body()
        csv = request.headers.get("content-type", "").partition(";")[0].strip().lower() == "text/csv"
        rows = csv_rows(body) if csv else json_rows(body.splitlines())
        caller = Caller(who.tenant, force=force)
        report = await services.register.import_rows(rows, atomic=atomic, dry_run=dry_run, caller=caller)
        if dry_run:
            return JSONResponse(report)
        return await settled(services, report)

    @router.get("/targets/export", responses=answers(), response_class=Response)
    def export_targets(who: Principal = reader) -> Response:
        """All targets as JSON lines, as import takes them."""
        lines = (json.dumps(target, ensure_ascii=False) for target in services.register.export(who.tenant))
        return Response("".join(line + "\n" for line in lines), media_type="application/jsonl")


def _add_collection(router: APIRouter, services: Services) -> None:
    reader = allowed(services, Permission.READ_TARGETS)
    writer = allowed(services, Permission.WRITE_TARGETS)

    @router.get("/targets", responses=answers(_200=TargetPage))
    def list_targets(
        who: Principal = reader,
        limit: int = Query(LIMIT, ge=1, le=MAX_LIMIT),
        cursor: str | None = None,
        tag: str | None = None,
        state: TargetState | None = None,
    ) -> JSONResponse:
        """Targets by id."""
        data, after = services.register.views(
            limit=limit, after=decode_cursor(cursor), tag=tag, state=state, tenant=who.tenant
        )
        return JSONResponse({"data": data, "next_cursor": encode_cursor(after)})

    @router.post(
        "/targets",
        status_code=201,
        responses=answers(409, 422, _201=TargetView, _202=Lagging),
        openapi_extra=takes(TargetBody),
    )
    async def create_target(
        force: bool = False, who: Principal = writer, body: Json = Depends(json_body)
    ) -> Response:
        """Register a target; without an id it gets one from its name. Enforced when this answers."""
        view = await services.register.create(body, Caller(who.tenant, force=force))
        return await settled(services, view, 201, _tags(view, created=True))


def _add_single_reads(router: APIRouter, services: Services) -> None:
    @router.get("/targets/{id}", responses=answers(404, _200=TargetView))
    def get_target(
        id: str,  # noqa: A002 - the name in the path
        who: Principal = allowed(services, Permission.READ_TARGETS),
    ) -> Response:
        """One target, with its ETag."""
        view, _ = services.register.view(id, who.tenant)
        return JSONResponse(view, headers=_tags(view))

    @router.get("/targets/{id}/evidence", responses=answers(404, _200=OpenObject))
    async def get_evidence(
        id: str,  # noqa: A002
        who: Principal = allowed(services, Permission.READ_DECISIONS),
    ) -> Response:
        """What a forget request can show, signed; kept for a deleted target, gone with a purge."""
        return Response(await services.evidence.bundle(id, who.tenant), media_type="application/json")


def _add_single_writes(router: APIRouter, services: Services) -> None:
    writer = allowed(services, Permission.WRITE_TARGETS)

    def precondition(
        if_match: str | None = Header(None), if_none_match: str | None = Header(None)
    ) -> Precondition:
        return Precondition(if_match, if_none_match)

    @router.put(
        "/targets/{id}",
        responses=answers(412, 422, _200=TargetView, _201=TargetView, _202=Lagging),
        openapi_extra=takes(TargetBody),
    )
    async def put_target(
        id: str,  # noqa: A002
        force: bool = False,
        who: Principal = writer,
        conditions: Precondition = Depends(precondition),
        body: Json = Depends(json_body),
    ) -> Response:
        """Register a target or replace it as a whole. Enforced when this answers."""
        view, created = await services.register.put(id, body, Caller(who.tenant, conditions, force))
        return await settled(services, view, 201 if created else 200, _tags(view, created=created))

    @router.patch(
        "/targets/{id}",
        responses=answers(404, 412, 422, _200=TargetView, _202=Lagging),
        openapi_extra=takes(TargetBody),
    )
    async def patch_target(
        id: str,  # noqa: A002
        force: bool = False,
        who: Principal = writer,
        conditions: Precondition = Depends(precondition),
        body: Json = Depends(json_body),
    ) -> Response:
        """Change some fields (a JSON merge patch: null resets one). Enforced when this answers."""
        view = await services.register.patch(id, body, Caller(who.tenant, conditions, force))
        return await settled(services, view, 200, _tags(view))

    @router.delete("/targets/{id}", responses=answers(404, 412, _200=Deleted, _202=Lagging))
    async def delete_target(
        id: str,  # noqa: A002
        purge: bool = False,
        who: Principal = writer,
        conditions: Precondition = Depends(precondition),
    ) -> Response:
        """Stop enforcing a target; `purge` erases its content from every version and the decision log."""
        await services.register.delete(id, purge=purge, caller=Caller(who.tenant, conditions))
        return await settled(services, {"id": id, "deleted": True, "purged": purge})


def _tags(view: Json, *, created: bool = False) -> dict[str, str]:
    headers = {"ETag": view_etag(view)}
    if created:
        headers["Location"] = f"/admin/v1/targets/{view['id']}"
    return headers


def view_etag(view: Json) -> str:
    """The same tag that `StoredTarget.etag` gives."""
    return f'"{view["id"]}.{view["version"]}"'
