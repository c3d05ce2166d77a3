"""The admin API as the command line calls it; every failure is one sentence that says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import click

from guard.errors import LetheError

if TYPE_CHECKING:
    import httpx

PREFIX = "/admin/v1"
SECONDS = 120.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Failure(LetheError):
    """The server cannot be asked, or said no."""


class Unreachable(Failure):
    """No server answers there."""


@dataclass(frozen=True)
class Client:
    """`transport` replaces the network, for those who have the application at hand."""

    server: str
    key: str | None
    transport: httpx.BaseTransport | None = None

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request to the admin API.

        Raises:
            Failure: anything but a good answer.
        """
        import httpx

        url = urlsplit(self.server)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise Failure(
                f"'{self.server}' is not the address of a server; give one like http://127.0.0.1:8000."
            )
        try:
            with httpx.Client(
                base_url=self.server.rstrip("/") + PREFIX,
                headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
                timeout=SECONDS,
                transport=self.transport,
                trust_env=url.hostname not in _LOOPBACK,  # a proxy is of no use on the way to this machine
            ) as client:
                response = client.request(method, path, **options)
        except httpx.TimeoutException:
            raise Failure(
                f"{self.server} did not answer within {SECONDS:.0f} seconds; look at its log."
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise Unreachable(self._unreachable(error)) from None
        if response.status_code == 202:
            names = ", ".join(one["name"] for one in response.json()["laggards"])
            click.echo(f"Written, but not in force yet at: {names}", err=True)
        if response.is_success:
            return response
        raise Failure(self._refused(response))

    def json(self, method: str, path: str, **options: Any) -> Any:
        response = self.call(method, path, **options)
        try:
            return response.json()
        except ValueError:
            raise Failure(f"{self.server} does not answer like a Lethe server; check --server.") from None

    def pages(self, path: str, params: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """All objects of a list, page after page."""
        cursor: str | None = None
        while True:
            page = self.json("GET", path, params={**params, **({"cursor": cursor} if cursor else {})})
            yield from page["data"]
            cursor = page.get("next_cursor")
            if not cursor:
                return

    def _unreachable(self, error: Exception) -> str:
        if isinstance(error, UnicodeError):
            return "The key holds characters that no key has; check LETHE_ADMIN_KEY."
        return (
            f"No server answers at {self.server}; start one with `lethe serve`, or name it with --server or "
            "LETHE_SERVER."
        )

    def _refused(self, response: httpx.Response) -> str:
        message = _message(response)
        if response.status_code == 401:
            if not self.key:
                return "The server asks for a key; set LETHE_ADMIN_KEY or give --key."
            return "The server does not know this key; set LETHE_ADMIN_KEY to a key that it does."
        if response.status_code == 403:
            return f"{message} Use a key with another role."
        if response.status_code == 404 and not message:
            return f"{self.server} has no admin API; check --server."
        if response.status_code == 412:
            return "The target was changed in between; look at it with `lethe targets show` and repeat."
        return message or f"{self.server} answered {response.status_code}; look at its log."


def connect(server: str, key: str | None) -> Client:
    """The client of a command; whoever invokes the command may give its transport as the context's object."""
    return Client(server, key, click.get_current_context().find_root().obj)


def path_of(target_id: str) -> str:
    return f"/targets/{quote(target_id, safe='')}"


def show(value: Any) -> str:
    """JSON as people read it."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
