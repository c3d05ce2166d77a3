"""The gate: the one ASGI middleware around vLLM's application and ours.

For every request: find its route, know who calls, read the body once, open the request's context, and let the
application answer through a `Responder`, which writes the guard's verdict into the response. Nothing reaches
vLLM that did not pass here.
"""

from __future__ import annotations

import ipaddress
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guard import context as request_context
from guard.context import RequestContext
from guard.errors import LetheError, NotFound, TooLarge, Unauthorized
from server import access, bodies, listener, tools
from server.auth import Permission, Principal
from server.door import Door
from server.limits import Lease
from server.responder import NO_STORE, Responder, request_id, request_id_header, send_error
from server.routes import Access, Route, find
from server.stored import ResponseOwners, Still, read_again
from server.tenancy import TenantHeader

DEMANDS = {
    Access.INFERENCE: Permission.INFER,
    Access.METRICS: Permission.METRICS,
    Access.CONTROL: Permission.ENGINE,
}


class Tracer(Protocol):
    """Who makes spans of requests (`server.tracing`)."""

    def begin(self, scope: Scope, context: RequestContext) -> Traced: ...


class Traced(Protocol):
    """The span of one request."""

    def carried(self, scope: Scope) -> Scope: ...

    def end(self, context: RequestContext, status: int, finished_at: float) -> None: ...


class Caller(Protocol):
    """Who calls, as far as the gate cares: the tenant, if it is one, and whose limits bind."""

    @property
    def tenant(self) -> str | None: ...

    @property
    def account(self) -> str | None: ...


@dataclass
class GateServices:
    """What the gate needs; the launcher puts one on `app.state.lethe` before the first request is served.

    `control` records that somebody changes what the engine does, before it is done; `admit` lets a caller in or raises
    RateLimited; `record` is given every judged request when it has ended, `failed` the error of one that ended before
    it had a context.
    """

    require: Callable[[str | None, Permission], Principal]
    tenants: TenantHeader
    control: Callable[[Principal, Scope], Awaitable[None]]
    admit: Callable[[Caller], Lease]
    record: Callable[[RequestContext, int, float], None]
    failed: Callable[[LetheError], None]
    open_inference: bool
    two_sides: bool  # admin API and the like on a port of their own
    max_body_bytes: int
    max_n: int
    judge_tools: tools.Judge
    still: Still
    clock: Callable[[], float] = time.time
    owners: ResponseOwners = field(default_factory=ResponseOwners)
    tracing: Tracer | None = None
    door: Door = field(default_factory=Door)


class Gate:
    """Named in vLLM's `--middleware`, which builds it with the application only."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            await access.logged(self._serve, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        services: GateServices = scope["app"].state.lethe
        headers = Headers(scope=scope)
        try:
            route = find(scope["path"])
            if route is None or (services.two_sides and not listener.serves(route, scope)):
                raise NotFound(f"There is no route {scope['method']} {scope['path']}.")
            caller = self._authorise(services, route, scope, headers)
            scope[access.TENANT] = caller.tenant
            if "{response_id}" in route.path:
                made = services.owners.find(scope["path"].split("/")[3], caller.tenant)
                if scope["method"] == "GET":
                    stream = QueryParams(scope["query_string"]).get("stream", "false").lower()
                    await read_again(
                        self.app,
                        scope,
                        receive,
                        _echoing(send, headers, NO_STORE),
                        made,
                        services.still,
                        stream=stream not in ("false", "0", "no", "off", ""),
                    )
                    return
            if scope["method"] == "POST" and route.access is Access.INFERENCE:
                with services.door.passing():
                    await self._infer(services, route, caller, scope, receive, send)
                return
            if route.access is Access.CONTROL and scope["method"] != "GET" and isinstance(caller, Principal):
                await services.control(caller, scope)
            bounded = _bounded(receive, services.max_body_bytes, headers)
            await self.app(scope, bounded, _echoing(send, headers))
        except LetheError as error:
            services.failed(error)
            await send_error(send, error, headers)

    def _authorise(self, services: GateServices, route: Route, scope: Scope, headers: Headers) -> Caller:
        """Who calls; a nameless caller where nobody needs to be known.

        Raises:
            Unauthorized, Forbidden: no key, an unknown one, or one whose role may not do this.
        """
        demand = DEMANDS.get(route.access)
        if route.access not in (Access.INFERENCE, Access.PUBLIC):
            services.tenants.demand_none(headers)
        if demand is None or scope["method"] == "OPTIONS":
            return Nobody()  # public, or the admin API, which checks the role itself
        key = headers.get("authorization") or _anthropic_key(headers)
        if route.access is Access.METRICS and key is None and _loopback(scope):
            return Nobody()
        if route.access is not Access.INFERENCE:
            return services.require(key, demand)
        known = self._known(services, key, demand)
        tenant = services.tenants.speaking(known, scope, headers)
        return replace(known, tenant=tenant) if known is not None else Nobody()

    @staticmethod
    def _known(services: GateServices, key: str | None, demand: Permission) -> Principal | None:
        """The caller of an inference route; None: an open server does not know it."""
        try:  # clients of an open server send a placeholder key; a real one still names its tenant
            return services.require(key, demand)
        except Unauthorized:
            if services.open_inference:
                return None
            raise

    async def _infer(
        self,
        services: GateServices,
        route: Route,
        caller: Caller,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        headers = Headers(scope=scope)
        lease = services.admit(caller)
        send = _adding(send, lease.headers)
        context = RequestContext(uuid.uuid4().hex, route.path, services.clock(), tenant=caller.tenant)
        context.request_id, context.spend = request_id(headers), lease.spend
        traced = services.tracing.begin(scope, context) if services.tracing and route.generates else None
        if traced is not None:
            scope[access.TRACE], scope = context.trace_id, traced.carried(scope)
        responder = Responder(send, context, headers, generates=route.generates, clock=services.clock)
        token = request_context.enter(context)
        try:
            raw = await _read(receive, services.max_body_bytes, headers)
            if raw or route.generates:
                raw = await self._understand(services, route, context, raw)
            watching = _watching(receive, context, responder)
            await self.app(_with_length(scope, raw), _replaying(raw, watching), responder.send)
            await responder.finish()
        except LetheError as error:
            context.failure = error
            await responder.fail(error)
        except Exception:
            # vLLM's Responses stream wraps what the engine client raised; anything else is not ours to answer.
            if context.failure is None:
                raise
            await responder.fail(context.failure)
        finally:
            lease.close()
            request_context.leave(token)
            failed = context.failure is not None and context.failure.status >= 500
            if traced is not None:
                traced.end(context, responder.status, services.clock())
            if context.admissions or context.withheld or failed:
                services.record(context, responder.status, services.clock())

    async def _understand(
        self, services: GateServices, route: Route, context: RequestContext, raw: bytes
    ) -> bytes:
        """Read the body into the context; give back the bytes that vLLM shall see."""
        sent = bodies.parse(raw)
        facts = bodies.facts(sent, max_n=services.max_n)
        context.model, context.stream = facts.model, facts.stream
        body = await tools.withhold(sent, context, services.judge_tools)
        if body is not sent:
            facts = bodies.facts(body, max_n=services.max_n)
        context.messages, context.asides, context.must_parse = facts.messages, facts.asides, facts.must_parse
        context.tools = facts.tools
        if route.path != "/v1/responses":
            return raw if body is sent else json.dumps(body).encode()
        if isinstance(body.get("previous_response_id"), str):
            services.owners.find(body["previous_response_id"], context.tenant)
        # The id is ours, so that it is claimed before it exists and cannot be chosen to overwrite another's.
        body["request_id"] = f"resp_{uuid.uuid4().hex}"
        services.owners.claim(body["request_id"], context)
        return json.dumps(body).encode()


@dataclass(frozen=True)
class Nobody:
    """A caller whom the server does not need to know. All of them share one account."""

    tenant: str | None = None
    account: str | None = "anonymous"


def _anthropic_key(headers: Headers) -> str | None:
    key = headers.get("x-api-key")
    return f"Bearer {key}" if key else None


def _loopback(scope: Scope) -> bool:
    try:
        return ipaddress.ip_address((scope.get("client") or ("",))[0]).is_loopback
    except ValueError:
        return False


def _check_length(headers: Headers, limit: int) -> None:
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise TooLarge(f"The request body has {length} bytes; this server takes at most {limit}.")


async def _read(receive: Receive, limit: int, headers: Headers) -> bytes:
    """The whole body; raises TooLarge beyond `limit` bytes, announced or not."""
    _check_length(headers, limit)
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        chunks.append(message.get("body", b""))
        size, more = size + len(chunks[-1]), message.get("more_body", False)
        if size > limit:
            raise TooLarge(f"The request body has more than {limit} bytes, the most that this server takes.")
    return b"".join(chunks)


def _bounded(receive: Receive, limit: int, headers: Headers) -> Receive:
    _check_length(headers, limit)
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise TooLarge(f"The request body has more than {limit} bytes, the most that this server takes.")
        return message

    return bounded


def _watching(receive: Receive, context: RequestContext, responder: Responder) -> Receive:
    """Notes when the client goes away before its answer is complete: the record of a matched request that nobody waited
    for shows no edits then, and says why."""

    async def watched() -> Message:
        message = await receive()
        if message["type"] == "http.disconnect" and not responder.complete:
            context.events.append({"event": "left"})
        return message

    return watched


def _replaying(raw: bytes, receive: Receive) -> Receive:
    """The body once, then whatever the connection says, so that a disconnect is still seen."""
    pending: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _with_length(scope: Scope, raw: bytes) -> Scope:
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    kept = [(k, v) for k, v in headers if k.lower() not in (b"content-length", b"transfer-encoding")]
    return {**scope, "headers": [*kept, (b"content-length", str(len(raw)).encode())]}


def _adding(send: Send, headers: Mapping[str, str]) -> Send:
    """The limits of the caller, on every answer to it, matched or not."""
    own = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *own]}
        await send(message)

    return add


def _echoing(send: Send, headers: Headers, *more: tuple[bytes, bytes]) -> Send:
    """Echo `x-request-id` on routes that do not generate, with `more` headers."""

    async def echo(message: Message) -> None:
        if message["type"] == "http.response.start":
            own = [*message.get("headers", []), *more, *request_id_header(headers)]
            message = {**message, "headers": own}
        await send(message)

    return echo
