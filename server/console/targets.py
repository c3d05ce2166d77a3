"""Targets: found, shown with their state and calibration, written, imported, deleted, purged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, get_args

from starlette.responses import Response

from guard import specs
from guard.errors import BadRequest, LetheError
from guard.ledger import TargetState
from guard.register import Caller, Precondition
from guard.targets import TargetSpec
from server.admin.route import decode_cursor, encode_cursor
from server.auth import Permission
from server.console import show
from server.console.desk import Page, Visit, number
from server.console.target_form import CHOICES, POLICIES, Filled, fields_of, filled

Json = dict[str, Any]

STATES = get_args(TargetState)
LIMIT = 50
PLOTS = 12
DONE = {
    "written": "Saved. It is enforced by this server now.",
    "deleted": "Deleted. It is not enforced any more.",
    "purged": "Purged. Its content is erased from every version, the decision log and artifacts made for it.",
}


async def index(visit: Visit) -> Response:
    state = visit.asked("state")
    if state not in (None, *STATES):
        raise BadRequest(f"state must be one of {', '.join(STATES)}.", param="state")
    data, after = visit.services.register.views(
        limit=number(visit.asked("limit"), "limit", LIMIT, 500),
        after=decode_cursor(visit.asked("cursor")),
        tag=visit.asked("tag"),
        state=state,
        tenant=visit.who.tenant,
        search=visit.asked("search"),
    )
    done = DONE.get(visit.asked("done") or "")
    return visit.page(
        "targets.html", here="targets", targets=data, cursor=encode_cursor(after), states=STATES, done=done
    )


async def calibration(visit: Visit) -> Response:
    """Targets by id with their plots, a page at a time."""
    after = decode_cursor(visit.asked("cursor"))
    data, following = visit.services.register.views(
        limit=PLOTS, after=after, tenant=visit.who.tenant, search=visit.asked("search")
    )
    shown = [(view, show.plots(view["calibration"])) for view in data]
    return visit.page("calibration.html", here="calibration", targets=shown, cursor=encode_cursor(following))


async def target(visit: Visit) -> Response:
    """What it is, and how it stands. Its past and its counts are those of its evidence, for who may read that."""
    view, _ = visit.services.register.view(visit.part("id"), visit.who.tenant)
    evidence = await _evidence(visit) if visit.who.may(Permission.READ_DECISIONS) else None
    return visit.page(
        "target.html",
        here="targets",
        target=view,
        plots=show.plots(view["calibration"]),
        evidence=evidence,
        done=DONE.get(visit.asked("done") or ""),
    )


async def evidence(visit: Visit) -> Response:
    target_id = visit.part("id")
    bundle = await visit.services.evidence.bundle(target_id, visit.who.tenant)
    headers = {"Content-Disposition": f'attachment; filename="evidence-{_safe(target_id)}.json"'}
    return Response(bundle, media_type="application/json", headers=headers)


async def new(visit: Visit) -> Response:
    """An empty form with the defaults of this installation; for a tenant, in its own scope."""
    scope = {"scope": {"tenants": [visit.who.tenant]}} if visit.who.tenant else {}
    blank = TargetSpec.model_validate({"name": "new", **visit.services.register.defaults, **scope})
    return _form(visit, fields_of({**specs.written_form(blank), "name": ""}))


async def create(visit: Visit) -> Response:
    form = filled(visit)
    target_id = visit.given("id").strip()
    raw = {**form.raw, **({"id": target_id} if target_id else {})}
    if (refused := await _refused(visit, form, raw, None)) is not None:
        return refused
    try:
        view = await visit.services.register.create(raw, _caller(visit))
    except LetheError as error:
        wrong = await _wrong(visit, raw, error)
        return _form(visit, form.shown, status=error.status, wrong=wrong)
    return await visit.done(f"/targets/{view['id']}", "written")


async def edit(visit: Visit) -> Response:
    view, _ = visit.services.register.view(visit.part("id"), visit.who.tenant)
    return _form(visit, fields_of(view), target=view)


async def replace(visit: Visit) -> Response:
    """The target as the form has it, if nobody changed it since the form was opened. As with PATCH, what is detected
    is judged again only where that is changed."""
    view, _ = visit.services.register.view(visit.part("id"), visit.who.tenant)
    form = filled(visit)
    raw = {**view, **form.raw, "policy": {**view["policy"], **form.raw["policy"]}}
    if (refused := await _refused(visit, form, raw, view)) is not None:
        return refused
    try:
        spec = specs.read_spec(raw, view["id"], {})
        accepted = specs.same_detection(specs.read_spec(view, view["id"], {}), spec)
        seen = Precondition(if_match=f'"{view["id"]}.{visit.given("version")}"')
        await visit.services.register.put(view["id"], raw, _caller(visit, seen, force=accepted))
    except LetheError as error:
        wrong = await _wrong(visit, raw, error)
        return _form(visit, form.shown, status=error.status, wrong=wrong, target=view)
    return await visit.done(f"/targets/{view['id']}", "written")


async def ask_delete(visit: Visit) -> Response:
    view, _ = visit.services.register.view(visit.part("id"), visit.who.tenant)
    return visit.page("target_delete.html", here="targets", target=view, told=None)


async def delete(visit: Visit) -> Response:
    """A purge must be confirmed by the target's id, typed."""
    view, _ = visit.services.register.view(visit.part("id"), visit.who.tenant)
    purge = visit.given("action") == "purge"
    if purge and visit.given("confirm").strip() != view["id"]:
        told = f"Nothing was purged: type {view['id']} to confirm."
        return visit.page("target_delete.html", 400, here="targets", target=view, told=told)
    seen = Precondition(if_match=f'"{view["id"]}.{visit.given("version")}"')
    await visit.services.register.delete(view["id"], purge=purge, caller=_caller(visit, seen))
    return await visit.done("/targets", "purged" if purge else "deleted")


async def ask_import(visit: Visit) -> Response:
    return visit.page("import.html", here="targets", report=None, text="", lagging=False)


async def take_import(visit: Visit) -> Response:
    """A file, or what was pasted. The report says which lines were refused and why."""
    text = visit.given("lines")
    lines = (await visit.file("file") or text.encode()).splitlines()
    if not lines:
        raise BadRequest("Choose a file or paste lines: there is nothing to import.", param="lines")
    report = await visit.services.register.import_lines(
        lines, atomic=bool(visit.given("atomic")), caller=_caller(visit)
    )
    lagging = bool(await visit.services.settled())
    return visit.page("import.html", here="targets", report=report, text=text, lagging=lagging)


async def _refused(visit: Visit, form: Filled, raw: Json, view: Json | None) -> Response | None:
    """The form again, where fields cannot be read, or where it was sent to be checked only; None: go on."""
    if form.wrong:
        return _form(visit, form.shown, status=400, wrong=form.wrong, target=view)
    if visit.given("action") != "check":
        return None
    if view is not None and specs.same_detection(specs.read_spec(view, view["id"], {}), _or_old(raw, view)):
        problems = await visit.services.register.validate(raw, _caller(visit, force=True))
    else:
        problems = await visit.services.register.validate(raw, _caller(visit))
    wrong = _by_field(problems)
    return _form(visit, form.shown, wrong=wrong, target=view, checked=not wrong)


def _or_old(raw: Json, view: Json) -> TargetSpec:
    """What the form asks for; what is there, where that cannot be read (the check will say why)."""
    try:
        return specs.read_spec(raw, view["id"], {})
    except BadRequest:
        return specs.read_spec(view, view["id"], {})


def _form(
    visit: Visit,
    shown: Mapping[str, Any],
    *,
    status: int = 200,
    wrong: Mapping[str, str] | None = None,
    target: Json | None = None,
    checked: bool = False,
) -> Response:
    values: Json = {"shown": shown, "wrong": dict(wrong or {}), "target": target, "checked": checked}
    return visit.page(
        "target_form.html", status, here="targets", choices=CHOICES, policies=POLICIES, **values
    )


def _caller(visit: Visit, seen: Precondition | None = None, *, force: bool = False) -> Caller:
    return Caller(visit.who.tenant, seen or Precondition(), force=force or bool(visit.given("force")))


async def _wrong(visit: Visit, raw: Json, error: LetheError) -> dict[str, str]:
    """What was wrong with a write, by field: all of it where fields are. Raises the error again where no change to the
    form would help."""
    if error.status >= 500:
        raise error
    if error.status == BadRequest.status:
        problems = await visit.services.register.validate(raw, _caller(visit, force=True))
        if problems:
            return _by_field(problems)
    return {_field(error.param): error.message}


def _by_field(problems: list[Json]) -> dict[str, str]:
    return {_field(problem["field"]): problem["message"] for problem in problems}


def _field(param: str | None) -> str:
    """The field of the form that a problem belongs to; empty for the whole form."""
    return (param or "").split(".")[0]


async def _evidence(visit: Visit) -> Json:
    bundle = await visit.services.evidence.bundle(visit.part("id"), visit.who.tenant)
    claims: Json = json.loads(bundle)["evidence"]
    return claims


def _safe(target_id: str) -> str:
    return target_id if specs.valid_id(target_id) else "target"


def _act(name: str) -> Callable[[Visit], str | None]:
    """A form that is only checked changes nothing."""
    return lambda visit: None if visit.given("action") == "check" else name


def _act_of_deleting(visit: Visit) -> str:
    return "targets.purge" if visit.given("action") == "purge" else "targets.delete"


PAGES = (
    Page("GET", "/targets", index, Permission.READ_TARGETS),
    Page("GET", "/calibration", calibration, Permission.READ_TARGETS),
    Page("GET", "/targets/{id}", target, Permission.READ_TARGETS),
    Page("GET", "/targets/{id}/evidence", evidence, Permission.READ_DECISIONS),
    Page("GET", "/new-target", new, Permission.WRITE_TARGETS),
    Page("POST", "/new-target", create, Permission.WRITE_TARGETS, act=_act("targets.create")),
    Page("GET", "/targets/{id}/edit", edit, Permission.WRITE_TARGETS),
    Page("POST", "/targets/{id}/edit", replace, Permission.WRITE_TARGETS, act=_act("targets.put")),
    Page("GET", "/targets/{id}/delete", ask_delete, Permission.WRITE_TARGETS),
    Page("POST", "/targets/{id}/delete", delete, Permission.WRITE_TARGETS, act=_act_of_deleting),
    Page("GET", "/import", ask_import, Permission.WRITE_TARGETS),
    Page("POST", "/import", take_import, Permission.WRITE_TARGETS, act=_act("targets.import")),
)
