"""API keys at rest: a keyed digest of each, its role and its tenant. The token itself is never stored."""

from __future__ import annotations

import secrets as random
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from guard.crypto import Secrets
from guard.store.audit import Audit
from guard.store.database import Database, number_of
from guard.store.schema import keys

Role = Literal["inference", "gateway", "auditor", "operator", "admin"]


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a key; `digest` finds it, nothing gives the token back."""

    id: str
    digest: str
    role: Role
    tenant: str | None
    created_at: float
    expires_at: float | None

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
        self, role: Role, tenant: str | None, expires_at: float | None, *, now: float
    ) -> tuple[Key, str]:
        """A new key and its token, which only this call ever returns."""
        token = "lk_" + random.token_urlsafe(32)
        key = Key(
            id="key_" + random.token_hex(8),
            digest=self.digest(token),
            role=role,
            tenant=tenant,
            created_at=now,
            expires_at=expires_at,
        )
        values = {column.name: getattr(key, column.name) for column in keys.columns}
        with self._database.write() as connection:
            connection.execute(keys.insert().values(values))
            self._database.count(connection, "keys")
            self._audit.done(
                connection, "keys.create", subject=key.id, detail={"role": role, "tenant": tenant}
            )
        return key, token

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
