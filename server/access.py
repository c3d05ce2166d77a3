"""One line in the log for each request, in the place of uvicorn's, whose paths hold what clients write into them."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from guard.logs import FIELDS, serving
from server.responder import DECISION_ID, request_id
from server.routes import find

log = logging.getLogger("lethe.access")

PROBES = ("/livez", "/readyz", "/health", "/ping", "/metrics", "/metrics/")
TENANT = "lethe.tenant"
TRACE = "lethe.trace_id"
"""Where the gate notes in the scope whose request it is and what trace it belongs to, as soon as it knows."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
CLOSED = 499  # by the client, before there was an answer
UNKNOWN = "-"

Serve = Callable[[Scope, Receive, Send], Awaitable[None]]


async def logged(serve: Serve, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve the request, and say what became of it: method, route template, status, time, tenant, decision."""
    started, status, decision = time.perf_counter(), CLOSED, None
    asked = request_id(Headers(scope=scope))

    async def watched(message: Message) -> None:
        nonlocal status, decision
        if message["type"] == "http.response.start":
            status = message["status"]
            decision = Headers(raw=message.get("headers", [])).get(DECISION_ID)
        await send(message)

    try:
        with serving(request_id=asked):
            await serve(scope, receive, watched)
    except Exception:
        status = 500 if status == CLOSED else status
        raise
    finally:
        _line(scope, asked, status, decision, (time.perf_counter() - started) * 1000)


def _line(scope: Scope, asked: str | None, status: int, decision: str | None, duration_ms: float) -> None:
    route = find(scope["path"])
    path = route.path if route else UNKNOWN
    level = logging.DEBUG if path in PROBES and status < 400 else logging.INFO
    if not log.isEnabledFor(level):
        return
    method = scope["method"] if scope["method"] in METHODS else UNKNOWN
    fields = {
        "method": method, "route": path, "status": status, "duration_ms": round(duration_ms, 1),
        "tenant": scope.get(TENANT), "decision_id": decision, "request_id": asked,
        "trace_id": scope.get(TRACE),
    }  # fmt: skip
    log.log(level, "%s %s %d %.1f ms", method, path, status, duration_ms, extra={FIELDS: fields})
