"""The second listener, `server.admin_port`: the same application, seen from the operators' side.

With it the inference port has no admin API, console, metrics or engine control, and the admin port has no inference:
each answers 404 to what is on the other side. Probes answer on both.
"""

from __future__ import annotations

import asyncio
import socket
from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from guard.errors import StartupError
from server.routes import Access, Route

SIDE = "lethe.side"
ADMIN = "admin"
_OPERATORS = frozenset({Access.ADMIN, Access.CONTROL, Access.METRICS})
_STOP_SECONDS = 5


def serves(route: Route, scope: Scope) -> bool:
    """Whether the listener that a request came by has this route, where there are two."""
    operators = route.access in _OPERATORS or route.path.startswith("/console")
    if route.access is Access.PUBLIC and not operators:
        return True
    return operators == (scope.get(SIDE) == ADMIN)


class AdminSide:
    """The application as the admin port shows it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, SIDE: ADMIN}, receive, send)


def bind(host: str, port: int) -> socket.socket:
    """Before the engine starts, so that a taken port is found out at once.

    Raises:
        StartupError: it cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise StartupError(f"Cannot listen on {host}:{port} (server.admin_port): {error.strerror}.") from None


@asynccontextmanager
async def listening(app: ASGIApp, sock: socket.socket, args: Namespace) -> AsyncIterator[None]:
    """Serve the admin side on `sock` for the length of the block, with the TLS and limits of the inference port."""
    config = uvicorn.Config(
        AdminSide(app),
        lifespan="off",
        log_config=None,  # as this process is set up already
        access_log=False,  # its lines hold raw paths; ours are written by the gate
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        ssl_ciphers=args.ssl_ciphers,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve([sock]))
    try:
        yield
    finally:
        server.should_exit = True
        with suppress(asyncio.CancelledError):
            await task


class _Server(uvicorn.Server):
    """Signals are the inference listener's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
