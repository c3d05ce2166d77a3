"""What all admin routes share: errors in one shape, the caller's permission, strict JSON bodies, cursors."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from functools import cache
from typing import Any, TypeVar

from fastapi import Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.params import Depends
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from guard import trail
from guard.errors import BadRequest, LetheError
from guard.specs import parse_json, problems
from guard.store.audit import Outcome
from guard.trail import Act, Actor
from server import errors
from server.admin import acts
from server.admin.schemas import ErrorAnswer
from server.admin.services import Services
from server.auth import Permission, Principal

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=BaseModel)
Handler = Callable[[Request], Coroutine[Any, Any, Response]]

LIMIT = 100
MAX_LIMIT = 1_000
_MEANINGS = {
    400: "The request cannot be taken; `param` names the field.",
    401: "No key, or one that is not known.",
    403: "The key's role may not do this.",
    404: "There is no such thing.",
    409: "It exists already.",
    412: "`If-Match` names another version.",
    422: "The target would fire on too many background prompts, or the artifact does not fit or has no effect.",
    503: "The guard or its store does not answer; safe to retry.",
}


class AdminRoute(APIRoute):
    """Answers all errors itself, so that the application around it may keep its own handlers."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                response = await handle(request)
            except ClientDisconnect:
                response = errors.response(BadRequest("The request ended before its body was complete."))
            except Exception as error:
                response = errors.response(error)
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return answer


def recorded(services: Services) -> type[AdminRoute]:
    """The class of routes whose acts (`server.admin.acts`) go into the audit trail."""

    class RecordedRoute(AdminRoute):
        def get_route_handler(self) -> Handler:
            handle = super().get_route_handler()

            async def answer(request: Request) -> Response:
                act = acts.of(request, self.path)
                with trail.following(act):
                    response = await handle(request)
                if act is not None and act.by is not None:
                    response = await _recorded(services, act, response)
                return response

            return answer

    return RecordedRoute


async def _recorded(services: Services, act: Act, response: Response) -> Response:
    """What failed has changed nothing, or less than it should: its answer stands, whether the trail can be written or
    not."""
    try:
        await conclude(services, act, response.status_code)
    except LetheError as error:
        return response if response.status_code >= 400 else errors.response(error)
    return response


async def conclude(services: Services, act: Act, status: int) -> None:
    """What the store has recorded with its write is done; the rest is recorded now, with the status of the answer.

    Raises:
        GuardUnavailable: the trail cannot be written, which the log says too.
    """
    if act.written and status < 400:
        return
    outcome: Outcome = "done" if status < 400 else "refused" if status < 500 else "failed"
    try:
        await run_in_threadpool(services.audit.add, act, outcome, status)
    except LetheError as error:
        logger.error("the audit trail could not be written: %s", error.message)
        raise


async def begin(services: Services, subject: str) -> None:
    """Record the act before it is done: what it changes is not in the store, so no transaction could hold both.

    Raises:
        GuardUnavailable: it cannot be recorded, and must not be done.
    """
    act = trail.current()
    if act is not None:
        act.subject = subject[:64]
        await run_in_threadpool(services.audit.add, act, "begun")


def allowed(services: Services, permission: Permission) -> Any:
    """A dependency that gives the caller, or ends the request when it may not do this."""

    async def principal(authorization: str | None = Header(None, include_in_schema=False)) -> Principal:
        try:
            who = services.authenticator.require(authorization, permission)
        except LetheError as error:
            services.denied(error)
            raise
        if (act := trail.current()) is not None:
            act.by = Actor(who.key_id, who.role, who.tenant)
        return who

    return Depends(principal)


async def json_body(request: Request) -> dict[str, Any]:
    """The body as a JSON object. A dependency, so that it is read after the caller is known."""
    return parse_json(await request.body())


def validated(model: type[Model], body: dict[str, Any]) -> Model:
    """Raises BadRequest that names the first wrong field in one sentence."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        field, message = next(problems(error, model))
        raise BadRequest(message, param=field or None) from None


async def settled(
    services: Services, content: dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The answer to a write: 202 with `laggards` where other servers of the store do not have it in force yet."""
    laggards = await services.settled()
    if laggards:
        status, content = 202, {**content, "laggards": [asdict(one) for one in laggards]}
    return JSONResponse(content, status, headers)


def answers(*statuses: int, **models: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """For OpenAPI: `_200=Model` what is answered, `statuses` which errors beside 400, 401, 403 and 503."""
    documented: dict[int | str, dict[str, Any]] = {
        status: _content(ErrorAnswer, _MEANINGS[status]) for status in (400, 401, 403, 503, *statuses)
    }
    for status, model in models.items():
        documented[int(status[1:])] = _content(model, (model.__doc__ or model.__name__).split("\n")[0])
    return documented


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """For OpenAPI: the schema of a body that the route reads itself."""
    return {"requestBody": {"required": True, **_content(model, "A JSON object.")}}


def encode_cursor(value: str | int | None) -> str | None:
    """Opaque to clients, so that its content can change."""
    return None if value is None else base64.urlsafe_b64encode(str(value).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> str | None:
    if cursor is None:
        return None
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise BadRequest("The cursor is not one that this server gave.", param="cursor") from None


def _content(model: type[BaseModel], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _schema(model)}}}


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    return _inline(schema, schema.get("$defs", {}))


def _inline(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema with its references replaced by what they name: OpenAPI resolves them from elsewhere."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inline(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
        return {key: _inline(value, definitions) for key, value in schema.items() if key != "$defs"}
    return [_inline(item, definitions) for item in schema] if isinstance(schema, list) else schema
