"""`/jobs`: training an artifact for a target, beside serving."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Depends, Query
from starlette.responses import JSONResponse

from guard.errors import BadRequest
from guard.store.jobs import Filter, Job, Request, State
from server.admin.route import (
    LIMIT,
    MAX_LIMIT,
    allowed,
    answers,
    decode_cursor,
    encode_cursor,
    json_body,
    takes,
    validated,
)
from server.admin.schemas import EndedJob, ExampleBody, JobBody, JobPage, JobView
from server.admin.services import Services
from server.auth import Permission, Principal

Json = dict[str, Any]


def add_routes(router: APIRouter, services: Services) -> None:
    reader = allowed(services, Permission.READ_JOBS)
    writer = allowed(services, Permission.JOBS)

    @router.get("/jobs", responses=answers(_200=JobPage))
    async def list_jobs(
        who: Principal = reader,
        limit: int = Query(LIMIT, ge=1, le=MAX_LIMIT),
        cursor: str | None = None,
        target: str | None = None,
        state: State | None = None,
    ) -> Json:
        """Jobs, newest first."""
        wanted = Filter(target, state, who.tenant)
        found = await services.jobs.page(wanted, limit=limit + 1, after=place(cursor))
        last = found[limit - 1] if len(found) > limit else None
        following = encode_cursor(f"{last.created_at!r} {last.id}") if last else None
        return {"data": [view_of(job) for job in found[:limit]], "next_cursor": following}

    @router.post("/jobs", status_code=201, responses=answers(404, _201=JobView), openapi_extra=takes(JobBody))
    async def create_job(who: Principal = writer, body: Json = Depends(json_body)) -> JSONResponse:
        """Queue a job. Kind and parameters are checked now, the examples by the trainer before it trains."""
        wanted = validated(JobBody, body)
        job = await services.jobs.submit(wanted.kind, wanted.target, request_of(wanted), who.tenant)
        return JSONResponse(view_of(job), 201, headers={"Location": f"/admin/v1/jobs/{job.id}"})

    @router.get("/jobs/{id}", responses=answers(404, _200=JobView))
    async def get_job(id: str, who: Principal = reader) -> Json:  # noqa: A002 - the name in the path
        """How far a job is."""
        return view_of(await services.jobs.get(id, who.tenant))

    @router.delete("/jobs/{id}", responses=answers(404, _200=EndedJob))
    async def end_job(id: str, who: Principal = writer) -> Json:  # noqa: A002
        """Cancel a job; forget one that has ended. What it made stays."""
        deleted, state = await services.jobs.end(id, who.tenant)
        return {"id": id, "deleted": deleted, "state": state}


def request_of(body: JobBody) -> Request:
    sets = {name: _rows(getattr(body.params, name)) for name in ("forget", "retain", "perturbed")}
    given = {name: len(rows) for name, rows in sets.items() if rows is not None}
    params, adapters = dict(body.params.model_extra or {}), tuple(body.params.adapters)
    return Request(params, body.params.attach, given=given, adapters=adapters, **sets)


def _rows(examples: list[ExampleBody] | None) -> tuple[Json, ...] | None:
    return None if examples is None else tuple(example.model_dump(exclude_none=True) for example in examples)


def place(cursor: str | None) -> tuple[float, str] | None:
    text = decode_cursor(cursor)
    if text is None:
        return None
    try:
        created, job_id = text.split(" ")
        return float(created), job_id
    except ValueError:
        raise BadRequest("The cursor is not one that this server gave.", param="cursor") from None


def view_of(job: Job) -> Json:
    return {
        "id": job.id,
        "kind": job.kind,
        "target": job.target,
        "params": {**job.request.params, "attach": job.request.attach, **_adapters(job)},
        "examples": dict(job.request.given),
        "state": job.state,
        "progress": job.progress,
        "log": list(job.report.log),
        "error": job.report.error,
        "artifact": job.artifact,
        "attached": job.attached,
        "created_at": _iso(job.created_at),
        "started_at": _iso(job.started_at),
        "ended_at": _iso(job.ended_at),
    }


def _adapters(job: Job) -> Json:
    return {"adapters": list(job.request.adapters)} if job.request.adapters else {}


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
