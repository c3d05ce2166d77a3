"""What every page of the console passes: the session, its key as it stands now, the role, the form's token, headers.

A page is a function of a `Visit`. It is not called before all of that is in order, and it has no powers but those of
the key that logged in: it calls the services of the admin API with that key's role and tenant, and what it changes goes
into the same audit trail.
"""

from __future__ import annotations

import ipaddress
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from guard import trail
from guard.config import ConsoleSettings
from guard.errors import BadRequest, Forbidden, LetheError, Unauthorized
from guard.trail import Actor
from server import errors
from server.admin import acts
from server.admin.route import conclude
from server.admin.services import Services
from server.auth import Permission, Principal
from server.console import show
from server.console.sessions import Attempts, Sessions, form_token, is_form_token
from server.playground import Playground

logger = logging.getLogger(__name__)

PREFIX = "/console"
COOKIE = "lethe_console"
FOLDER = Path(__file__).parent
ENTRY = Permission.READ_STATUS  # whoever may not even see the status has no business here
FIELDS, FILES = 200, 1
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: browsers then send `Origin: null` with the console's own forms. No other host is told.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def policy(**changed: str) -> str:
    """The content security policy, with some directives `changed`."""
    directives = {**_POLICY, **{name.replace("_", "-"): value for name, value in changed.items()}}
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(show.FILTERS)
    return made


@dataclass(frozen=True)
class Desk:
    """What pages are made of. `reports` is the folder of evaluation reports."""

    services: Services
    playground: Playground
    reports: Path
    settings: ConsoleSettings
    sessions: Sessions
    attempts: Attempts = field(default_factory=Attempts)
    templates: Environment = field(default_factory=templates)

    def origin(self, request: Request) -> str:
        """The console's own address, as browsers name it."""
        return self.settings.origin or f"{request.url.scheme}://{request.url.netloc}"

    def render(self, name: str, code: int = 200, /, **values: Any) -> Response:
        return HTMLResponse(self.templates.get_template(name).render(**values), code)

    def visitor(self, request: Request) -> Visit | None:
        """Who comes, None without a session.

        Raises:
            Unauthorized: there was one, and its key was revoked or has expired, or may not come here any more.
        """
        session_id = request.cookies.get(COOKIE, "")
        session = self.sessions.find(session_id, active="x-lethe-live" not in request.headers)
        if session is None:
            return None
        try:
            who = self.services.authenticator.standing(session.key_id)
            if not who.may(ENTRY):
                raise Unauthorized("This key may not use the console any more.")
        except Unauthorized:
            self.sessions.end(session_id)
            raise
        return Visit(self, request, who, session_id)


@dataclass(frozen=True)
class Visit:
    """One request of somebody who is logged in and may make it; `form` is what they sent, in order with its token."""

    desk: Desk
    request: Request
    who: Principal
    session_id: str
    form: FormData = field(default_factory=FormData)

    @property
    def services(self) -> Services:
        return self.desk.services

    @property
    def token(self) -> str:
        return form_token(self.session_id)

    def may(self, name: str) -> bool:
        """For templates: whether the role has this permission."""
        return self.who.may(Permission(name))

    @property
    def whole(self) -> bool:
        """Whether the key is confined to no tenant."""
        return self.who.tenant is None

    def part(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])

    def asked(self, name: str) -> str | None:
        """A parameter of the query, None where it is empty."""
        return self.request.query_params.get(name, "").strip() or None

    def given(self, name: str) -> str:
        """A field of the form; lines end as they do elsewhere."""
        value = self.form.get(name, "")
        return value.replace("\r\n", "\n") if isinstance(value, str) else ""

    async def file(self, name: str) -> bytes:
        """A file of the form."""
        value = self.form.get(name)
        return await value.read() if isinstance(value, UploadFile) else b""

    def page(self, template: str, code: int = 200, /, **values: Any) -> Response:
        """`here` is the place in the menu."""
        return self.desk.render(template, code, visit=self, **values)

    def go(self, path: str, **query: str) -> Response:
        """To another page, after something was done."""
        return RedirectResponse(PREFIX + path + (f"?{urlencode(query)}" if query else ""), 303)

    async def done(self, path: str, what: str = "") -> Response:
        """To another page, after something was written; it says so, and whether other servers do not have it yet."""
        lagging = {"lagging": "yes"} if await self.services.settled() else {}
        return self.go(path, **({"done": what} if what else {}), **lagging)

    def link(self, **changed: str | None) -> str:
        """This page with other parameters, the rest as they are."""
        query = {**self.request.query_params, **changed}
        return "?" + urlencode({name: value for name, value in query.items() if value})


Handler = Callable[[Visit], Awaitable[Response]]


@dataclass(frozen=True)
class Page:
    """`whole`: not for keys that belong to a tenant. `permission` None: for everybody who may log in. `act` gives what
    the audit trail calls it, None where this form changes nothing."""

    method: str
    path: str
    handle: Handler
    permission: Permission | None
    whole: bool = False
    act: Callable[[Visit], str | None] = lambda visit: None


def endpoint(desk: Desk, pages: Mapping[str, Page]) -> Callable[[Request], Awaitable[Response]]:
    """One path's pages, by method."""

    async def serve(request: Request) -> Response:
        visit = desk.visitor(request)
        if visit is None:
            return RedirectResponse(f"{PREFIX}/login", 303)
        page = pages["GET" if request.method == "HEAD" else request.method]
        demand_right(page, visit)
        if page.method == "GET":
            return await page.handle(visit)
        demand_origin(desk, request)
        async with request.form(max_files=FILES, max_fields=FIELDS) as form:
            if not is_form_token(visit.session_id, str(form.get("token", ""))):
                raise Forbidden("This form is not of your session; load the page again.")
            return await recorded(page, Visit(desk, request, visit.who, visit.session_id, form))

    return guarded(desk, serve)


def demand_right(page: Page, visit: Visit) -> None:
    """Raises Forbidden: this key may not do this."""
    told = None
    if page.permission is not None and not visit.who.may(page.permission):
        told = f"A key with the role '{visit.who.role}' may not do this."
    elif page.whole and not visit.whole:
        told = "A key that belongs to a tenant may not do this."
    if told is not None:
        error = Forbidden(told)
        visit.services.denied(error)
        raise error


async def recorded(page: Page, visit: Visit) -> Response:
    """What the page answers to a form. An act goes into the audit trail, whatever came of it, as the admin API's do."""
    name = page.act(visit)
    if name is None:
        return await page.handle(visit)
    act = acts.act(name, visit.request, of_target=page.path.startswith("/targets/"))
    act.by = Actor(visit.who.key_id, visit.who.role, visit.who.tenant)
    with trail.following(act):
        try:
            response = await page.handle(visit)
        except Exception as error:
            response = failure(visit.desk, visit.request, error)
    try:
        await conclude(visit.services, act, response.status_code)
    except LetheError as error:
        return response if response.status_code >= 400 else failure(visit.desk, visit.request, error)
    return response


def guarded(
    desk: Desk, serve: Callable[[Request], Awaitable[Response]]
) -> Callable[[Request], Awaitable[Response]]:
    """`serve` with its errors as pages, and under the headers of every page."""

    async def answer(request: Request) -> Response:
        try:
            response = await serve(request)
        except Unauthorized as error:
            response = desk.render("login.html", 401, visit=None, told=error.message)
        except Exception as error:
            response = failure(desk, request, error)
        response.headers.setdefault("Content-Security-Policy", policy())
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return answer


def failure(desk: Desk, request: Request, error: Exception) -> Response:
    """The page that tells what went wrong. Only what is ours to say is said; the rest goes to the log."""
    status, told = 500, errors.UNEXPECTED
    if isinstance(error, LetheError):
        status, told = error.status, error.message
    elif isinstance(error, HTTPException):
        status, told = error.status_code, str(error.detail)
    elif isinstance(error, ClientDisconnect):
        status, told = 400, "The request ended before its body was complete."
    else:
        logger.error("unexpected error", exc_info=error)
    try:
        visit = desk.visitor(request)
    except Unauthorized:
        visit = None
    return desk.render("error.html", status, visit=visit, here="", status=status, told=told)


def demand_origin(desk: Desk, request: Request) -> None:
    """Raises Forbidden: the form was not sent by a page of this console. Browsers always say which page sent it."""
    if request.headers.get("origin") != desk.origin(request):
        raise Forbidden("This form was not sent by a page of this console.")


async def show_login(desk: Desk, request: Request) -> Response:
    return desk.render("login.html", visit=None, told=None)


async def log_in(desk: Desk, request: Request) -> Response:
    """From a key to a session. Wrong keys, and those that may not come here, count as failures of the client."""
    demand_origin(desk, request)
    client = client_of(request)
    if (seconds := desk.attempts.wait(client)) > 0:
        told = f"Too many keys were wrong; wait {math.ceil(seconds)} seconds."
        response = desk.render("login.html", 429, visit=None, told=told)
        response.headers["Retry-After"] = str(math.ceil(seconds))
        return response
    async with request.form(max_files=0, max_fields=FIELDS) as form:
        key = str(form.get("key", "")).strip()
    try:
        who = desk.services.authenticator.require(f"Bearer {key}" if key else None, ENTRY)
    except LetheError as error:
        desk.attempts.failed(client)
        desk.services.denied(error)
        told = "Type a key." if not key else error.message
        return desk.render("login.html", error.status, visit=None, told=told)
    desk.sessions.end(request.cookies.get(COOKIE, ""))
    response = RedirectResponse(PREFIX, 303)
    response.set_cookie(
        COOKIE,
        desk.sessions.begin(who.key_id),
        path=PREFIX,
        secure=desk.origin(request).startswith("https:"),
        httponly=True,
        samesite="strict",
    )
    return response


async def log_out(visit: Visit) -> Response:
    visit.desk.sessions.end(visit.session_id)
    response = visit.go("/login")
    response.delete_cookie(COOKIE, path=PREFIX, httponly=True, samesite="strict")
    return response


def client_of(request: Request) -> str:
    """By what a client is known who has no key: its address, of IPv6 the network that one customer has."""
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else host


def number(text: str | None, name: str, default: int, most: int) -> int:
    """A whole number of the query from 1 to `most`."""
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
        raise BadRequest(f"{name} must be a number from 1 to {most}.", param=name)
    return int(text)
