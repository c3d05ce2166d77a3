"""The register: what shall be forgotten, from the request that says so to the snapshot that enforces it.

A write is validated, compiled, built into a gate, stored, and only then swapped in; when it returns, every
new request is judged by it. What fails on the way leaves store and snapshot as they were. All writes run on
one thread, in order, and a caller that goes away does not stop one half-way. Reads look at one reference.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, TypeVar, get_args

from guard import specs
from guard.errors import BadRequest, Forbidden, LetheError, NotFound, PreconditionFailed
from guard.importing import Row, json_rows, plan_import
from guard.ledger import Entry, Failed, Ledger, TargetState
from guard.library import Library, Workers
from guard.snapshot import BuildGate, Compile, Enforced, Snapshot
from guard.store import Store
from guard.targets import StoredTarget, TargetSpec, slug_of
from guard.types import Mode

logger = logging.getLogger(__name__)
T = TypeVar("T")

SOON = timedelta(days=7)
WATCH_SECONDS = 0.5
SWAP_SECONDS = 1.0  # of calibrating before what was calibrated is put in force
SWAP_SHARE = 0.01  # of all targets, likewise: every swap renews a part of what detectors share


class TargetExists(BadRequest):
    """A target of that id is there already; PUT replaces it."""

    status, code = 409, "already_exists"


@dataclass(frozen=True, slots=True)
class Precondition:
    """`If-Match` and `If-None-Match` as the client sent them."""

    if_match: str | None = None
    if_none_match: str | None = None

    @property
    def given(self) -> bool:
        return self.if_match is not None or self.if_none_match is not None

    def check(self, etag: str | None) -> None:
        """Raises PreconditionFailed unless a target with this etag (None: no target) may be written."""
        if self.if_match is not None and not _lists(self.if_match, etag):
            raise PreconditionFailed("The target was changed since you read it; read it again and repeat.")
        if self.if_none_match is not None and _lists(self.if_none_match, etag):
            raise PreconditionFailed("The target exists already; leave out If-None-Match to replace it.")


def etag_of(snapshot: int) -> str:
    return f'"{snapshot}"'


def _lists(header: str, etag: str | None) -> bool:
    return etag is not None and (header.strip() == "*" or etag in (tag.strip() for tag in header.split(",")))


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a write happens: the tenant that the key is confined to, and what it demands."""

    tenant: str | None = None
    precondition: Precondition = Precondition()
    force: bool = False


ANYONE = Caller()


class Register:
    """Holds the current snapshot and is the only writer of targets.

    `library` holds the artifacts that their rungs need; `compile_` and `build_gate` are detection's; `clock` gives
    seconds since the epoch; `defaults` fill what a target leaves out.
    """

    def __init__(
        self,
        store: Store,
        library: Library,
        compile_: Compile,
        build_gate: BuildGate,
        *,
        clock: Callable[[], float] = time.time,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self._library = library
        self._ledger = Ledger(store, library, compile_, build_gate, clock)
        self._defaults = dict(defaults or {})
        self._writer = ThreadPoolExecutor(1, "lethe-register")
        self._calibrator = ThreadPoolExecutor(1, "lethe-calibrator")
        self._closing = threading.Event()

    @property
    def snapshot(self) -> Snapshot:
        """What is enforced now; keep the reference for as long as one request needs one state."""
        return self._ledger.state.snapshot

    @property
    def followed(self) -> int:
        """The number of the store's last change up to which all of them are in force here."""
        return self._ledger.followed

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What fills the fields that a new target leaves out, where this installation says so."""
        return self._defaults

    async def load(self) -> None:
        """Compile all stored targets and enforce them; to be called once, before the first request.

        Raises:
            StartupError: one of them cannot be enforced, and its policy does not allow to go on without it.
        """
        await self._run(self._ledger.load)

    def follow(self) -> None:
        """Put in force what other processes have changed since. Blocks.

        Raises:
            GuardUnavailable: that cannot be known or done; all stays as it was.
        """
        self._writer.submit(self._swept, self._ledger.follow).result()

    async def attach(self, workers: Workers) -> None:
        """The engine runs: load all artifacts into its workers, and put the rungs that waited for them in force."""

        def work() -> None:
            self._library.attach(workers)
            self._ledger.refresh()

        await self._run(work)

    async def detach(self) -> None:
        """The engine is about to end."""
        await self._run(self._library.detach)

    async def load_artifact(self, digest: str) -> dict[str, Any]:
        """Load an artifact that was added to the store; its row. Rungs that waited for it are in force.

        Raises:
            NotFound: the store does not hold it.
            ArtifactError: it does not fit this model, or changes nothing.
        """

        def work() -> dict[str, Any]:
            self._ledger.admit_artifact(digest)
            return next(row for row in self._library.rows() if row["digest"] == digest)

        return await self._run(work)

    async def remove_artifact(self, digest: str) -> None:
        """Erase an artifact from the workers and the store. Rungs that name it wait from now on.

        Raises:
            NotFound: the store does not hold it.
        """

        def work() -> None:
            if not self._ledger.erase_artifact(digest):
                raise NotFound(f"There is no artifact {digest[:16]} here.", param="digest")

        await self._run(work)

    async def artifacts(self, tenant: str | None = None) -> list[dict[str, Any]]:
        """The store's artifacts by digest; for a tenant, those that its own targets name."""

        def work() -> list[dict[str, Any]]:
            rows = list(self._library.rows())
            if tenant is None:
                return rows
            entries = (entry for entry in self._entries(tenant) if isinstance(entry, Enforced))
            named = {one["artifact"] for entry in entries for one in _artifacts(entry)}
            return [row for row in rows if row["digest"] in named]

        return await self._run(work)

    async def put(
        self, target_id: str, raw: Mapping[str, Any], caller: Caller = ANYONE
    ) -> tuple[dict[str, Any], bool]:
        """Write a target; its view, and whether it is new."""
        if not specs.valid_id(target_id):
            raise BadRequest("The id of a target is 1 to 64 of a-z, 0-9 and '-'.", param="id")
        raw, forced = specs.take_force(raw)
        spec = specs.read_spec(raw, target_id, self._defaults)

        def work() -> tuple[dict[str, Any], bool]:
            known = self._ledger.stored(target_id)
            _permit(known, spec, caller)
            exact = caller.precondition.given
            return self._write(target_id, spec, force=caller.force or forced, exact=exact), known is None

        return await self._run(work)

    async def create(self, raw: Mapping[str, Any], caller: Caller = ANYONE) -> dict[str, Any]:
        """Write a target that must be new; without an id it gets one from its name.

        Raises:
            TargetExists: the given id is taken.
        """
        raw, forced = specs.take_force(raw)
        given = specs.read_spec(raw, None, self._defaults)

        def work() -> dict[str, Any]:
            target_id = given.id or self._ledger.free_id(given.name)
            if self._ledger.stored(target_id):
                raise TargetExists(f"There is a target '{target_id}' already; PUT replaces it.", param="id")
            spec = specs.read_spec(raw, target_id, self._defaults)
            _permit(None, spec, caller)
            return self._write(target_id, spec, force=caller.force or forced, exact=True)

        return await self._run(work)

    async def patch(
        self, target_id: str, changes: Mapping[str, Any], caller: Caller = ANYONE
    ) -> dict[str, Any]:
        """Lay `changes` over a target (RFC 7396); with detection unchanged its rate is not judged again."""
        changes, forced = specs.take_force(changes)

        def work() -> dict[str, Any]:
            known = self._ledger.find(target_id, caller.tenant).stored
            spec = specs.read_spec(specs.merge(known.spec, changes), target_id, {})
            _permit(known, spec, caller)
            accepted = specs.same_detection(known.spec, spec)
            return self._write(target_id, spec, force=caller.force or forced or accepted, exact=True)

        return await self._run(work)

    async def delete(self, target_id: str, *, purge: bool = False, caller: Caller = ANYONE) -> None:
        """Stop enforcing a target; with `purge`, erase its content everywhere, past versions included.

        Raises:
            NotFound: there is no such target; for a purge, also no deleted one.
        """

        def work() -> None:
            known = self._ledger.stored(target_id)
            if known is not None or caller.tenant is not None or not purge:
                self._ledger.find(target_id, caller.tenant)
            caller.precondition.check(known.etag if known else None)
            self._ledger.delete(target_id, purge=purge, exact=caller.precondition.given)

        await self._run(work)

    async def roll_back(
        self, number: int, *, dry_run: bool = False, caller: Caller = ANYONE
    ) -> dict[str, Any]:
        """Make the targets what they were at snapshot `number`, in one transaction and one swap; what was purged since
        stays purged. With `dry_run`, only tell what would change.

        Raises:
            Forbidden: the caller is confined to a tenant, and this is about the targets of all.
        """

        def work() -> dict[str, Any]:
            if caller.tenant is not None:
                raise Forbidden("A key that belongs to a tenant may not roll back the targets of all.")
            self._ledger.follow()
            caller.precondition.check(etag_of(self.snapshot.version))
            done = self._ledger.roll_back(number, dry_run=dry_run)
            return {"restored": number, "dry_run": dry_run, **asdict(done)}

        return await self._run(work)

    async def validate(self, raw: Mapping[str, Any], caller: Caller = ANYONE) -> list[dict[str, Any]]:
        """What would be refused, and why: field, message and code of each problem. Nothing is stored. What speaks
        against the whole is only told when every field is right."""
        if found := specs.faults({key: of for key, of in raw.items() if key != "force"}, self._defaults):
            return [{"field": field, "message": told, "code": BadRequest.code} for field, told in found]

        def work() -> None:
            rest, forced = specs.take_force(raw)
            spec = specs.read_spec(rest, None, self._defaults)
            specs.demand_tenant(spec, caller.tenant)
            self._prepare(spec.id or slug_of(spec.name), spec, force=caller.force or forced)

        try:
            await self._run(work)
        except LetheError as error:
            if error.status >= 500:
                raise
            return [{"field": error.param, "message": error.message, "code": error.code, **error.details}]
        return []

    async def import_lines(
        self,
        lines: Iterable[str | bytes],
        *,
        atomic: bool = False,
        dry_run: bool = False,
        caller: Caller = ANYONE,
    ) -> dict[str, Any]:
        """As `import_rows`, one target per JSON line."""
        return await self.import_rows(json_rows(lines), atomic=atomic, dry_run=dry_run, caller=caller)

    async def import_rows(
        self, rows: Iterable[Row], *, atomic: bool = False, dry_run: bool = False, caller: Caller = ANYONE
    ) -> dict[str, Any]:
        """Write one target per row, in one transaction and one swap; `atomic` takes all or none, `dry_run` tells what
        would come of it and stores nothing."""
        return await self._run(lambda: self._import(rows, atomic, dry_run, caller))

    def export(self, tenant: str | None = None) -> Iterator[dict[str, Any]]:
        """Every target in the form that `import_lines` takes, by id."""
        for entry in self._entries(tenant):
            yield {**specs.written_form(entry.stored.spec), "id": entry.stored.id}

    def view(self, target_id: str, tenant: str | None = None) -> tuple[dict[str, Any], str]:
        """What reads show of a target, and its ETag."""
        entry = self._ledger.find(target_id, tenant)
        return self._render(entry), entry.stored.etag

    def views(
        self,
        *,
        limit: int = 100,
        after: str | None = None,
        tag: str | None = None,
        state: str | None = None,
        tenant: str | None = None,
        search: str | None = None,
    ) -> tuple[list[dict[str, Any]], str | None]:
        """The next `limit` targets by id behind `after`, and the id to go on behind, None at the end. `search` stands
        in the id, a name or the reference, in upper or lower case."""
        found: list[dict[str, Any]] = []
        for entry in self._entries(tenant):
            if after is not None and entry.stored.id <= after:
                continue
            if tag is not None and tag not in entry.stored.spec.tags:
                continue
            if state is not None and state != self._ledger.state_of(entry):
                continue
            if search is not None and not specs.mentions(entry.stored, search):
                continue
            if len(found) == limit:
                return found, found[-1]["id"]
            found.append(self._render(entry))
        return found, None

    def census(self) -> Counter[tuple[TargetState, Mode]]:
        """How many targets there are, by state and mode."""
        entries = self._ledger.state.entries.values()
        return Counter((self._ledger.state_of(entry), entry.stored.spec.mode) for entry in entries)

    def expiring(self, tenant: str | None = None) -> list[str]:
        """Ids of the enforced targets that expire within `SOON`, the next first."""
        now = self._ledger.now()
        ends = [
            (entry.stored.spec.expires_at, entry.stored.id)
            for entry in self._entries(tenant)
            if entry.stored.spec.mode == "enforce" and entry.stored.spec.expires_at is not None
        ]
        return [name for moment, name in sorted(ends) if now < moment <= now + SOON]

    def status(self, tenant: str | None = None) -> dict[str, Any]:
        """Counts by state, and what failed at start with its reason; for a tenant, of its own targets."""
        counts = dict.fromkeys(get_args(TargetState), 0)
        entries = list(self._entries(tenant))
        for entry in entries:
            counts[self._ledger.state_of(entry)] += 1
        failed = [{"id": e.stored.id, "error": e.error} for e in entries if isinstance(e, Failed)]
        pooled = sum(isinstance(e, Enforced) and e.pooled for e in entries)
        return {
            "snapshot": self.snapshot.version,
            "targets": counts,
            "pooled": pooled,
            "failed": failed,
            "expiring": self.expiring(tenant),
        }

    async def expire(self) -> bool:
        """Take expired targets out of force; whether there were any."""
        return self._ledger.any_expired() and await self._run(self._ledger.expire)

    async def calibrate(self) -> bool:
        """Calibrate the next targets that go by the thresholds of others, and put them in force in one swap; whether
        there were any. Writes go on beside it."""
        ends = time.monotonic() + SWAP_SECONDS
        least = SWAP_SHARE * len(self._ledger.state.entries)

        def enough(made: int) -> bool:
            return self._closing.is_set() or (made >= least and time.monotonic() >= ends)

        loop = asyncio.get_running_loop()
        made = await loop.run_in_executor(self._calibrator, self._ledger.calibrated, enough)
        if made:
            await self._run(lambda: self._ledger.adopt(made))
        return bool(made)

    async def watch(self) -> None:
        """Expire and calibrate targets until cancelled; run it beside the server."""
        await asyncio.gather(
            _again_and_again(self.expire, "an expired target could not be taken out of force"),
            _again_and_again(self.calibrate, "what was calibrated could not be put in force"),
        )

    def close(self) -> None:
        """Finish the write that runs, take no more."""
        self._closing.set()
        self._calibrator.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True, cancel_futures=True)

    async def _run(self, work: Callable[[], T]) -> T:
        context = contextvars.copy_context()  # whose act it is, for the audit trail
        return await asyncio.get_running_loop().run_in_executor(self._writer, context.run, self._swept, work)

    def _swept(self, work: Callable[[], T]) -> T:
        try:
            return work()
        finally:
            self._ledger.sweep()

    def _prepare(self, target_id: str, spec: TargetSpec, *, force: bool) -> Enforced:
        (result,) = self._ledger.prepare({target_id: spec}, force=lambda _: force)
        if isinstance(result, LetheError):
            raise result
        return result

    def _write(self, target_id: str, spec: TargetSpec, *, force: bool, exact: bool) -> dict[str, Any]:
        prepared = self._prepare(target_id, spec, force=force)
        self._ledger.write([prepared], exact=exact)
        return self._render(prepared)

    def _import(self, rows: Iterable[Row], atomic: bool, dry_run: bool, caller: Caller) -> dict[str, Any]:
        existing = {entry.stored.id: entry.stored for entry in self._entries(None)}
        plan = plan_import(rows, existing, self._defaults, caller.tenant)
        prepared: list[Enforced] = []
        results = self._ledger.prepare(plan.wanted, force=lambda name: caller.force or name in plan.forced)
        for target_id, result in zip(plan.wanted, results, strict=True):
            if isinstance(result, LetheError):
                plan.rejected[plan.lines[target_id]] = result
            else:
                prepared.append(result)
        if atomic and plan.rejected:
            prepared = []
        if prepared and not dry_run:
            self._ledger.write(prepared, exact=caller.precondition.given)
        updated = sum(entry.stored.id in existing for entry in prepared)
        return {"created": len(prepared) - updated, "updated": updated, "rejected": plan.report()}

    def _entries(self, tenant: str | None) -> Iterator[Entry]:
        for _, entry in sorted(self._ledger.state.entries.items()):
            if specs.belongs(entry.stored.spec, tenant):
                yield entry

    def _render(self, entry: Entry) -> dict[str, Any]:
        calibration = entry.compiled.calibration if isinstance(entry, Enforced) else {}
        view = specs.read_form(entry.stored, self._ledger.state_of(entry), calibration, _artifacts(entry))
        return {**view, "error": entry.error} if isinstance(entry, Failed) else view


async def _again_and_again(work: Callable[[], Awaitable[bool]], failure: str) -> None:
    while True:
        try:
            await work()
        except Exception:
            logger.exception("%s; trying again", failure)
        await asyncio.sleep(WATCH_SECONDS)


def _artifacts(entry: Entry) -> list[dict[str, Any]]:
    """The rungs that need an artifact or wait for something and the trained detectors, and how each stands."""
    if isinstance(entry, Failed):
        return []
    of_rungs = [
        {
            "method": standing.written.method,
            "artifact": standing.artifact,
            "state": "pending" if standing.ready is None else "ready",
            "reason": standing.reason,
        }
        for standing in entry.standings
        if standing.ready is None or standing.artifact is not None
    ]
    return of_rungs + [
        {
            "method": held.method,
            "artifact": held.digest,
            "state": "pending" if held.head is None else "ready",
            "reason": held.reason,
        }
        for held in entry.held
    ]


def _permit(known: StoredTarget | None, spec: TargetSpec, caller: Caller) -> None:
    if known is not None and not specs.belongs(known.spec, caller.tenant):
        raise Forbidden("This key may not write this target.", param="id")
    specs.demand_tenant(spec, caller.tenant)
    caller.precondition.check(known.etag if known else None)
