"""Every error in OpenAI's shape, from one place: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from guard.errors import LetheError

logger = logging.getLogger(__name__)

_KINDS = {401: "authentication_error", 403: "permission_error"}
_CODES = {401: "invalid_api_key", 403: "permission_denied", 404: "not_found", 405: "method_not_allowed"}
UNEXPECTED = "The server failed on this request; its log says why."


def body(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def response(error: Exception) -> JSONResponse:
    """What the client gets for `error`. Only what is ours to say is said; the rest goes to the log."""
    if isinstance(error, LetheError):
        content = body(error.message, error.kind, error.code, error.param)
        # Details, such as the rate of a refused target, stand beside the four fields and never replace them.
        content["error"] = {**error.details, **content["error"]}
        return JSONResponse(content, error.status, headers={**_headers(error.status), **error.headers})
    if isinstance(error, RequestValidationError):
        param, message = _invalid(error)
        return JSONResponse(body(message, "invalid_request_error", "bad_request", param), 400)
    if isinstance(error, HTTPException):
        kind = _KINDS.get(
            error.status_code, "server_error" if error.status_code >= 500 else "invalid_request_error"
        )
        code = _CODES.get(error.status_code, "bad_request" if error.status_code < 500 else "internal_error")
        return JSONResponse(body(str(error.detail), kind, code), error.status_code, headers=error.headers)
    logger.error("unexpected error", exc_info=error)
    return JSONResponse(body(UNEXPECTED, "server_error", "internal_error"), 500)


def install(app: FastAPI) -> None:
    """Answer all errors of an application in this shape."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return response(error)

    for kind in (LetheError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, handle)


def _headers(status: int) -> Mapping[str, str]:
    """401 says how to come in, 503 when to try again."""
    return {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status, {})


def _invalid(error: RequestValidationError) -> tuple[str | None, str]:
    """(field, one plain sentence) for the first thing that is wrong with a request."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or None
    if first["type"] == "json_invalid":
        return None, "The body is not valid JSON."
    if first["type"] == "missing":
        return where, f"{where or 'A body'} is required."
    if first["type"] == "extra_forbidden":
        return where, f"There is no field '{where}'."
    message = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    return where, f"{where + ': ' if where else ''}{message[:1].lower()}{message[1:]}."
