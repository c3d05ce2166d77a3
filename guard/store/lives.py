"""Lives of targets: which `uid` stands for an id now, and which id for a uid. What was purged has neither."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from guard.crypto import Secrets
from guard.store.database import batches
from guard.store.schema import targets

LENGTH = 32
"""Characters of a uid; of what is gone or never was, as many of its key stand in its place."""


def key_of(secrets: Secrets, target_id: str) -> str:
    return secrets.digest("target-id", target_id)


def uids_of(connection: sa.Connection, secrets: Secrets, ids: Iterable[str]) -> dict[str, str]:
    """The uid of each id that is registered, deleted ones included."""
    by_key = {key_of(secrets, target_id): target_id for target_id in ids}
    found = {}
    for batch in batches(list(by_key)):
        query = sa.select(targets.c.key, targets.c.uid).where(targets.c.key.in_(batch))
        found.update({by_key[key]: uid for key, uid in connection.execute(query)})
    return found


def names_of(connection: sa.Connection, secrets: Secrets, uids: Iterable[str]) -> dict[str, str]:
    """The id of each uid that still has one."""
    found = {}
    for batch in batches(list(uids)):
        query = sa.select(targets.c.uid, targets.c.key, targets.c.sealed_id).where(targets.c.uid.in_(batch))
        for uid, key, sealed in connection.execute(query):
            found[uid] = secrets.open(sealed, label=f"id:{key}")
    return found


def name_or_purged(uid: str, names: dict[str, str]) -> str:
    return names.get(uid, f"purged-{uid[:12]}")
