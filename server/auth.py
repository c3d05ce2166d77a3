"""Who calls and what they may do: API keys, their roles and the one table of permissions."""

from __future__ import annotations

import hmac
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import get_args

from guard.errors import Forbidden, NotFound, Unauthorized
from guard.store.keys import Key, Keys, Role

logger = logging.getLogger(__name__)

ROLES: tuple[Role, ...] = get_args(Role)
ENVIRONMENT = "environment"  # the id of the admin key that is configured and not stored
SOON_SECONDS = 7 * 86_400.0
EXPLAIN_MISSING = "This route needs a key: send it as `Authorization: Bearer <key>`."


class Permission(StrEnum):
    """What a route may demand of its caller."""

    INFER = "infer"
    CHECK = "check"
    GUARDRAIL = "guardrail"
    SCORE = "score"
    METRICS = "metrics"
    READ_TARGETS = "read_targets"
    WRITE_TARGETS = "write_targets"
    READ_DECISIONS = "read_decisions"
    READ_AUDIT = "read_audit"
    READ_ARTIFACTS = "read_artifacts"
    READ_STATUS = "read_status"
    READ_JOBS = "read_jobs"
    JOBS = "jobs"
    KEYS = "keys"
    ENGINE = "engine"
    UNGUARDED = "unguarded"  # the console's answers without the guard


_READS = frozenset(
    {
        Permission.READ_TARGETS,
        Permission.READ_DECISIONS,
        Permission.READ_ARTIFACTS,
        Permission.READ_JOBS,
        Permission.READ_STATUS,
    }
)

PERMISSIONS: dict[Role, frozenset[Permission]] = {
    "inference": frozenset({Permission.INFER}),
    "gateway": frozenset({Permission.GUARDRAIL}),
    "auditor": _READS
    | {
        Permission.READ_AUDIT,
        Permission.CHECK,
        Permission.GUARDRAIL,
        Permission.SCORE,
        Permission.METRICS,
    },
    "operator": frozenset(
        {
            Permission.READ_TARGETS,
            Permission.WRITE_TARGETS,
            Permission.JOBS,
            Permission.READ_JOBS,
            Permission.READ_ARTIFACTS,
            Permission.READ_STATUS,
        }
    ),
    "admin": frozenset(Permission),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """A known caller. `tenant` confines it; None is confined to nothing. One that `speaks` names the tenant of each
    request."""

    role: Role
    tenant: str | None
    key_id: str
    speaks: bool = False

    def may(self, permission: Permission) -> bool:
        return permission in PERMISSIONS[self.role]

    @property
    def account(self) -> str | None:
        """Whose limits bind what it asks for: its tenant's, else its own; an admin's are none."""
        if self.tenant is not None:
            return f"tenant:{self.tenant}"
        return None if self.role == "admin" else f"key:{self.key_id}"


class Authenticator:
    """Knows every key by digest in memory: a request costs no query, and a revocation takes effect at once.

    All changes of keys in this process go through here; those of other processes come by `follow`, and `number` is that
    of the last change that holds here. `admin_key` is accepted beside the stored ones.
    """

    def __init__(
        self, keys: Keys, admin_key: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._admin_digest = keys.digest(admin_key) if admin_key else None
        self._used: dict[str, float] = {}
        self._lock = threading.Lock()  # for who changes what is known; who asks takes the reference
        self._renew()

    def follow(self) -> None:
        """Know the keys that other processes have made, and no more those that they withdrew. Blocks.

        Raises:
            GuardUnavailable: the store does not answer.
        """
        if self._keys.number == self.number:
            return
        with self._lock:
            self._renew()

    def identify(self, authorization: str | None) -> Principal:
        """The caller behind an `Authorization` header.

        Raises:
            Unauthorized: there is no key in it, or none that is known and in date.
        """
        scheme, _, token = (authorization or "").strip().partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized(EXPLAIN_MISSING)
        # Only keyed digests are compared: what the comparison's time tells is of no use to a guesser.
        try:
            digest = self._keys.digest(token)
        except UnicodeEncodeError:
            raise Unauthorized("This key holds characters that no key has.") from None
        if self._admin_digest is not None and hmac.compare_digest(digest, self._admin_digest):
            return Principal("admin", None, ENVIRONMENT)
        key = self._known.get(digest)
        if key is None or not hmac.compare_digest(digest, key.digest) or key.expired(self._clock()):
            raise Unauthorized("This key is not known here, was revoked or has expired.")
        self._used[key.id] = self._clock()
        return Principal(key.role, key.tenant, key.id, key.speaks)

    def standing(self, key_id: str) -> Principal:
        """The caller that this key stands for now, for those who showed it before.

        Raises:
            Unauthorized: it was revoked or has expired.
        """
        if key_id == ENVIRONMENT and self._admin_digest is not None:
            return Principal("admin", None, key_id)
        for key in list(self._known.values()):
            if key.id == key_id and not key.expired(self._clock()):
                self._used[key.id] = self._clock()
                return Principal(key.role, key.tenant, key.id, key.speaks)
        raise Unauthorized("The key of this session was revoked or has expired.")

    def require(self, authorization: str | None, permission: Permission) -> Principal:
        """The caller, who may do this.

        Raises:
            Unauthorized: nobody known.
            Forbidden: somebody known whose role may not.
        """
        principal = self.identify(authorization)
        if not principal.may(permission):
            raise Forbidden(f"A key with the role '{principal.role}' may not do this.")
        return principal

    def create(
        self, role: Role, tenant: str | None, expires_at: float | None, *, speaks: bool = False
    ) -> tuple[Key, str]:
        """A new key, and the token that only this call returns. Blocks."""
        with self._lock:
            key, token = self._keys.create(role, tenant, expires_at, now=self._clock(), speaks=speaks)
            self._renew()
        return key, token

    def rotate(self, key_id: str, grace: float, expires_at: float | None) -> tuple[Key, str]:
        """A new key in the place of this one, which is good for `grace` seconds more, and its token. Blocks.

        Raises:
            NotFound: there is no such key.
            BadRequest: it has expired, or was rotated before.
        """
        with self._lock:
            made = self._keys.rotate(key_id, grace, expires_at, now=self._clock())
            self._renew()
        return made

    def note_uses(self) -> None:
        """Write down when keys were used, some time after. Blocks.

        Raises:
            GuardUnavailable: the store does not answer; it is tried again with the next.
        """
        used = dict(self._used)
        if used:
            self._keys.note_uses(used)
            with self._lock:
                self._renew()
            for key_id, moment in used.items():
                if self._used.get(key_id) == moment:
                    self._used.pop(key_id, None)

    def expiring(self) -> list[Key]:
        """The keys in use that end within `SOON_SECONDS` and have no successor, the next first."""
        now = self._clock()
        found = [
            key
            for key in self._known.values()
            if key.expires_at is not None
            and now < key.expires_at <= now + SOON_SECONDS
            and key.successor is None
        ]
        return sorted(found, key=lambda key: key.expires_at or 0.0)

    def revoke(self, key_id: str) -> None:
        """From now on the key is not known. Blocks.

        Raises:
            NotFound: there is no such key.
        """
        with self._lock:
            if not self._keys.delete(key_id):
                raise NotFound("There is no such key.", param="id")
            self._renew()

    def all(self) -> list[Key]:
        """Every key, oldest first."""
        return sorted(self._known.values(), key=lambda key: (key.created_at, key.id))

    def _renew(self) -> None:
        self.number, known = self._keys.numbered()
        self._known = {key.digest: key for key in known}


def ensure_admin_key(keys: Keys, admin_key: str | None, clock: Callable[[], float] = time.time) -> str | None:
    """The token of an admin key made because there was none, to be shown once; None when there is one."""
    if admin_key:
        return None
    if any(key.role == "admin" and key.tenant is None and not key.expired(clock()) for key in keys.all()):
        return None
    return keys.create("admin", None, None, now=clock())[1]
