"""Jobs: listed, started by a form that the kind's own schema makes, watched, ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_args

from starlette.responses import Response

from guard.errors import BadRequest, LetheError
from guard.store.jobs import Filter, State
from server.admin.jobs import place, request_of, view_of
from server.admin.route import encode_cursor, validated
from server.admin.schemas import JobBody
from server.auth import Permission
from server.console import show
from server.console.desk import Page, Visit, number

Json = dict[str, Any]

STATES = get_args(State)
LIMIT = 50
SUGGESTED = 200  # ids of targets that the form offers
DONE = {"cancelled": "Cancelled.", "forgotten": "Forgotten. What it made stays."}


async def index(visit: Visit) -> Response:
    state: Any = visit.asked("state")
    if state not in (None, *STATES):
        raise BadRequest(f"state must be one of {', '.join(STATES)}.", param="state")
    wanted = Filter(visit.asked("target"), state, visit.who.tenant)
    limit = number(visit.asked("limit"), "limit", LIMIT, 500)
    found = await visit.services.jobs.page(wanted, limit=limit + 1, after=place(visit.asked("cursor")))
    last = found[limit - 1] if len(found) > limit else None
    return visit.page(
        "jobs.html",
        here="jobs",
        jobs=[view_of(job) for job in found[:limit]],
        cursor=encode_cursor(f"{last.created_at!r} {last.id}") if last else None,
        states=STATES,
        done=DONE.get(visit.asked("done") or ""),
    )


async def job(visit: Visit) -> Response:
    found = view_of(await visit.services.jobs.get(visit.part("id"), visit.who.tenant))
    return visit.page("job.html", here="jobs", job=found)


async def end(visit: Visit) -> Response:
    deleted, _ = await visit.services.jobs.end(visit.part("id"), visit.who.tenant)
    return visit.go("/jobs", done="forgotten" if deleted else "cancelled")


async def new(visit: Visit) -> Response:
    """First the kind, then what it takes."""
    return await _form(visit, visit.asked("kind"), {"target": visit.asked("target") or "", "attach": True})


async def submit(visit: Visit) -> Response:
    kind = visit.given("kind")
    fields = fields_of((await visit.services.jobs.kinds()).get(kind, {}))
    given: Json = {f"params.{name}": visit.given(f"params.{name}") for name in fields}
    given |= {name: visit.given(name) for name in ("target", "params.adapters")}
    given["attach"] = bool(visit.given("attach"))
    params = {
        name: _value(of, text) for name, of in fields.items() if (text := given[f"params.{name}"].strip())
    }
    try:
        adapters = show.from_lines(given["params.adapters"])
        body = {**params, "adapters": adapters, "attach": given["attach"]}
        wanted = validated(JobBody, {"kind": kind, "target": given["target"].strip(), "params": body})
        made = await visit.services.jobs.submit(
            wanted.kind, wanted.target, request_of(wanted), visit.who.tenant
        )
    except ValueError:
        wrong = {"params.adapters": "Write one digest on each line."}
        return await _form(visit, kind, given, status=400, wrong=wrong)
    except LetheError as error:
        if error.status >= 500:
            raise
        param = "target" if error.status == 404 else ".".join((error.param or "").split(".")[:2])
        return await _form(visit, kind, given, status=error.status, wrong={param: error.message})
    return visit.go(f"/jobs/{made.id}")


def fields_of(schema: Mapping[str, Any]) -> dict[str, Json]:
    """What the form asks for each parameter: `kind` of field, `choices`, `default`. Paths are for the command line."""
    fields = {}
    for name, of in schema.get("properties", {}).items():
        branches = [one for one in of.get("anyOf", (of,)) if one.get("type") != "null"]
        if any(one.get("format") == "path" for one in branches):
            continue
        simple: Json = branches[0] if len(branches) == 1 else {}
        kind = {"integer": "number", "number": "number", "boolean": "choice", "string": "text"}.get(
            simple.get("type", ""), "json"
        )
        choices = simple.get("enum", ["true", "false"] if simple.get("type") == "boolean" else None)
        fields[name] = {
            "kind": "choice" if choices else kind,
            "choices": choices,
            "type": simple.get("type"),
            "default": None if of.get("default") is None else json.dumps(of["default"], ensure_ascii=False),
            "description": of.get("description"),
        }
    return fields


def _value(of: Mapping[str, Any], text: str) -> Any:
    """What was typed, as the schema's type; what is none of that goes as text, and the check says what is wrong."""
    if of["type"] == "string":
        return text
    try:
        return show.read_json(text)
    except ValueError:
        return text


async def _form(
    visit: Visit,
    kind: str | None,
    given: Mapping[str, Any],
    *,
    status: int = 200,
    wrong: Mapping[str, str] | None = None,
) -> Response:
    kinds = await visit.services.jobs.kinds()
    targets, _ = visit.services.register.views(limit=SUGGESTED, tenant=visit.who.tenant)
    schema = kinds.get(kind or "")
    return visit.page(
        "job_form.html",
        status,
        here="jobs",
        kinds=sorted(kinds),
        kind=kind if schema else None,
        about=(schema or {}).get("description", ""),
        fields=fields_of(schema or {}),
        given=given,
        wrong=dict(wrong or {}),
        targets=[view["id"] for view in targets],
    )


PAGES = (
    Page("GET", "/jobs", index, Permission.READ_JOBS),
    Page("GET", "/jobs/{id}", job, Permission.READ_JOBS),
    Page("POST", "/jobs/{id}/end", end, Permission.JOBS, act=lambda _: "jobs.end"),
    Page("GET", "/new-job", new, Permission.JOBS),
    Page("POST", "/new-job", submit, Permission.JOBS, act=lambda _: "jobs.create"),
)
