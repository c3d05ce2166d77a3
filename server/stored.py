"""Stored answers: whose they are, and whether they may still be read.

An answer that was made in the background or stored is judged again when it is read, by the targets of that moment: what
was registered after it was made binds it too.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guard.context import RequestContext
from guard.errors import BadRequest, NotFound
from server import bodies, wire

Still = Callable[[RequestContext, Sequence[str]], Awaitable[bool]]
"""Whether the texts that a request was answered with may be read now; raises GuardUnavailable."""


class ResponseOwners:
    """Which request made which stored response; bounded, like the engine's own store it is gone with the process."""

    def __init__(self, size: int = 100_000) -> None:
        self._made: OrderedDict[str, RequestContext] = OrderedDict()
        self._size = size

    def claim(self, response_id: str, context: RequestContext) -> None:
        self._made[response_id] = context
        while len(self._made) > self._size:
            self._made.popitem(last=False)

    def find(self, response_id: str, tenant: str | None) -> RequestContext:
        """The request that made the response.

        Raises:
            NotFound: `tenant` did not make it; whether it exists for others is not told.
        """
        made = self._made.get(response_id)
        if made is None or made.tenant != tenant:
            raise NotFound(f"Response with id '{response_id}' not found.", param="response_id")
        return made


async def read_again(
    app: ASGIApp,
    scope: Scope,
    receive: Receive,
    send: Send,
    made: RequestContext,
    still: Still,
    *,
    stream: bool,
) -> None:
    """Let `app` answer a read of the stored response that the request `made`, and give of it what may be read.

    Raises:
        BadRequest: its events are asked for, which were judged by the targets of another moment.
        GuardUnavailable: it could not be judged.
    """
    if stream:
        if made.matched or made.broken or not await still(made, ()):
            raise BadRequest("This response is read without stream.", param="stream")
        await app(scope, receive, send)
        return
    messages: list[Message] = []

    async def keep(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, keep)
    raw = b"".join(m.get("body", b"") for m in messages if m["type"] == "http.response.body")
    start = next(m for m in messages if m["type"] == "http.response.start")
    body = _json(raw)
    if body is not None and body.get("output"):
        if not await still(made, tuple(bodies.strings(body["output"]))):
            body.update(output=[], status="incomplete", incomplete_details={"reason": wire.FILTERED})
            raw = json.dumps(body, ensure_ascii=False).encode()
        elif made.matched or made.broken:
            raw = wire.rewrite_body(raw, **wire.manner(made))
    headers = [(k, v) for k, v in start.get("headers", []) if k.lower() != b"content-length"]
    await send({**start, "headers": [*headers, (b"content-length", str(len(raw)).encode())]})
    await send({"type": "http.response.body", "body": raw})


def _json(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
