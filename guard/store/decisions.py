"""The decision log at rest. Records name targets by uid, so a purge leaves them without a name to show."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from guard.crypto import Secrets
from guard.store.database import Database, batches
from guard.store.lives import LENGTH, key_of, name_or_purged, names_of, uids_of
from guard.store.schema import decision_targets, decisions

_REFERENCE = "$target"
_PRUNED = 2_000  # records that one transaction deletes: other writers wait for it


@dataclass(frozen=True, slots=True)
class Record:
    """One decision to be written. Target ids may stand in `body["targets"]` and `body["events"]` alone."""

    id: str
    time: float
    tenant: str | None
    action: str
    body: Mapping[str, Any]
    target_ids: tuple[str, ...] = ()
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """What a reader asks for; None means any. Times are seconds since the epoch, `until` not included."""

    target: str | None = None
    action: str | None = None
    tenant: str | None = None
    since: float | None = None
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Count:
    """How many decisions, by action, and when the first and the last of them were made."""

    by_action: Mapping[str, int] = field(default_factory=dict)
    first: float | None = None
    last: float | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Newest first; `before` asks for the next page and is None on the last."""

    data: list[dict[str, Any]] = field(default_factory=list)
    before: int | None = None


class Decisions:
    def __init__(self, database: Database, secrets: Secrets) -> None:
        self._database = database
        self._secrets = secrets

    def add(self, records: Sequence[Record]) -> None:
        """Write records in order; one whose id is already there is left as it is."""
        with self._database.write() as connection:
            known = self._known_ids(connection, [record.id for record in records])
            uids = uids_of(
                connection, self._secrets, {name for record in records for name in record.target_ids}
            )
            for record in records:
                if record.id not in known:
                    known.add(record.id)
                    self._add(connection, record, uids)

    def get(self, decision_id: str) -> dict[str, Any] | None:
        with self._database.read() as connection:
            row = connection.execute(sa.select(decisions).where(decisions.c.id == decision_id)).one_or_none()
            return self._render(connection, [row])[0] if row else None

    def page(self, wanted: Filter, *, limit: int, before: int | None = None) -> Page:
        query = sa.select(decisions).order_by(decisions.c.seq.desc()).limit(limit + 1)
        columns = ((decisions.c.action, wanted.action), (decisions.c.tenant, wanted.tenant))
        for column, value in columns:
            if value is not None:
                query = query.where(column == value)
        if wanted.since is not None:
            query = query.where(decisions.c.time >= wanted.since)
        if wanted.until is not None:
            query = query.where(decisions.c.time < wanted.until)
        if before is not None:
            query = query.where(decisions.c.seq < before)
        with self._database.read() as connection:
            if wanted.target is not None:
                uid = uids_of(connection, self._secrets, {wanted.target}).get(wanted.target, "")
                mentions = sa.select(decision_targets.c.seq).where(decision_targets.c.uid == uid)
                query = query.where(decisions.c.seq.in_(mentions))
            rows = connection.execute(query).all()
            data = self._render(connection, rows[:limit])
        return Page(data, rows[limit - 1].seq if len(rows) > limit else None)

    def count(self, target_id: str) -> Count:
        """The kept decisions that name this target."""
        number, first, last = sa.func.count(), sa.func.min(decisions.c.time), sa.func.max(decisions.c.time)
        query = (
            sa.select(decisions.c.action, number, first, last)
            .join(decision_targets, decision_targets.c.seq == decisions.c.seq)
            .group_by(decisions.c.action)
            .order_by(decisions.c.action)
        )
        with self._database.read() as connection:
            uid = uids_of(connection, self._secrets, {target_id}).get(target_id, "")
            rows = connection.execute(query.where(decision_targets.c.uid == uid)).all()
        if not rows:
            return Count()
        by_action = {action: of for action, of, _, _ in rows}
        return Count(by_action, min(row[2] for row in rows), max(row[3] for row in rows))

    def prune(self, older_than: float) -> int:
        """Delete what is older; how many there were."""
        old = sa.select(decisions.c.seq).where(decisions.c.time < older_than).limit(_PRUNED)
        total = 0
        while True:
            with self._database.write() as connection:
                gone = connection.execute(decisions.delete().where(decisions.c.seq.in_(old))).rowcount
            total += gone
            if gone < _PRUNED:
                return total

    def _add(self, connection: sa.Connection, record: Record, uids: Mapping[str, str]) -> None:
        mine = {name: uids.get(name) or key_of(self._secrets, name)[:LENGTH] for name in record.target_ids}
        values = {
            "id": record.id,
            "time": record.time,
            "tenant": record.tenant,
            "action": record.action,
            "body": json.dumps(_refer(record.body, mine)),
            "sealed_text": self._seal(record)
            if record.text is not None and mine.keys() <= uids.keys()
            else None,
        }
        result = connection.execute(decisions.insert().values(values))
        assert result.inserted_primary_key is not None
        seq = result.inserted_primary_key[0]
        for uid in sorted(set(mine.values())):
            connection.execute(decision_targets.insert().values(uid=uid, seq=seq))

    def _seal(self, record: Record) -> bytes:
        return self._secrets.seal(record.text, label=f"decision:{record.id}")

    def _render(self, connection: sa.Connection, rows: Sequence[sa.Row]) -> list[dict[str, Any]]:
        bodies = [json.loads(row.body) for row in rows]
        names = names_of(connection, self._secrets, {uid for body in bodies for uid in _referred(body)})
        rendered = []
        for row, body in zip(rows, bodies, strict=True):
            body = _resolve(body, names)
            if row.sealed_text is not None:
                body["text"] = self._secrets.open(row.sealed_text, label=f"decision:{row.id}")
            rendered.append(body)
        return rendered

    def _known_ids(self, connection: sa.Connection, ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for batch in batches(ids):
            found.update(connection.scalars(sa.select(decisions.c.id).where(decisions.c.id.in_(batch))))
        return found


def _refer(body: Mapping[str, Any], uids: Mapping[str, str]) -> dict[str, Any]:
    """The body with target ids replaced by references, in the two places that may hold them."""
    replaced = dict(body)
    for place in ("targets", "events"):
        if place in body:
            replaced[place] = _walk(body[place], uids)
    return replaced


def _walk(value: Any, uids: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _walk(item, uids) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_walk(item, uids) for item in value]
    return {_REFERENCE: uids[value]} if isinstance(value, str) and value in uids else value


def _referred(value: Any) -> Iterable[str]:
    if isinstance(value, dict):
        if value.keys() == {_REFERENCE}:
            yield value[_REFERENCE]
        for item in value.values():
            yield from _referred(item)
    elif isinstance(value, list):
        for item in value:
            yield from _referred(item)


def _resolve(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {_REFERENCE}:
            uid = value[_REFERENCE]
            return name_or_purged(uid, names)
        return {key: _resolve(item, names) for key, item in value.items()}
    return [_resolve(item, names) for item in value] if isinstance(value, list) else value
