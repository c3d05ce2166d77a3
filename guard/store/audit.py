"""The audit trail at rest: rows are only added, and each carries a keyed digest of itself and of the one before it.

Whoever changes, removes or exchanges rows without the master secret breaks that chain. Number and digest of the last
row (`head`) stand beside it, so that a missing end shows too, unless the same hand has put back an older head: who must
rule that out keeps heads elsewhere and has them compared. Rows name targets by uid, as decisions do: a purge leaves the
row that says so, and no name.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import sqlalchemy as sa

from guard import trail
from guard.crypto import Secrets
from guard.store.database import Database, put_value, value_of
from guard.store.lives import LENGTH, key_of, name_or_purged, names_of, uids_of
from guard.store.schema import audit
from guard.trail import SYSTEM, Act

Outcome = Literal["begun", "done", "refused", "failed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

_HEAD, _BASE = "audit:head", "audit:base"
_NOTHING = (0, "")  # before the first row
_BATCH = 1_000
_COLUMNS = tuple(column.name for column in audit.columns if column.name != "mac")


@dataclass(frozen=True, slots=True)
class Filter:
    """What a reader asks for; None means any. Times are seconds since the epoch, `until` not included."""

    target: str | None = None
    action: str | None = None
    key_id: str | None = None
    outcome: Outcome | None = None
    tenant: str | None = None
    since: float | None = None
    until: float | None = None
    snapshots: bool = False  # only what changed targets


@dataclass(frozen=True, slots=True)
class Page:
    """Newest first; `before` asks for the next page and is None on the last."""

    data: list[dict[str, Any]] = field(default_factory=list)
    before: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the trail is whole from row `first` on; `problem` is the first thing that is not as it was written."""

    rows: int
    first: int
    head: str
    problem: str | None = None


class Audit:
    """Stores call `done` inside their transactions, whoever answers a request calls `add` for what wrote nothing."""

    def __init__(self, database: Database, secrets: Secrets, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._secrets = secrets
        self._clock = clock

    def done(
        self,
        connection: sa.Connection,
        action: str,
        *,
        uid: str | None = None,
        subject: str | None = None,
        snapshot: int | None = None,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Record the current act, or `action` of the server itself, in the transaction that does it."""
        act = trail.current() or Act(action)
        self._append(connection, act, "done", None, uid, subject or act.subject, snapshot, detail or {})
        act.written = True

    def add(self, act: Act, outcome: Outcome, status: int | None = None) -> None:
        """Record an act in a transaction of its own."""
        with self._database.write() as connection:
            uid = self._uid(connection, act.target) if act.target is not None else None
            self._append(connection, act, outcome, status, uid, act.subject, None, {})

    def page(self, wanted: Filter, *, limit: int, before: int | None = None) -> Page:
        query = sa.select(audit).order_by(audit.c.seq.desc()).limit(limit + 1)
        columns = (
            (audit.c.action, wanted.action),
            (audit.c.key_id, wanted.key_id),
            (audit.c.outcome, wanted.outcome),
            (audit.c.tenant, wanted.tenant),
        )
        for column, value in columns:
            if value is not None:
                query = query.where(column == value)
        if wanted.since is not None:
            query = query.where(audit.c.time >= wanted.since)
        if wanted.until is not None:
            query = query.where(audit.c.time < wanted.until)
        if wanted.snapshots:
            query = query.where(audit.c.snapshot.is_not(None))
        if before is not None:
            query = query.where(audit.c.seq < before)
        with self._database.read() as connection:
            if wanted.target is not None:
                uids = {self._uid(connection, wanted.target), self._gone(wanted.target)}
                query = query.where(audit.c.uid.in_(uids))
            rows = connection.execute(query).all()
            names = names_of(connection, self._secrets, {row.uid for row in rows if row.uid})
        data = [_shown(row, names) for row in rows[:limit]]
        return Page(data, rows[limit - 1].seq if len(rows) > limit else None)

    def verify(self, head: str | None = None) -> Verdict:
        """Read all rows, and compare with `head` if somebody kept one."""
        with self._database.read() as connection:
            base, problem = self._base(connection)
            seq, mac = base
            seen = {f"{seq}:{mac}"}
            for row in self._rows(connection, seq):
                if problem is None and row.seq != seq + 1:
                    problem = f"Row {seq + 1} is missing."
                if problem is None and not hmac.compare_digest(self._mac(mac, row._asdict()), row.mac):
                    problem = f"Row {row.seq} was changed."
                seq, mac = row.seq, row.mac
                if head is not None and head.startswith(f"{seq}:"):
                    seen.add(f"{seq}:{mac}")
            if problem is None and _place(connection, _HEAD) != (seq, mac):
                problem = f"Rows behind row {seq} are missing."
        if problem is None and head is not None and head not in seen and not _before(head, base):
            problem = "The head that was kept is not in the trail."
        return Verdict(seq - base[0], base[0] + 1, f"{seq}:{mac}", problem)

    def prune(self, older_than: float) -> int:
        """Delete the oldest rows, as far as all are older; how many. A row says so, and the chain begins there."""
        total = 0
        while True:
            with self._database.write() as connection:
                gone = self._prune(connection, older_than)
                total += gone
                if gone < _BATCH:
                    if total:
                        self._append(
                            connection, Act("audit.prune"), "done", None, None, None, None, {"rows": total}
                        )
                    return total

    def _prune(self, connection: sa.Connection, older_than: float) -> int:
        base, _ = self._base(connection)
        oldest = sa.select(audit).order_by(audit.c.seq).limit(_BATCH)
        last, gone = base, 0
        for row in connection.execute(oldest).all():
            if row.time >= older_than:
                break
            last, gone = (row.seq, row.mac), gone + 1
        if gone:
            connection.execute(audit.delete().where(audit.c.seq <= last[0]))
            _put_place(connection, _BASE, *last, self._secrets.digest("audit-base", *last))
        return gone

    def _append(
        self,
        connection: sa.Connection,
        act: Act,
        outcome: Outcome,
        status: int | None,
        uid: str | None,
        subject: str | None,
        snapshot: int | None,
        detail: Mapping[str, Any],
    ) -> None:
        seq, mac = _place(connection, _HEAD)
        by = act.by or SYSTEM
        row = {
            "seq": seq + 1,
            "time": self._clock(),
            "key_id": by.key_id,
            "role": by.role,
            "tenant": by.tenant,
            "action": act.action,
            "uid": uid,
            "subject": subject,
            "outcome": outcome,
            "status": status,
            "snapshot": snapshot,
            "request_id": act.request_id,
            "source": act.source,
            "detail": json.dumps(detail),
        }
        mac = self._mac(mac, row)
        connection.execute(audit.insert().values(**row, mac=mac))
        _put_place(connection, _HEAD, seq + 1, mac)

    def _mac(self, before: str, row: Mapping[str, Any]) -> str:
        return self._secrets.digest("audit", before, json.dumps([row[name] for name in _COLUMNS]))

    def _base(self, connection: sa.Connection) -> tuple[tuple[int, str], str | None]:
        """The last row that was pruned, and what is wrong with what says so."""
        found = value_of(connection, _BASE)
        if found is None:
            return _NOTHING, None
        seq, mac, proof = [*found.split(":"), "", ""][:3]
        base = (int(seq) if seq.isdigit() else 0, mac)
        sound = hmac.compare_digest(proof, self._secrets.digest("audit-base", *base))
        return base, None if sound else "What says up to where the trail was pruned was changed."

    def _uid(self, connection: sa.Connection, target_id: str) -> str:
        return uids_of(connection, self._secrets, [target_id]).get(target_id) or self._gone(target_id)

    def _gone(self, target_id: str) -> str:
        """What stands for an id that is not registered. Only who knows the id can make it."""
        return key_of(self._secrets, target_id)[:LENGTH]

    @staticmethod
    def _rows(connection: sa.Connection, behind: int) -> Iterator[sa.Row]:
        while True:
            query = sa.select(audit).where(audit.c.seq > behind).order_by(audit.c.seq).limit(_BATCH)
            rows = connection.execute(query).all()
            yield from rows
            if len(rows) < _BATCH:
                return
            behind = rows[-1].seq


def _shown(row: sa.Row, names: dict[str, str]) -> dict[str, Any]:
    shown = {name: row._mapping[name] for name in _COLUMNS if name != "uid"}
    target = name_or_purged(row.uid, names) if row.uid is not None else None
    return {**shown, "target": target, "detail": json.loads(row.detail)}


def _place(connection: sa.Connection, name: str) -> tuple[int, str]:
    seq, _, mac = (value_of(connection, name) or "").partition(":")
    return (int(seq), mac) if seq.isdigit() else _NOTHING


def _put_place(connection: sa.Connection, name: str, *parts: str | int) -> None:
    put_value(connection, name, ":".join(map(str, parts)))


def _before(head: str, base: tuple[int, str]) -> bool:
    """Whether a kept head is one that was pruned since."""
    seq = head.split(":")[0]
    return seq.isascii() and seq.isdigit() and int(seq) < base[0]
