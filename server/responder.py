"""What the client of a generating route receives: vLLM's answer, with the verdict written into it.

The response start is held until the verdict is known, because the verdict can change status and headers. Clean
answers are passed on as they come. Matched ones are rewritten (`server.wire`): whole JSON bodies at their end,
streams event by event.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Send

from guard.context import RequestContext
from guard.errors import BadRequest, LetheError
from server import errors, wire

REQUEST_ID_LENGTH = 256
NO_STORE = (b"cache-control", b"no-store")
DECISION_ID = "x-lethe-decision-id"


class Responder:
    """The `send` that the application is given, for one request."""

    def __init__(
        self,
        send: Send,
        context: RequestContext,
        headers: Headers,
        *,
        generates: bool,
        clock: Callable[[], float],
    ) -> None:
        self._send = send
        self._clock = clock
        self._context = context
        self._request_headers = headers
        self._generates = generates
        self._start: Message | None = None
        self._held: list[Message] = []
        self._begun = False
        self._replaced = False
        self._tail = b""
        self.status = 0
        self.complete = False

    async def send(self, message: Message) -> None:
        """Take one ASGI message of the application."""
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            self._start = message
        elif self._begun:
            await self._pass(message)
        else:
            await self._hold(message)

    async def finish(self) -> None:
        """The application returned; answer in its place if it never did."""
        if not self._begun and not self._replaced and self._start is not None:
            await self._begin()

    async def fail(self, error: LetheError) -> None:
        """Answer with `error`, if no byte has left yet; otherwise the broken stream speaks for itself."""
        if not self._begun and not self._replaced:
            self._replaced = True
            self.status, self.complete = error.status, True
            await send_error(self._send, error, self._request_headers, self._id_header())

    async def _hold(self, message: Message) -> None:
        """Keep body messages until the verdict is known: a Responses stream speaks before it generates."""
        self._held.append(message)
        known = self._context.admissions or self._context.failure
        if known or not self._generates or not message.get("more_body", False):
            error = self._context.failure or self._refusal()
            if error is not None:
                await self.fail(error)
            elif not self._buffers() or not message.get("more_body", False):
                await self._begin()

    def _refusal(self) -> LetheError | None:
        """The 400 of the reply style `error`."""
        for admission in self._context.admissions.values():
            reply = admission.plan.reply
            if reply is not None and reply.style == "error":
                error = BadRequest(reply.text)
                error.code = wire.FILTERED
                return error
        return None

    def _buffers(self) -> bool:
        """Whether the whole body is needed before its first byte may leave: a matched JSON answer."""
        return self._rewrites() and not self._is_stream()

    def _rewrites(self) -> bool:
        return self._context.matched or self._context.broken or self._context.replaced

    def _is_stream(self) -> bool:
        return (
            Headers(raw=(self._start or {}).get("headers", []))
            .get("content-type", "")
            .startswith("text/event-stream")
        )

    async def _begin(self) -> None:
        assert self._start is not None
        self._begun = True
        held, self._held = self._held, []
        if self._buffers():
            raw = b"".join(m.get("body", b"") for m in held)
            held = [
                {
                    "type": "http.response.body",
                    "body": wire.rewrite_body(raw, **wire.manner(self._context)),
                }
            ]
        self.status = self._start["status"]
        start = {**self._start, "headers": list(self._start.get("headers", []))}
        headers = MutableHeaders(raw=start["headers"])
        if self._buffers():
            headers["content-length"] = str(len(held[0]["body"]))
        # On every answer: a header on matched ones alone would tell the client which they are.
        start["headers"].extend([NO_STORE] if self._generates else [])
        start["headers"].extend(self._id_header() + request_id_header(self._request_headers))
        await self._send(start)
        self._context.begun_at = self._clock()
        for message in held:
            await self._pass(message)

    async def _pass(self, message: Message) -> None:
        if self._rewrites() and self._is_stream():
            message = {
                **message,
                "body": self._rewritten(message.get("body", b""), message.get("more_body", False)),
            }
        self.complete = not message.get("more_body", False)
        await self._send(message)

    def _rewritten(self, chunk: bytes, more: bool) -> bytes:
        """Whole events only; an event that is not yet complete waits for its rest."""
        *events, self._tail = (self._tail + chunk).split(b"\n\n")
        out = b"".join(wire.rewrite_event(e, **wire.manner(self._context)) + b"\n\n" for e in events)
        if not more:
            out, self._tail = out + self._tail, b""
        return out

    def _id_header(self) -> list[tuple[bytes, bytes]]:
        return [(DECISION_ID.encode(), self._context.decision_id.encode())] if self._generates else []


def request_id(headers: Headers) -> str | None:
    """The client's `x-request-id`; None if it sent none that can stand in a header."""
    value = headers.get("x-request-id", "")
    return value if value.isascii() and 0 < len(value) <= REQUEST_ID_LENGTH else None


def request_id_header(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The client's `x-request-id`, to be echoed."""
    value = request_id(headers)
    return [(b"x-request-id", value.encode())] if value else []


async def send_error(
    send: Send, error: LetheError, headers: Headers, extra: list[tuple[bytes, bytes]] | None = None
) -> None:
    """A whole response that carries `error` in OpenAI's shape and may not be stored."""
    response = errors.response(error)
    own = [*response.raw_headers, NO_STORE, *(extra or ()), *request_id_header(headers)]
    await send({"type": "http.response.start", "status": response.status_code, "headers": own})
    await send({"type": "http.response.body", "body": response.body})
