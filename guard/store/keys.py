"""API keys at rest: a keyed digest of each, its role and its tenant. The token itself is never stored."""

from __future__ import annotations

import math
import secrets as random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

import sqlalchemy as sa

from guard.crypto import Secrets
from guard.errors import BadRequest, NotFound
from guard.store.audit import Audit
from guard.store.database import Database, number_of
from guard.store.schema import keys

Role = Literal["inference", "gateway", "auditor", "operator", "admin"]


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; `digest` finds it, nothing gives the token back. One that `speaks` may name the tenant of
    each request; `successor` is the key that took its place, `used_at` about when it was used last."""

    id: str
    digest: str
    role: Role
    tenant: str | None
    created_at: float
    expires_at: float | None
    speaks: bool = False
    successor: str | None = None
    used_at: float | None = None

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now


class Keys:
    def __init__(self, database: Database, secrets: Secrets, audit: Audit) -> None:
        self._database = database
        self._secrets = secrets
        self._audit = audit

    def digest(self, token: str) -> str:
        """What is stored of a token."""
        return self._secrets.digest("api-key", token)

    def create(
        self, role: Role, tenant: str | None, expires_at: float | None, *, now: float, speaks: bool = False
    ) -> tuple[Key, str]:
        """A new key and its token, which only this call ever returns."""
        key, token = self._made(role, tenant, expires_at, speaks, now)
        with self._database.write() as connection:
            self._insert(connection, key)
            detail = {"role": role, "tenant": tenant, "speaks": speaks}
            self._audit.done(connection, "keys.create", subject=key.id, detail=detail)
        return key, token

    def rotate(self, key_id: str, grace: float, expires_at: float | None, *, now: float) -> tuple[Key, str]:
        """A new key in the place of an old one, which is good for `grace` seconds more. Without `expires_at` the new
        one lives as long as the old one was made to.

        Raises:
            NotFound: there is no such key.
            BadRequest: it has expired, or was rotated before.
        """
        with self._database.write() as connection:
            row = connection.execute(sa.select(keys).where(keys.c.id == key_id)).one_or_none()
            if row is None:
                raise NotFound("There is no such key.", param="id")
            old = Key(**row._mapping)
            if old.expired(now) or old.successor is not None:
                raise BadRequest("This key has expired or was rotated before; make a new one.", param="id")
            if expires_at is None and old.expires_at is not None:
                expires_at = now + old.expires_at - old.created_at
            key, token = self._made(old.role, old.tenant, expires_at, old.speaks, now)
            self._insert(connection, key)
            ends = min(now + grace, old.expires_at if old.expires_at is not None else math.inf)
            changes = {"expires_at": ends, "successor": key.id}
            connection.execute(keys.update().where(keys.c.id == key_id).values(changes))
            self._audit.done(connection, "keys.rotate", subject=key_id, detail={"successor": key.id})
        return key, token

    def note_uses(self, used: Mapping[str, float]) -> None:
        """Remember when keys were used last; no other process needs to hear of it."""
        with self._database.write() as connection:
            for key_id, moment in used.items():
                later = sa.and_(
                    keys.c.id == key_id, sa.or_(keys.c.used_at.is_(None), keys.c.used_at < moment)
                )
                connection.execute(keys.update().where(later).values(used_at=moment))

    def _made(
        self, role: Role, tenant: str | None, expires_at: float | None, speaks: bool, now: float
    ) -> tuple[Key, str]:
        token = "lk_" + random.token_urlsafe(32)
        key_id = "key_" + random.token_hex(8)
        return Key(key_id, self.digest(token), role, tenant, now, expires_at, speaks), token

    def _insert(self, connection: sa.Connection, key: Key) -> None:
        connection.execute(keys.insert().values(asdict(key)))
        self._database.count(connection, "keys")

    def all(self) -> list[Key]:
        """Every key, oldest first."""
        return self.numbered()[1]

    def numbered(self) -> tuple[int, list[Key]]:
        """The number of the last change of keys, and every key, oldest first."""
        query = sa.select(keys).order_by(keys.c.created_at, keys.c.id)
        with self._database.read() as connection:
            found = [Key(**row._mapping) for row in connection.execute(query)]
            return number_of(connection, "keys"), found

    @property
    def number(self) -> int:
        """That of the last change."""
        with self._database.read() as connection:
            return number_of(connection, "keys")

    def delete(self, key_id: str) -> bool:
        """Whether there was such a key."""
        with self._database.write() as connection:
            known = connection.execute(keys.delete().where(keys.c.id == key_id)).rowcount > 0
            if known:
                self._database.count(connection, "keys")
                self._audit.done(connection, "keys.revoke", subject=key_id)
            return known
