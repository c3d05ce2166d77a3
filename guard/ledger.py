"""The targets in memory: compiled, gathered in one snapshot, changed in one place.

`Ledger` blocks and is not for concurrent writers: `Register` calls it from a single thread. Readers on any
thread take `state`, one immutable reference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal

from guard.errors import BadRequest, GuardUnavailable, LetheError, NotFound, StartupError
from guard.library import Held, Library
from guard.snapshot import BuildGate, Compile, Compiled, Enforced, Snapshot, ladder_of, watches_of
from guard.specs import RESERVED_IDS, belongs
from guard.store import Store
from guard.store.targets import Write
from guard.targets import StoredTarget, TargetSpec, slug_of

logger = logging.getLogger(__name__)

TargetState = Literal["pending", "active", "failed", "expired"]

FEW = 32  # targets that are calibrated before an import or a start ends; of more, all wait for it
MANY = 1_000  # registered targets, beside which a single one takes longer to calibrate than a write may


@dataclass(frozen=True, slots=True)
class Failed:
    """A stored target that could not be compiled at start and whose policy says to go on without it."""

    stored: StoredTarget
    error: str


Entry = Enforced | Failed


@dataclass(frozen=True, slots=True)
class Rollback:
    """The snapshot that is in force, and the ids of targets that came back, became what they were, or went."""

    snapshot: int
    created: list[str]
    updated: list[str]
    deleted: list[str]


@dataclass(frozen=True, slots=True)
class State:
    """All stored targets, and the snapshot made of those in force."""

    snapshot: Snapshot
    entries: Mapping[str, Entry]


class Ledger:
    """`followed` is the number of the last change in the store up to which all changes, those of other processes too,
    are in force here; a write of this process alone may already have given `state` a higher one."""

    def __init__(
        self,
        store: Store,
        library: Library,
        compile_: Compile,
        build_gate: BuildGate,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._library = library
        self._compile = compile_
        self._build_gate = build_gate
        self._clock = clock
        self._given_up: set[tuple[str, int]] = set()
        self.followed = 0
        self.state = self._gather({}, lambda: 0)

    def load(self) -> None:
        """Compile what is stored. All of it was accepted once, so nothing is refused for its background rate.

        Raises:
            StartupError: a target cannot be enforced, and its policy does not allow to go on without it.
        """
        entries: dict[str, Entry] = {}
        before: list[Compiled] = []
        stored = self._store.targets.changes(-1)
        for digest in filter(self._library.withdraw, stored.erased):
            self._library.erase(digest)
        in_order = sorted(stored.written, key=lambda target: target.updated_at)
        for target in in_order:  # as they were written: each was compiled beside those before it
            try:
                enforced = self._enforce(target, before, force=True, pooled=len(in_order) > FEW)
                before.append(enforced.compiled)
                entries[target.id] = enforced
            except Exception as error:
                entries[target.id] = self._excused(target, error)
        self.state = self._gather(entries, lambda: stored.number)
        self.followed = stored.number

    def follow(self) -> None:
        """Enforce what other processes have changed since.

        Raises:
            GuardUnavailable: the store does not answer, was set back, or holds a target that cannot be enforced here
                and whose policy does not allow to go on without it. All stays as it was.
        """
        changes = self._store.targets.changes(self.followed)
        if changes.number == self.followed:
            return
        if changes.number < self.followed:
            raise GuardUnavailable(
                "The store was set back to an earlier state; restart this server.", reason="store"
            )
        leaving = [digest for digest in changes.erased if self._library.withdraw(digest)]
        self._library.arrive()
        entries = {name: self._renewed(entry) for name, entry in self._without(changes.gone).items()}
        written = [target for target in changes.written if not self._holds(target)]
        for target in written:
            others = _compiled({name: entry for name, entry in entries.items() if name != target.id})
            entries[target.id] = self._taken(target, others, pooled=len(written) > FEW)
        if self._differs(entries):
            ahead = changes.number <= self.state.snapshot.version  # by what only this process wrote
            number = self._store.targets.count_change() if ahead else changes.number
            self.state = self._gather(entries, lambda: number)
        self.followed = changes.number
        for digest in leaving:
            self._library.erase(digest)

    def find(self, target_id: str, tenant: str | None = None) -> Entry:
        """Raises NotFound: there is no such target, or not for this tenant."""
        entry = self.state.entries.get(target_id)
        if entry is None or not belongs(entry.stored.spec, tenant):
            raise NotFound(f"There is no target '{target_id}'.", param="id")
        return entry

    def stored(self, target_id: str) -> StoredTarget | None:
        entry = self.state.entries.get(target_id)
        return entry.stored if entry else None

    def prepare(
        self, wanted: Mapping[str, TargetSpec], *, force: Callable[[str], bool]
    ) -> Iterator[Enforced | LetheError]:
        """For each target, in order, what enforcing it needs or why it is refused. Nothing is stored."""
        versions = self._store.targets.next_versions(wanted)
        now = datetime.fromtimestamp(self._clock(), UTC)
        kept = dict(self.state.entries)
        pooled = len(wanted) > FEW or len(kept) > MANY
        for target_id, spec in wanted.items():
            known = self.stored(target_id)
            target = StoredTarget(
                id=target_id,
                spec=spec,
                version=versions[target_id],
                created_at=known.created_at if known else now,
                updated_at=now,
            )
            others = _compiled({name: entry for name, entry in kept.items() if name != target_id})
            try:
                enforced = self._enforce(target, others, force=force(target_id), pooled=pooled)
                _demand_places(enforced)
                kept[target_id] = enforced
                yield enforced
            except LetheError as error:
                yield error

    def write(self, prepared: Sequence[Enforced], *, exact: bool = False) -> None:
        """Store and enforce what `prepare` gave; all of it or nothing.

        Raises:
            PreconditionFailed: another process has written one of them meanwhile; with `exact`, also when that was
                before `prepare` and is not known here.
        """
        writes = [
            Write(e.stored.id, e.spec, e.version, self._seen(e.stored.id) if exact else None)
            for e in prepared
        ]
        now = prepared[0].stored.updated_at.timestamp()
        entries = {**self.state.entries, **{e.stored.id: e for e in prepared}}
        self._swap(entries, lambda: self._store.targets.put(writes, now))

    def roll_back(self, number: int, *, dry_run: bool) -> Rollback:
        """Store and enforce the targets as they were at snapshot `number`, as new versions; all of it or nothing.

        Raises:
            NotFound: there was no such snapshot, or it is older than the history that is kept.
            BadRequest: a target cannot be enforced as it was.
            PreconditionFailed: another process has changed targets meanwhile.
        """
        past = self._store.targets.at(number)
        known = {name: entry.stored for name, entry in self.state.entries.items()}
        wanted = {
            name: target.spec
            for name, target in past.targets.items()
            if name not in known or known[name].spec != target.spec
        }
        deleted = sorted(known.keys() - past.targets.keys())
        created = sorted(wanted.keys() - known.keys())
        plan = Rollback(self.state.snapshot.version, created, sorted(wanted.keys() & known.keys()), deleted)
        prepared = [
            _as_it_was(name, one) for name, one in zip(wanted, self.prepare(wanted, force=_all), strict=True)
        ]
        if dry_run or not (wanted or deleted):
            return plan
        now = self._clock()
        writes = [Write(e.stored.id, e.spec, e.version, self._seen(e.stored.id)) for e in prepared]
        kept = {name: entry for name, entry in self.state.entries.items() if name not in deleted}
        versions = {name: target.version for name, target in known.items()}
        self._swap(
            {**kept, **{e.stored.id: e for e in prepared}},
            lambda: self._store.targets.roll_back(number, writes, deleted, versions, past, now),
        )
        return replace(plan, snapshot=self.state.snapshot.version)

    def delete(self, target_id: str, *, purge: bool, exact: bool = False) -> None:
        """Raises NotFound: there is nothing to delete. `exact` is that of `write`."""
        entries = {name: entry for name, entry in self.state.entries.items() if name != target_id}
        past = self._store.targets.history(target_id) if purge else []
        trained = self._store.jobs.artifacts_of(target_id) if purge else set()
        seen = self._seen(target_id) if exact else None
        kept = {digest for entry in entries.values() for digest in _named(entry.stored.spec)}
        erased = trained.union(*(_named(target.spec) for target in past)) - kept
        self._swap(
            entries,
            lambda: self._store.targets.delete(
                target_id, self._clock(), purge=purge, seen=seen, erase=erased
            ),
        )
        if purge:
            for digest in filter(self._library.withdraw, erased):
                self._library.erase(digest)
            self._store.targets.erase_traces()

    def erase_artifact(self, digest: str) -> bool:
        """Let no target use the artifact any more, here or elsewhere, and erase it; whether it was here."""
        if not self._library.withdraw(digest):
            return False
        entries = {name: self._renewed(entry) for name, entry in self.state.entries.items()}
        self._swap(entries, lambda: self._store.targets.erase_artifact(digest))
        self._library.erase(digest)
        return True

    def admit_artifact(self, digest: str) -> None:
        """Load an artifact that was added to the store, and tell other processes.

        Raises:
            NotFound: the store does not hold it.
            ArtifactError: it does not fit this model, or changes nothing.
        """
        try:
            self._library.load(digest)
            self._store.targets.readmit_artifact(digest)
        finally:
            self.refresh()  # after a refusal, targets tell why they wait

    def refresh(self) -> bool:
        """Look again at what waits and what is ready, after artifacts came or went; whether a ladder changed."""
        entries = {name: self._renewed(entry) for name, entry in self.state.entries.items()}
        if not self._differs(entries):
            return False
        self._swap(entries, self._store.targets.count_change)
        return True

    def calibrated(self, until: Callable[[int], bool]) -> list[tuple[Enforced, Enforced]]:
        """The next targets that go by pooled thresholds, as they are and calibrated, until `until` says so of their
        number. Changes nothing, so it may run beside one that writes; `adopt` puts them in force."""
        made: list[tuple[Enforced, Enforced]] = []
        entries = self.state.entries
        for name, entry in entries.items():
            if until(len(made)):
                break
            if not isinstance(entry, Enforced) or not entry.pooled or (name, entry.version) in self._given_up:
                continue
            others = _compiled({other: of for other, of in entries.items() if other != name})
            try:
                compiled = self._compile(name, entry.version, entry.spec, others, force=True)
                compiled = _with(compiled, entry.held)
            except Exception:
                self._given_up.add((name, entry.version))
                logger.exception("a target could not be calibrated; it goes on by the thresholds of others")
                continue
            made.append((entry, replace(entry, compiled=compiled)))
        return made

    def adopt(self, made: Sequence[tuple[Enforced, Enforced]]) -> None:
        """Enforce what `calibrated` gave, but for what was written meanwhile. The new state has a new number."""
        entries = dict(self.state.entries)
        for before, after in made:
            now = entries.get(before.stored.id)
            if isinstance(now, Enforced) and now.compiled is before.compiled:
                entries[now.stored.id] = replace(now, compiled=after.compiled)
        self._swap(entries, self._store.targets.count_change)

    def sweep(self) -> None:
        """Unload what methods prepared for targets that are gone, changed or were refused."""
        found = (entry for entry in self.state.entries.values() if isinstance(entry, Enforced))
        self._library.sweep({standing.artifact for entry in found for standing in entry.standings})

    def expire(self) -> bool:
        """Take expired targets out of force; whether there were any. The new state has a new number."""
        if not self.any_expired():
            return False
        self._swap(self.state.entries, self._store.targets.count_change)
        return True

    def any_expired(self) -> bool:
        now = self.now()
        return any(entry.stored.expired(now) for entry in self.state.snapshot.targets.values())

    def state_of(self, entry: Entry) -> TargetState:
        if entry.stored.expired(self.now()):
            return "expired"
        if isinstance(entry, Failed):
            return "failed"
        return "pending" if entry.waits else "active"

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def free_id(self, name: str) -> str:
        """An id for a new target of this name."""
        slug = slug_of(name)
        taken = self.state.entries.keys() | RESERVED_IDS
        candidate, number = slug, 2
        while candidate in taken:
            suffix = f"-{number}"
            candidate, number = slug[: 64 - len(suffix)] + suffix, number + 1
        return candidate

    def _seen(self, target_id: str) -> int:
        known = self.stored(target_id)
        return known.version if known else 0

    def _enforce(
        self, target: StoredTarget, others: Sequence[Compiled], *, force: bool, pooled: bool
    ) -> Enforced:
        rungs = ladder_of(target.spec)
        compiled = self._compile(target.id, target.version, target.spec, others, force=force, pooled=pooled)
        held = tuple(map(self._library.held, target.spec.detectors))
        standings = tuple(self._library.stand(rung, target.spec) for rung in rungs)
        return Enforced(target, _with(compiled, held), standings, held)

    def _renewed(self, entry: Entry) -> Entry:
        if isinstance(entry, Failed):
            return entry
        standings = tuple(self._library.renew(standing, entry.spec) for standing in entry.standings)
        held = tuple(map(self._library.held, entry.spec.detectors))
        if held != entry.held:
            entry = replace(entry, compiled=_with(entry.compiled, held), held=held)
        return entry if standings == entry.standings else replace(entry, standings=standings)

    def _holds(self, target: StoredTarget) -> bool:
        """Whether this version is known here: this process wrote it, or has followed it before."""
        known = self.stored(target.id)
        return known is not None and known.version == target.version

    def _without(self, gone: Set[str]) -> dict[str, Entry]:
        """All entries but those whose ids have these keyed digests."""
        if not gone:
            return dict(self.state.entries)
        key = self._store.targets.key
        return {name: entry for name, entry in self.state.entries.items() if key(name) not in gone}

    def _taken(self, target: StoredTarget, others: Sequence[Compiled], *, pooled: bool) -> Entry:
        """What another process has stored: accepted there, so not refused for its background rate here."""
        try:
            return self._enforce(target, others, force=True, pooled=pooled)
        except Exception as error:
            try:
                return self._excused(target, error)
            except StartupError as refusal:
                raise GuardUnavailable(refusal.message, reason="store") from error

    def _differs(self, entries: Mapping[str, Entry]) -> bool:
        now = self.state.entries
        return entries.keys() != now.keys() or any(entry is not now[name] for name, entry in entries.items())

    def _swap(self, entries: Mapping[str, Entry], commit: Callable[[], int]) -> None:
        """Enforce `entries`, which this process has changed."""
        self.state = self._gather(entries, commit)
        if self.state.snapshot.version == self.followed + 1:  # nobody else has changed anything before
            self.followed += 1

    def _gather(self, entries: Mapping[str, Entry], commit: Callable[[], int]) -> State:
        """Build the gate first and commit last: what can fail has failed before anything is stored."""
        now = self.now()
        in_force = {
            name: entry
            for name, entry in sorted(entries.items())
            if isinstance(entry, Enforced) and entry.in_force(now)
        }
        gate = self._build_gate([entry.compiled for entry in in_force.values()])
        watches = watches_of(in_force.values())
        snapshot = Snapshot(commit(), gate, MappingProxyType(in_force), watches, now.timestamp())
        return State(snapshot, MappingProxyType(dict(entries)))

    @staticmethod
    def _excused(target: StoredTarget, error: Exception) -> Failed:
        reason = error.message if isinstance(error, LetheError) else f"{type(error).__name__}: {error}"
        if target.spec.policy.on_error != "open":
            raise StartupError(
                f"The target '{target.id}' cannot be enforced ({reason.rstrip('.')}); start the version of "
                "Lethe that stored it and change or delete the target there."
            ) from error
        logger.critical(
            "a target could not be compiled and is not enforced, as its policy on_error: open allows"
        )
        return Failed(target, reason)


def _demand_places(enforced: Enforced) -> None:
    """Raises BadRequest: a rung would act where the model has no site."""
    for standing in enforced.standings:
        if standing.misplaced:
            raise BadRequest(str(standing.reason), param="intervention.params")


def _all(_target_id: str) -> bool:
    """Whether a target is taken although it fires on background prompts: it was taken once."""
    return True


def _as_it_was(name: str, prepared: Enforced | LetheError) -> Enforced:
    if isinstance(prepared, LetheError):
        raise BadRequest(
            f"The target '{name}' cannot be enforced as it was ({prepared.message.rstrip('.')}); nothing was changed."
        )
    return prepared


def _named(spec: TargetSpec) -> set[str]:
    """Digests of the artifacts that the target names."""
    of_rungs = {rung.params["artifact"] for rung in spec.ladder() or () if rung.params.get("artifact")}
    return of_rungs.union(spec.detectors)


def _with(compiled: Compiled, held: Sequence[Held]) -> Compiled:
    """`compiled` with the heads that are there, and with no others."""
    return compiled.with_heads([one.head for one in held if one.head is not None]) if held else compiled


def _compiled(entries: Mapping[str, Entry]) -> list[Compiled]:
    """What detection made of the targets; each is evidence against every other."""
    return [entry.compiled for entry in entries.values() if isinstance(entry, Enforced)]
