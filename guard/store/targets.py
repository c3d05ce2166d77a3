"""Targets at rest: every version of each, sealed; what is purged leaves a digest and nothing else."""

from __future__ import annotations

import secrets as random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from guard.crypto import Secrets
from guard.errors import NotFound, PreconditionFailed
from guard.store.audit import Audit
from guard.store.database import Database, batches, number_of, value_of
from guard.store.lives import LENGTH, key_of
from guard.store.schema import (
    Tombstone,
    decision_targets,
    decisions,
    erasures,
    jobs,
    target_versions,
    targets,
    tombstones,
)
from guard.targets import StoredTarget, TargetSpec


@dataclass(frozen=True, slots=True)
class Write:
    """One target to be stored as `version`, which must be the one after the newest. `seen` is the version in force that
    the writer judged by, 0 where it knew of none; None: whatever is there shall be replaced."""

    id: str
    spec: TargetSpec
    version: int
    seen: int | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened up to snapshot `number`: the targets written that are still there, keyed digests of the ids that
    were deleted or purged, and the artifacts that shall be nowhere."""

    number: int
    written: tuple[StoredTarget, ...]
    gone: frozenset[str]
    erased: frozenset[str]


@dataclass(frozen=True, slots=True)
class Past:
    """The targets as they were at a snapshot, and the life of each; what was purged since is not among them."""

    targets: Mapping[str, StoredTarget]
    lives: Mapping[str, str]


class Targets:
    """Each write is one transaction that also counts the snapshot up, and returns its new number."""

    def __init__(self, database: Database, secrets: Secrets, audit: Audit) -> None:
        self._database = database
        self._secrets = secrets
        self._audit = audit

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

    def changes(self, since: int) -> Changes:
        """What happened after snapshot `since`; all there is after -1."""
        new = (
            sa.select(targets.c.key, targets.c.created_at, target_versions)
            .join(target_versions, self._is_current())
            .where(targets.c.deleted_at.is_(None), targets.c.changed > since)
        )
        deleted = sa.select(targets.c.key).where(targets.c.deleted_at.is_not(None), targets.c.changed > since)
        purged = sa.select(tombstones.c.key).where(tombstones.c.changed > since)
        erased = sa.select(erasures.c.digest).where(erasures.c.changed > since)
        with self._database.read() as connection:
            number = number_of(connection, "snapshot")
            if number == since:
                return Changes(number, (), frozenset(), frozenset())
            return Changes(
                number,
                tuple(map(self._open, connection.execute(new))),
                frozenset(connection.scalars(sa.union(deleted, purged))),
                frozenset(connection.scalars(erased)),
            )

    def history(self, target_id: str) -> list[StoredTarget]:
        """All versions of this life of the target, oldest first; deleted ones included, purged ones not."""
        query = (
            sa.select(targets.c.key, targets.c.created_at, target_versions)
            .join(target_versions, target_versions.c.uid == targets.c.uid)
            .where(targets.c.key == self.key(target_id))
            .order_by(target_versions.c.version)
        )
        with self._database.read() as connection:
            return [self._open(row) for row in connection.execute(query)]

    def deleted_at(self, target_id: str) -> float | None:
        """When the target was deleted, in seconds since the epoch; None: it was not, or it was purged."""
        query = sa.select(targets.c.deleted_at).where(targets.c.key == self.key(target_id))
        with self._database.read() as connection:
            return connection.scalar(query)

    def at(self, number: int) -> Past:
        """The targets that snapshot `number` enforced or held, without those that were purged since.

        Raises:
            NotFound: there was no such snapshot, or it is older than the history that is kept.
        """
        held = sa.and_(
            target_versions.c.since <= number,
            sa.or_(target_versions.c.until.is_(None), target_versions.c.until > number),
        )
        query = (
            sa.select(targets.c.key, targets.c.created_at, target_versions)
            .join(target_versions, target_versions.c.uid == targets.c.uid)
            .where(held)
        )
        with self._database.read() as connection:
            first = self._first(connection)
            last = number_of(connection, "snapshot")
            rows = connection.execute(query).all() if first <= number <= last else None
        if rows is None:
            raise NotFound(f"The snapshots that can be gone back to are {first} to {last}.", param="number")
        found = [(self._open(row), row.uid) for row in rows]
        return Past({target.id: target for target, _ in found}, {target.id: uid for target, uid in found})

    @property
    def first(self) -> int:
        """The oldest snapshot that `at` can tell."""
        with self._database.read() as connection:
            return self._first(connection)

    def roll_back(
        self,
        number: int,
        writes: Sequence[Write],
        deleted: Iterable[str],
        known: Mapping[str, int],
        past: Past,
        now: float,
    ) -> int:
        """Make the targets what they were at `number`: write those of `writes` and delete those of `deleted`, in one
        transaction. `known` are the versions that are in force as far as the writer knows.

        Raises:
            PreconditionFailed: another process has changed something meanwhile, or purged what should come back.
        """
        with self._database.write() as connection:
            in_force = sa.select(targets.c.key, targets.c.version).where(targets.c.deleted_at.is_(None))
            there = {row.key: row.version for row in connection.execute(in_force)}
            if there != {self.key(name): version for name, version in known.items()}:
                raise _changed()
            versions = self._next_versions(connection, [write.id for write in writes])
            new = self._database.count(connection, "snapshot")
            for write in writes:
                row = self._find(connection, write.id)
                if row is None or row.uid != past.lives[write.id] or write.version != versions[write.id]:
                    raise _changed()
                self._put(connection, write, now, new)
            gone = [row for row in (self._find(connection, name) for name in deleted) if row is not None]
            for row in gone:
                self._delete(connection, row.uid, now, new)
            created = sum(write.id not in known for write in writes)
            counts = {"created": created, "updated": len(writes) - created, "deleted": len(gone)}
            self._audit.done(connection, "targets.rollback", subject=str(number), snapshot=new, detail=counts)
            return new

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
            number = self._database.count(connection, "snapshot")
            put = []
            for write in writes:
                if write.version != versions[write.id]:
                    raise _changed()
                put.append(self._put(connection, write, now, number))
            created = sum(new for _, new in put)
            self._audit.done(
                connection,
                "targets.put",
                uid=put[0][0] if len(put) == 1 else None,
                snapshot=number,
                detail={"created": created, "updated": len(put) - created},
            )
            return number

    def delete(
        self,
        target_id: str,
        now: float,
        *,
        purge: bool,
        seen: int | None = None,
        erase: Iterable[str] = (),
    ) -> int:
        """Stop enforcing a target. With `purge`, its texts in every version and logged decision are erased, and every
        process is to erase the artifacts `erase`. `seen` is that of `Write`.

        Raises:
            NotFound: there is no such target (or, with `purge`, nothing left of it).
            PreconditionFailed: another process has written it first.
        """
        with self._database.write() as connection:
            row = self._find(connection, target_id)
            if row is None or (row.deleted_at is not None and not purge):
                raise NotFound("There is no such target.", param="id")
            _demand_seen(row, seen)
            number = self._database.count(connection, "snapshot")
            if purge:
                self._purge(connection, row, now, number)
                self._erase(connection, erase, number)
            else:
                self._delete(connection, row.uid, now, number)
            # A purge is told by the keyed digest of the id: the uid leads to what was done before, and to no name.
            self._audit.done(
                connection,
                "targets.purge" if purge else "targets.delete",
                uid=row.key[:LENGTH] if purge else row.uid,
                snapshot=number,
                detail={"purged" if purge else "deleted": 1},
            )
            return number

    def purge_again(self, later: Iterable[Tombstone], now: float) -> int:
        """Purge what was purged after this store was backed up; how many targets."""
        purged = 0
        with self._database.write() as connection:
            number = self._database.count(connection, "snapshot")
            for tombstone in later:
                known = connection.execute(
                    sa.select(tombstones).where(tombstones.c.key == tombstone.key)
                ).one_or_none()
                if known is not None and known.purged_at >= tombstone.purged_at:
                    continue
                row = connection.execute(
                    sa.select(targets).where(targets.c.key == tombstone.key)
                ).one_or_none()
                if row is not None:
                    self._purge(connection, row, now, number)
                    purged += 1
                last = max(tombstone.last_version, row.version if row is not None else 0)
                connection.execute(tombstones.delete().where(tombstones.c.key == tombstone.key))
                values = {**tombstone._asdict(), "last_version": last, "changed": number}
                connection.execute(tombstones.insert().values(values))
            self._audit.done(connection, "store.restore", snapshot=number, detail={"purged": purged})
        return purged

    def everything(self) -> Iterator[StoredTarget]:
        """Every version of every target, deleted ones included."""
        query = (
            sa.select(targets.c.key, targets.c.created_at, target_versions)
            .join(target_versions, target_versions.c.uid == targets.c.uid)
            .order_by(target_versions.c.uid, target_versions.c.version)
        )
        with self._database.read() as connection:
            yield from map(self._open, connection.execute(query))

    def erase_traces(self) -> None:
        """Finish a purge: what it deleted is overwritten where the database's log still holds it."""
        self._database.erase_traces()

    def purged(self, target_id: str) -> bool:
        """Whether an earlier life of this id was purged."""
        query = sa.select(tombstones.c.key).where(tombstones.c.key == self.key(target_id))
        with self._database.read() as connection:
            return connection.scalar(query) is not None

    def count_change(self) -> int:
        """A new snapshot number for a change that needs no write here, such as an expiry."""
        with self._database.write() as connection:
            return self._database.count(connection, "snapshot")

    def erase_artifact(self, digest: str) -> int:
        """Every process is to erase the artifact, those that start later too; a new snapshot number."""
        with self._database.write() as connection:
            number = self._database.count(connection, "snapshot")
            self._erase(connection, [digest], number)
            return number

    def readmit_artifact(self, digest: str) -> None:
        """It was added again, on purpose."""
        with self._database.write() as connection:
            connection.execute(erasures.delete().where(erasures.c.digest == digest))

    def _put(self, connection: sa.Connection, write: Write, now: float, number: int) -> tuple[str, bool]:
        """The target's uid, and whether it is new."""
        key, row = self.key(write.id), self._find(connection, write.id)
        _demand_seen(row, write.seen)
        uid = row.uid if row else random.token_hex(16)
        created = now if row is None or row.deleted_at is not None else row.created_at
        head = {"version": write.version, "created_at": created, "deleted_at": None, "changed": number}
        if row:
            self._end_versions(connection, uid, number)
            connection.execute(targets.update().where(targets.c.uid == uid).values(head))
        else:
            sealed_id = self._secrets.seal(write.id, label=f"id:{key}")
            connection.execute(targets.insert().values(uid=uid, key=key, sealed_id=sealed_id, **head))
        content = {"id": write.id, "spec": write.spec.model_dump(mode="json")}
        sealed = self._secrets.seal(content, label=self._label(key, write.version))
        connection.execute(
            target_versions.insert().values(
                uid=uid, version=write.version, updated_at=now, sealed=sealed, since=number
            )
        )
        return uid, row is None or row.deleted_at is not None

    def _delete(self, connection: sa.Connection, uid: str, now: float, number: int) -> None:
        self._end_versions(connection, uid, number)
        gone = {"deleted_at": now, "changed": number}
        connection.execute(targets.update().where(targets.c.uid == uid).values(gone))

    @staticmethod
    def _first(connection: sa.Connection) -> int:
        return int(value_of(connection, "history") or 0)

    @staticmethod
    def _end_versions(connection: sa.Connection, uid: str, number: int) -> None:
        current = sa.and_(target_versions.c.uid == uid, target_versions.c.until.is_(None))
        connection.execute(target_versions.update().where(current).values(until=number))

    @staticmethod
    def _erase(connection: sa.Connection, digests: Iterable[str], number: int) -> None:
        for digest in digests:
            connection.execute(erasures.delete().where(erasures.c.digest == digest))
            connection.execute(erasures.insert().values(digest=digest, changed=number))

    def _purge(self, connection: sa.Connection, row: sa.Row, now: float, number: int) -> None:
        mentions = sa.select(decision_targets.c.seq).where(decision_targets.c.uid == row.uid)
        told = sa.and_(decisions.c.seq.in_(mentions), decisions.c.sealed_text.is_not(None))
        erased = connection.execute(decisions.update().where(told).values(sealed_text=None)).rowcount
        connection.execute(target_versions.delete().where(target_versions.c.uid == row.uid))
        connection.execute(targets.delete().where(targets.c.uid == row.uid))
        connection.execute(tombstones.delete().where(tombstones.c.key == row.key))
        connection.execute(
            tombstones.insert().values(key=row.key, last_version=row.version, purged_at=now, changed=number)
        )
        self._database.owe_erasure(connection, targets, target_versions, jobs)
        if erased:
            self._database.owe_erasure(connection, decisions)

    def _next_versions(self, connection: sa.Connection, ids: Iterable[str]) -> dict[str, int]:
        by_key = {self.key(target_id): target_id for target_id in ids}
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
            sa.select(targets).where(targets.c.key == self.key(target_id))
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

    def key(self, target_id: str) -> str:
        """The keyed digest that stands for an id."""
        return key_of(self._secrets, target_id)

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
