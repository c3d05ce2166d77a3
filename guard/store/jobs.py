"""Jobs at rest: what shall be trained, by whom it is being trained, and what came of it.

Several servers may share the store. A job runs under a lease: whoever claims it names itself and a time, and must
renew before then. All changes are conditional, so of two claims one succeeds, and whoever lost a job (it was
cancelled, its target purged, its lease taken over) learns that from its next write. Purging a target deletes its jobs.
"""

from __future__ import annotations

import secrets as random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import sqlalchemy as sa

from guard.crypto import Secrets
from guard.errors import NotFound
from guard.store.audit import Audit
from guard.store.database import Database
from guard.store.schema import jobs, targets

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
UNFINISHED = ("queued", "running")


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for: the trainer's parameters, whether its artifact goes into the target, examples in place of the
    target's own (None: its own), wrong answers, and digests of the adapters that it takes. The examples of an ended job
    are erased; `given` keeps their numbers."""

    params: Mapping[str, Any] = field(default_factory=dict)
    attach: bool = True
    forget: tuple[Mapping[str, Any], ...] | None = None
    retain: tuple[Mapping[str, Any], ...] | None = None
    given: Mapping[str, int] = field(default_factory=dict)
    perturbed: tuple[Mapping[str, Any], ...] | None = None
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What the trainer said last, oldest first, and why it failed."""

    log: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """Times are seconds since the epoch. `version` is the target's when the job began to run."""

    id: str
    kind: str
    target: str
    tenant: str | None
    state: State
    progress: float
    created_at: float
    started_at: float | None
    ended_at: float | None
    runner: str | None
    lease: float | None
    version: int | None
    artifact: str | None
    attached: bool | None
    request: Request
    report: Report


@dataclass(frozen=True, slots=True)
class Filter:
    """What a reader asks for; None means any."""

    target: str | None = None
    state: str | None = None
    tenant: str | None = None


class Jobs:
    def __init__(self, database: Database, secrets: Secrets, audit: Audit) -> None:
        self._database = database
        self._secrets = secrets
        self._audit = audit

    def create(self, kind: str, target_id: str, tenant: str | None, request: Request, now: float) -> Job:
        """A new job in the queue.

        Raises:
            NotFound: there is no such target.
        """
        job_id = "job_" + random.token_hex(8)
        with self._database.write() as connection:
            uid = connection.scalar(
                sa.select(targets.c.uid).where(
                    targets.c.key == self._key(target_id), targets.c.deleted_at.is_(None)
                )
            )
            if uid is None:
                raise NotFound(f"There is no target '{target_id}'.", param="target")
            sealed = self._seal(job_id, request)
            values = {
                "id": job_id,
                "uid": uid,
                "kind": kind,
                "tenant": tenant,
                "state": "queued",
                "progress": 0.0,
            }
            connection.execute(jobs.insert().values(created_at=now, sealed_request=sealed, **values))
            self._audit.done(connection, "jobs.create", uid=uid, subject=job_id, detail={"kind": kind})
            return self._get(connection, job_id)

    def get(self, job_id: str) -> Job:
        """Raises NotFound: there is no such job."""
        with self._database.read() as connection:
            return self._get(connection, job_id)

    def page(self, wanted: Filter, *, limit: int, after: tuple[float, str] | None = None) -> list[Job]:
        """The next `limit` jobs, newest first, behind the one created at `after[0]` with the id `after[1]`."""
        query = self._all().order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        for column, value in ((jobs.c.state, wanted.state), (jobs.c.tenant, wanted.tenant)):
            if value is not None:
                query = query.where(column == value)
        if wanted.target is not None:
            query = query.where(targets.c.key == self._key(wanted.target))
        if after is not None:
            time, last = after
            older = sa.and_(jobs.c.created_at == time, jobs.c.id < last)
            query = query.where(sa.or_(jobs.c.created_at < time, older))
        with self._database.read() as connection:
            return [self._open(row) for row in connection.execute(query)]

    def counts(self) -> dict[State, int]:
        """How many jobs there are in each state; states without any are left out."""
        query = sa.select(jobs.c.state, sa.func.count()).group_by(jobs.c.state)
        with self._database.read() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def claim(self, runner: str, now: float, lease: float) -> Job | None:
        """The oldest job of the queue, now `runner`'s until `lease`; None: there is none."""
        waiting = sa.select(jobs.c.id).where(jobs.c.state == "queued").order_by(jobs.c.created_at, jobs.c.id)
        taken = {"state": "running", "runner": runner, "lease": lease, "started_at": now}
        with self._database.write() as connection:
            for job_id in connection.scalars(waiting.limit(16)).all():
                mine = sa.and_(jobs.c.id == job_id, jobs.c.state == "queued")
                if connection.execute(jobs.update().where(mine).values(taken)).rowcount:
                    return self._get(connection, job_id)
        return None

    def take_over(
        self, runner: str, now: float, lease: float, here: Iterable[str], grace: float
    ) -> Job | None:
        """A job whose runner did not renew its lease, now `runner`'s; None: there is none. Of those that are not
        `here`, in whose machine's folders their work lies, only one that nobody took for `grace` seconds more."""
        lost = sa.and_(
            jobs.c.state == "running",
            sa.or_(sa.and_(jobs.c.lease <= now, jobs.c.id.in_(list(here))), jobs.c.lease <= now - grace),
        )
        with self._database.write() as connection:
            for job_id in connection.scalars(sa.select(jobs.c.id).where(lost).limit(16)).all():
                taken = jobs.update().where(jobs.c.id == job_id, lost).values(runner=runner, lease=lease)
                if connection.execute(taken).rowcount:
                    return self._get(connection, job_id)
        return None

    def renew(
        self, job: Job, lease: float, *, progress: float, report: Report, version: int | None = None
    ) -> bool:
        """Keep the job until `lease`; False: it is not this runner's any more, and its work must end."""
        values: dict[str, Any] = {"lease": lease, "progress": progress}
        values["sealed_report"] = self._seal(job.id, report)
        if version is not None:
            values["version"] = version
        return self._update_own(job, values)

    def finish(
        self,
        job: Job,
        state: State,
        now: float,
        *,
        report: Report,
        artifact: str | None = None,
        attached: bool | None = None,
    ) -> bool:
        """The job has ended; False: it was not this runner's any more, and stays as it is."""
        values: dict[str, Any] = {"state": state, "ended_at": now, "artifact": artifact, "attached": attached}
        values |= {"sealed_report": self._seal(job.id, report), **self._ended(job)}
        if state == "succeeded":
            values["progress"] = 1.0
        return self._update_own(job, values)

    def cancel(self, job_id: str, now: float) -> bool:
        """End a job that has not ended; False: it had ended before."""
        with self._database.write() as connection:
            job = self._get(connection, job_id)
            unfinished = sa.and_(jobs.c.id == job_id, jobs.c.state.in_(UNFINISHED))
            values = {"state": "cancelled", "ended_at": now, **self._ended(job)}
            cancelled = connection.execute(jobs.update().where(unfinished).values(values)).rowcount > 0
            if cancelled:
                self._audit.done(connection, "jobs.cancel", subject=job_id)
            return cancelled

    def delete(self, job_id: str) -> bool:
        """Forget a job that has ended; whether there was one."""
        ended = sa.and_(jobs.c.id == job_id, jobs.c.state.not_in(UNFINISHED))
        with self._database.write() as connection:
            known = connection.execute(jobs.delete().where(ended)).rowcount > 0
            if known:
                self._audit.done(connection, "jobs.delete", subject=job_id)
            return known

    def unfinished(self, job_ids: Iterable[str]) -> set[str]:
        """Those of `job_ids` that have not ended."""
        query = sa.select(jobs.c.id).where(jobs.c.id.in_(list(job_ids)), jobs.c.state.in_(UNFINISHED))
        with self._database.read() as connection:
            return set(connection.scalars(query))

    def artifacts_of(self, target_id: str) -> set[str]:
        """Digests of all that was trained for a target."""
        query = sa.select(jobs.c.artifact).join(targets, targets.c.uid == jobs.c.uid)
        query = query.where(targets.c.key == self._key(target_id), jobs.c.artifact.is_not(None))
        with self._database.read() as connection:
            return set(connection.scalars(query))

    def _update_own(self, job: Job, values: Mapping[str, Any]) -> bool:
        own = sa.and_(jobs.c.id == job.id, jobs.c.state == "running", jobs.c.runner == job.runner)
        with self._database.write() as connection:
            return connection.execute(jobs.update().where(own).values(dict(values))).rowcount > 0

    def _ended(self, job: Job) -> dict[str, Any]:
        """An ended job belongs to nobody and keeps no examples."""
        kept = replace(job.request, forget=None, retain=None, perturbed=None)
        return {"runner": None, "lease": None, "sealed_request": self._seal(job.id, kept)}

    def _get(self, connection: sa.Connection, job_id: str) -> Job:
        row = connection.execute(self._all().where(jobs.c.id == job_id)).one_or_none()
        if row is None:
            raise NotFound("There is no such job.", param="id")
        return self._open(row)

    @staticmethod
    def _all() -> sa.Select[Any]:
        return sa.select(jobs, targets.c.key, targets.c.sealed_id).join(targets, targets.c.uid == jobs.c.uid)

    def _open(self, row: sa.Row) -> Job:
        values = {name: getattr(row, name) for name in Job.__slots__ if name in jobs.c}
        request = self._secrets.open(row.sealed_request, label=self._label(row.id, Request))
        given = {name: request.get(name) for name in ("forget", "retain", "perturbed")}
        sets = {name: None if rows is None else tuple(rows) for name, rows in given.items()}
        report = {}
        if row.sealed_report is not None:
            report = self._secrets.open(row.sealed_report, label=self._label(row.id, Report))
        return Job(
            **values,
            target=self._secrets.open(row.sealed_id, label=f"id:{row.key}"),
            request=Request(**{**request, **sets, "adapters": tuple(request.get("adapters", ()))}),
            report=Report(tuple(report.get("log", ())), report.get("error")),
        )

    def _seal(self, job_id: str, content: Request | Report) -> bytes:
        values = {name: getattr(content, name) for name in content.__slots__}
        return self._secrets.seal(values, label=self._label(job_id, type(content)))

    @staticmethod
    def _label(job_id: str, part: type) -> str:
        return f"job:{part.__name__.lower()}:{job_id}"

    def _key(self, target_id: str) -> str:
        return self._secrets.digest("target-id", target_id)
