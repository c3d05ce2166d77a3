"""The tenant that a gateway names in a signed header, for gateways that hold one key for all their tenants.

`TENANT;SECONDS;SIGNATURE`: the tenant percent-encoded, the time in seconds since the epoch, and the HMAC-SHA256 in hex
of method, path, time and tenant, one to a line, under the secret that gateway and server share. It is good for
`max_age` seconds, for that method and path alone, and beside a key that may speak for tenants. What is not so is
refused: who takes a header for granted that this server does not heed would mix up tenants.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable
from urllib.parse import quote, unquote

from starlette.datastructures import Headers
from starlette.types import Scope

from guard.config import GatewaySettings
from guard.errors import BadRequest, Forbidden, Unauthorized
from server.auth import Principal

TENANT = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
_FORM = re.compile(r"([^;\s]{1,1200});([0-9]{1,12});([0-9a-f]{64})")
INVALID = "The signed tenant is not valid for this request, or not any more."


class TenantHeader:
    """`clock` gives seconds since the epoch."""

    def __init__(self, settings: GatewaySettings, clock: Callable[[], float] = time.time) -> None:
        self._name = settings.header
        self._secret = settings.secret.get_secret_value().encode() if settings.secret else None
        self._max_age = settings.max_age
        self._clock = clock

    def demand_none(self, headers: Headers) -> None:
        """Raises BadRequest: the header was sent where no tenant is taken from it."""
        if headers.get(self._name) is not None:
            raise BadRequest(
                f"This server takes no tenant from the header {self._name} here; leave it out.",
                param=self._name,
            )

    def speaking(self, principal: Principal | None, scope: Scope, headers: Headers) -> str | None:
        """The tenant that the request is for.

        Raises:
            BadRequest: the header was sent to a server that takes none, or is missing beside a key that needs it.
            Forbidden: the caller may not speak for tenants.
            Unauthorized: it is not signed for this request, or too old.
        """
        if self._secret is None:
            self.demand_none(headers)
        sent = headers.getlist(self._name)
        if principal is None or not principal.speaks:
            if sent:
                raise Forbidden("This key may not speak for tenants.", param=self._name)
            return principal.tenant if principal else None
        if self._secret is None or not sent:
            raise BadRequest(
                f"This key speaks for tenants: name one in the signed header {self._name}, where auth.gateway is "
                "configured.",
                param=self._name,
            )
        return self._verified(sent, self._secret, scope)

    def _verified(self, sent: list[str], secret: bytes, scope: Scope) -> str:
        form = _FORM.fullmatch(sent[0]) if len(sent) == 1 else None
        if form is None:
            raise BadRequest(f"{self._name} must be one TENANT;SECONDS;SIGNATURE.", param=self._name)
        encoded, seconds, signature = form.groups()
        wanted = signature_of(secret, scope["method"], scope["path"], int(seconds), encoded)
        fresh = abs(self._clock() - int(seconds)) <= self._max_age
        if not hmac.compare_digest(wanted, signature) or not fresh:
            raise Unauthorized(INVALID, param=self._name)
        tenant = unquote(encoded, errors="replace")
        if TENANT.fullmatch(tenant) is None or quote(tenant, safe="") != encoded:
            raise BadRequest(f"{self._name} does not name a tenant.", param=self._name)
        return tenant


def signature_of(secret: bytes, method: str, path: str, seconds: int, encoded: str) -> str:
    """What a gateway signs; `encoded` is the tenant percent-encoded, unreserved characters as they are."""
    text = f"{method}\n{path}\n{seconds}\n{encoded}"
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
