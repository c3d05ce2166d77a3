"""Targets at rest: every version of each, sealed; what is purged leaves a digest and nothing else."""

from __future__ import annotations

import secrets as random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from guard.crypto import Secrets
from guard.errors import NotFound, PreconditionFailed
from guard.store.database import Database, batches, next_snapshot
from guard.store.schema import decision_targets, decisions, jobs, target_versions, targets, tombstones
from guard.targets import StoredTarget, TargetSpec


@dataclass(frozen=True, slots=True)
class Write:
    """One target to be stored as `version`, which must be the one after the newest. `seen` is the version in force that
    the writer judged by, 0 where it knew of none; None: whatever is there shall be replaced."""

    id: str
    spec: TargetSpec
    version: int
    seen: int | None = None


class Targets:
    """Each write is one transaction that also counts the snapshot up, and returns its new number."""

    def __init__(self, database: Database, secrets: Secrets) -> None:
        self._database = database
        self._secrets = secrets

    def all(self) -> list[StoredTarget]:
        """The current version of every target that is not deleted, by id."""
        query = (
            sa.select(targets.c.key, targets.c.created_at, target_versions)
            .join(target_versions, self._is_current())
            .where(targets.c.deleted_at.is_(None))
        )
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return sorted((self._open(row) for row in rows), key=lambda target: target.id)

    def history(self, target_id: str) -> list[StoredTarget]:
        """All versions of this life of the target, oldest first; deleted ones included, purged ones not."""
        query = (
            sa.select(targets.c.key, targets.c.created_at, target_versions)
            .join(target_versions, target_versions.c.uid == targets.c.uid)
            .where(targets.c.key == self._key(target_id))
            .order_by(target_versions.c.version)
        )
        with self._database.read() as connection:
            return [self._open(row) for row in connection.execute(query)]

    def deleted_at(self, target_id: str) -> float | None:
        """When the target was deleted, in seconds since the epoch; None: it was not, or it was purged."""
        query = sa.select(targets.c.deleted_at).where(targets.c.key == self._key(target_id))
        with self._database.read() as connection:
            return connection.scalar(query)

    def next_versions(self, ids: Iterable[str]) -> dict[str, int]:
        """The version that each id gets next; numbers go on after deletion and purge, so no ETag repeats."""
        with self._database.read() as connection:
            return self._next_versions(connection, ids)

    def put(self, writes: Sequence[Write], now: float) -> int:
        """Store all of `writes` or none.

        Raises:
            PreconditionFailed: another process has written, deleted or purged one of them first.
        """
        with self._database.write() as connection:
            versions = self._next_versions(connection, [write.id for write in writes])
            for write in writes:
                if write.version != versions[write.id]:
                    raise _changed()
                self._put(connection, write, now)
            return next_snapshot(connection)

    def delete(self, target_id: str, now: float, *, purge: bool, seen: int | None = None) -> int:
        """Stop enforcing a target. With `purge`, its texts in every version and logged decision are erased. `seen` is
        that of `Write`.

        Raises:
            NotFound: there is no such target (or, with `purge`, nothing left of it).
            PreconditionFailed: another process has written it first.
        """
        with self._database.write() as connection:
            row = self._find(connection, target_id)
            if row is None or (row.deleted_at is not None and not purge):
                raise NotFound("There is no such target.", param="id")
            _demand_seen(row, seen)
            if purge:
                self._purge(connection, row, now)
            else:
                connection.execute(targets.update().where(targets.c.uid == row.uid).values(deleted_at=now))
            return next_snapshot(connection)

    def erase_traces(self) -> None:
        """Finish a purge: what it deleted is overwritten where the database's log still holds it."""
        self._database.erase_traces()

    def purged(self, target_id: str) -> bool:
        """Whether an earlier life of this id was purged."""
        query = sa.select(tombstones.c.key).where(tombstones.c.key == self._key(target_id))
        with self._database.read() as connection:
            return connection.scalar(query) is not None

    def count_change(self) -> int:
        """A new snapshot number for a change that needs no write here, such as an expiry."""
        with self._database.write() as connection:
            return next_snapshot(connection)

    def _put(self, connection: sa.Connection, write: Write, now: float) -> None:
        key, row = self._key(write.id), self._find(connection, write.id)
        _demand_seen(row, write.seen)
        uid = row.uid if row else random.token_hex(16)
        created = now if row is None or row.deleted_at is not None else row.created_at
        head = {"version": write.version, "created_at": created, "deleted_at": None}
        if row:
            connection.execute(targets.update().where(targets.c.uid == uid).values(head))
        else:
            sealed_id = self._secrets.seal(write.id, label=f"id:{key}")
            connection.execute(targets.insert().values(uid=uid, key=key, sealed_id=sealed_id, **head))
        content = {"id": write.id, "spec": write.spec.model_dump(mode="json")}
        sealed = self._secrets.seal(content, label=self._label(key, write.version))
        connection.execute(
            target_versions.insert().values(uid=uid, version=write.version, updated_at=now, sealed=sealed)
        )

    def _purge(self, connection: sa.Connection, row: sa.Row, now: float) -> None:
        mentions = sa.select(decision_targets.c.seq).where(decision_targets.c.uid == row.uid)
        told = sa.and_(decisions.c.seq.in_(mentions), decisions.c.sealed_text.is_not(None))
        erased = connection.execute(decisions.update().where(told).values(sealed_text=None)).rowcount
        connection.execute(target_versions.delete().where(target_versions.c.uid == row.uid))
        connection.execute(targets.delete().where(targets.c.uid == row.uid))
        connection.execute(tombstones.delete().where(tombstones.c.key == row.key))
        connection.execute(tombstones.insert().values(key=row.key, last_version=row.version, purged_at=now))
        self._database.owe_erasure(connection, targets, target_versions, jobs)
        if erased:
            self._database.owe_erasure(connection, decisions)

    def _next_versions(self, connection: sa.Connection, ids: Iterable[str]) -> dict[str, int]:
        by_key = {self._key(target_id): target_id for target_id in ids}
        found = dict.fromkeys(by_key.values(), 1)
        for key, last in (
            (tombstones.c.key, tombstones.c.last_version),
            (targets.c.key, targets.c.version),
        ):
            for batch in batches(list(by_key)):
                for digest, version in connection.execute(sa.select(key, last).where(key.in_(batch))):
                    found[by_key[digest]] = max(found[by_key[digest]], version + 1)
        return found

    def _find(self, connection: sa.Connection, target_id: str) -> sa.Row | None:
        return connection.execute(
            sa.select(targets).where(targets.c.key == self._key(target_id))
        ).one_or_none()

    def _open(self, row: sa.Row) -> StoredTarget:
        content = self._secrets.open(row.sealed, label=self._label(row.key, row.version))
        return StoredTarget(
            id=content["id"],
            spec=TargetSpec.model_validate(content["spec"]),
            version=row.version,
            created_at=_utc(row.created_at),
            updated_at=_utc(row.updated_at),
        )

    @staticmethod
    def _is_current() -> sa.ColumnElement[bool]:
        return sa.and_(target_versions.c.uid == targets.c.uid, target_versions.c.version == targets.c.version)

    def _key(self, target_id: str) -> str:
        return self._secrets.digest("target-id", target_id)

    @staticmethod
    def _label(key: str, version: int) -> str:
        return f"target:{key}:{version}"


def _demand_seen(row: sa.Row | None, seen: int | None) -> None:
    """Raises PreconditionFailed unless `seen` is the version in force, or nobody looked."""
    in_force = 0 if row is None or row.deleted_at is not None else row.version
    if seen is not None and seen != in_force:
        raise _changed()


def _changed() -> PreconditionFailed:
    return PreconditionFailed("The target was changed by another process; read it and repeat.")


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
