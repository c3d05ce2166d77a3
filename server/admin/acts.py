"""Which admin requests change something, and are therefore recorded in the audit trail."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.requests import HTTPConnection, Request
from starlette.types import Scope

from guard.trail import Act, Actor
from server.auth import Principal

ACTS: Mapping[tuple[str, str], str] = {
    ("POST", "/targets"): "targets.create",
    ("PUT", "/targets/{id}"): "targets.put",
    ("PATCH", "/targets/{id}"): "targets.patch",
    ("DELETE", "/targets/{id}"): "targets.delete",
    ("POST", "/targets/import"): "targets.import",
    ("POST", "/snapshots/{number}/rollback"): "targets.rollback",
    ("POST", "/artifacts"): "artifacts.load",
    ("DELETE", "/artifacts/{digest}"): "artifacts.remove",
    ("POST", "/jobs"): "jobs.create",
    ("DELETE", "/jobs/{id}"): "jobs.end",
    ("POST", "/keys"): "keys.create",
    ("POST", "/keys/{id}/rotate"): "keys.rotate",
    ("DELETE", "/keys/{id}"): "keys.revoke",
}
ASKING = frozenset({("POST", "/targets/validate"), ("POST", "/check"), ("POST", "/score")})
"""Requests that change nothing although they are sent with POST."""

_TRUE = ("true", "t", "yes", "y", "on", "1")
_SPOKEN = re.compile(
    r"[A-Za-z0-9._:-]{1,128}"
)  # an id of a request as gateways make them, and not somebody's words


def of(request: Request, path: str) -> Act | None:
    """The act that a request for the route `path` is, or None: it changes nothing."""
    action = ACTS.get((request.method, path.removeprefix("/admin/v1")))
    if action is None or _says(request, "dry_run"):
        return None
    if action == "targets.delete" and _says(request, "purge"):
        action = "targets.purge"
    return act(action, request, of_target="/targets/" in path)


def act(action: str, request: Request, *, of_target: bool) -> Act:
    """What the request says of the act: what it is about, by the path, and where it came from."""
    about = next(iter(request.path_params.values()), None)
    return _from(
        request,
        Act(
            action,
            target=about if of_target else None,
            subject=about[:64] if about is not None and not of_target else None,
        ),
    )


def of_control(who: Principal, scope: Scope) -> Act:
    """A request that changes what the engine does (pause, sleep, cache reset ...); its subject is the path."""
    by = Actor(who.key_id, who.role, who.tenant)
    return _from(HTTPConnection(scope), Act("engine.control", subject=scope["path"][:64], by=by))


def _from(request: HTTPConnection, act: Act) -> Act:
    """With where the request came from."""
    request_id = request.headers.get("x-request-id", "")
    act.request_id = request_id if _SPOKEN.fullmatch(request_id) else None
    act.source = request.client.host[:64] if request.client else None
    return act


def _says(request: Request, name: str) -> bool:
    return request.query_params.get(name, "").lower() in _TRUE
