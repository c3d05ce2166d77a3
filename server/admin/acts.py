"""Which admin requests change something, and are therefore recorded in the audit trail."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.requests import Request

from guard.trail import Act

ACTS: Mapping[tuple[str, str], str] = {
    ("POST", "/targets"): "targets.create",
    ("PUT", "/targets/{id}"): "targets.put",
    ("PATCH", "/targets/{id}"): "targets.patch",
    ("DELETE", "/targets/{id}"): "targets.delete",
    ("POST", "/targets/import"): "targets.import",
    ("POST", "/artifacts"): "artifacts.load",
    ("DELETE", "/artifacts/{digest}"): "artifacts.remove",
    ("POST", "/jobs"): "jobs.create",
    ("DELETE", "/jobs/{id}"): "jobs.end",
    ("POST", "/keys"): "keys.create",
    ("DELETE", "/keys/{id}"): "keys.revoke",
}
ASKING = frozenset({("POST", "/targets/validate"), ("POST", "/check"), ("POST", "/score")})
"""Requests that change nothing although they are sent with POST."""

_PURGE, _TRUE = "targets.purge", ("true", "t", "yes", "y", "on", "1")
_SPOKEN = re.compile(
    r"[A-Za-z0-9._:-]{1,128}"
)  # an id of a request as gateways make them, and not somebody's words


def of(request: Request, path: str) -> Act | None:
    """The act that a request for the route `path` is, or None: it changes nothing."""
    action = ACTS.get((request.method, path.removeprefix("/admin/v1")))
    if action is None:
        return None
    if action == "targets.delete" and request.query_params.get("purge", "").lower() in _TRUE:
        action = _PURGE
    about = next(iter(request.path_params.values()), None)
    request_id = request.headers.get("x-request-id", "")
    return Act(
        action,
        target=about if action.startswith("targets.") else None,
        subject=None if about is None or action.startswith("targets.") else about[:64],
        request_id=request_id if _SPOKEN.fullmatch(request_id) else None,
        source=request.client.host[:64] if request.client else None,
    )
