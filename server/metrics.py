"""`GET /metrics`: vLLM's metrics and ours. `TABLE` holds all of ours, and every value that a label of them can have.

What a request came to is counted once, when it ends, whatever the engine had to run for it: vLLM counts the tokens of
runs that the guard gave up too, and nothing of replies that the guard gave. What is kept elsewhere anyway (the
register, the decision log, the store) is read when somebody asks for the page. No target is named.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter as Counts
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal, TypeVar, get_args

from fastapi import FastAPI
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from guard import interventions
from guard.audit import DecisionLog, action_of
from guard.context import RequestContext
from guard.errors import GuardUnavailable, LetheError, Limit, RateLimited, Reason
from guard.ledger import TargetState
from guard.library import Library
from guard.pipeline import Guard
from guard.register import Register
from guard.replica import Replica
from guard.store import Store
from guard.store.jobs import State as JobState
from guard.targets import Policy
from guard.types import Action, Mode, Site
from server.auth import Authenticator
from server.drift import Outcome, Round, Watcher
from server.routes import TABLE as ROUTES
from server.routes import Access

T = TypeVar("T")

PROBE_SECONDS = 2.0
SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder where processes count together, which vLLM sets where several serve."""
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store says: the number of the newest state of targets, how many jobs there are by state, and how many
    servers have that state in force."""

    snapshot: int
    jobs: Mapping[JobState, int]
    replicas: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where numbers are kept that a page shows. `ready` and `stored` are asked for anew; None: the store is away."""

    register: Register
    guard: Guard
    log: DecisionLog
    library: Library
    store: Store
    replica: Replica
    authenticator: Authenticator
    drift: Watcher | None
    ready: bool = False
    stored: Stored | None = None


Read = Callable[[Sources], Mapping[Any, float] | None]
"""A number for each tuple of label values, in the order of the metric's labels; None where there are none now."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: its name (with the unit), what it tells, and every value that its labels can have beside `other`.

    With `read` its numbers are kept elsewhere: a gauge is read for each page, a counter catches up with them as
    requests end. Without, they are counted here. `buckets` are those of a histogram, in its unit.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    read: Read | None = None
    buckets: tuple[float, ...] = ()

    @property
    def series(self) -> Iterator[tuple[str, ...]]:
        """Every combination of label values."""
        return product(*self.labels.values())


def _one(read: Callable[[Sources], float]) -> Read:
    """The reading of a metric without labels."""
    return lambda of: {(): read(of)}


def _stored(read: Callable[[Stored], Mapping[Any, float]]) -> Read:
    """The reading of a metric that only the store can tell."""
    return lambda of: read(of.stored) if of.stored else None


def _watched(read: Callable[[Watcher], float]) -> Read:
    """The reading of a metric that there is where probes are watched."""
    return lambda of: {(): read(of.drift)} if of.drift else None


def _probed(read: Callable[[Round], float | None]) -> Read:
    """The reading of a metric that the latest round of probes can tell."""

    def told(of: Sources) -> Mapping[Any, float] | None:
        found = read(of.drift.last) if of.drift and of.drift.last else None
        return None if found is None else {(): found}

    return told


ACTIONS, SITES, REASONS = get_args(Action), get_args(Site), get_args(Reason)
JUDGED = (*(r.path for r in ROUTES if r.generates or r.access is Access.CHECK), OTHER)
METHODS = (*interventions.TABLE, "output_filter", OTHER)
POLICIES = get_args(Policy.model_fields["output"].annotation)

TABLE: tuple[Metric, ...] = (
    Metric(
        "counter",
        "lethe_requests_total",
        "Judged requests that ended, by the strictest verdict on them.",
        {"route": JUDGED, "action": ACTIONS},
    ),
    Metric(
        "histogram",
        "lethe_request_seconds",
        "Time from a judged request to the end of its answer.",
        {"action": ACTIONS},
        buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
    ),
    Metric(
        "histogram",
        "lethe_first_byte_seconds",
        "Time from a judged request that streams to the first byte of its answer.",
        {"action": ACTIONS},
        buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    ),
    Metric(
        "histogram",
        "lethe_detection_seconds",
        "Time to judge one prompt: detection, decision and plan.",
        buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 60),
    ),
    Metric(
        "gauge",
        "lethe_judging",
        "Prompts that are being judged or wait for it; detection.queue is the most.",
        read=_one(lambda of: of.guard.judging),
    ),
    Metric(
        "counter",
        "lethe_interventions_total",
        "Requests to which a method was applied; output_filter is the guard of answers.",
        {"method": METHODS},
    ),
    Metric(
        "counter",
        "lethe_output_events_total",
        "Forbidden texts found in answers, by what was said and what was done.",
        {"said": ("name", "answer", "meaning"), "action": POLICIES},
    ),
    Metric("counter", "lethe_tools_withheld_total", "Tools that were taken out of requests."),
    Metric("counter", "lethe_shadow_matches_total", "Requests that a target in shadow mode matched."),
    Metric(
        "counter",
        "lethe_edit_positions_total",
        "Token positions of edits: planned, computed with the edit, and served from the request's own cache.",
        {"site": SITES, "count": ("planned", "applied", "from_cache")},
    ),
    Metric(
        "counter",
        "lethe_unavailable_total",
        "Requests that the guard could not vouch for: 503, or an answer that broke off.",
        {"reason": REASONS},
    ),
    Metric(
        "counter",
        "lethe_limited_total",
        "Requests answered 429, by the limit of their tenant that was reached.",
        {"limit": get_args(Limit)},
    ),
    Metric(
        "counter",
        "lethe_admin_denied_total",
        "Requests to the admin API without a known key (unauthorized) or with one whose role may not (forbidden).",
        {"reason": ("unauthorized", "forbidden")},
    ),
    Metric(
        "counter",
        "lethe_bypasses_total",
        "Judgements that failed and were passed over, as policy.on_error: open says.",
        read=_one(lambda of: of.guard.bypasses),
    ),
    Metric(
        "counter",
        "lethe_decisions_dropped_total",
        "Decisions that are missing in the decision log.",
        read=_one(lambda of: of.log.dropped),
    ),
    Metric(
        "gauge",
        "lethe_ready",
        "1 if a probe of readiness, made for this page, succeeded.",
        read=_one(lambda of: of.ready),
    ),
    Metric(
        "gauge",
        "lethe_snapshot_version",
        "Number of the last change in the store up to which all are in force here.",
        read=_one(lambda of: of.register.followed),
    ),
    Metric(
        "gauge",
        "lethe_snapshot_timestamp_seconds",
        "When the state of targets that is enforced was put in force here, since the epoch.",
        read=_one(lambda of: of.register.snapshot.made_at),
    ),
    Metric(
        "gauge",
        "lethe_snapshot_age_seconds",
        "Time since the store confirmed that the state enforced here is current.",
        read=_one(lambda of: of.replica.age),
    ),
    Metric(
        "gauge",
        "lethe_replicas",
        "Servers of the store that may serve: those that have its newest state in force, and those that do not.",
        {"state": ("current", "behind")},
        read=_stored(lambda stored: {(state,): n for state, n in stored.replicas.items()}),
    ),
    Metric("gauge", "lethe_store_up", "1 if the store answers.", read=_one(lambda of: of.stored is not None)),
    Metric(
        "gauge",
        "lethe_store_snapshot_version",
        "Number of the newest state of targets in the store.",
        read=_stored(lambda stored: {(): stored.snapshot}),
    ),
    Metric(
        "gauge",
        "lethe_targets",
        "Targets by state and mode.",
        {"state": get_args(TargetState), "mode": get_args(Mode)},
        read=lambda of: of.register.census(),
    ),
    Metric(
        "gauge",
        "lethe_targets_expiring",
        "Enforced targets that expire within 7 days.",
        read=_one(lambda of: len(of.register.expiring())),
    ),
    Metric(
        "gauge",
        "lethe_keys_expiring",
        "API keys that expire within 7 days and have no successor.",
        read=_one(lambda of: len(of.authenticator.expiring())),
    ),
    Metric(
        "gauge",
        "lethe_jobs",
        "Jobs in the store by state.",
        {"state": get_args(JobState)},
        read=_stored(lambda stored: {(state,): number for state, number in stored.jobs.items()}),
    ),
    Metric(
        "gauge",
        "lethe_artifacts",
        "Artifacts that are in use, made of the targets themselves, or refused.",
        {"state": ("loaded", "prepared", "refused")},
        read=lambda of: {(state,): number for state, number in of.library.counts().items()},
    ),
    Metric(
        "counter",
        "lethe_drift_rounds_total",
        "Rounds of probes by how they ended: done, skipped for clients, or failed.",
        {"outcome": get_args(Outcome)},
        read=lambda of: {(end,): n for end, n in of.drift.rounds.items()} if of.drift else {},
    ),
    Metric(
        "gauge",
        "lethe_drift_probes",
        "Probes in the latest round that was done.",
        read=_probed(lambda last: last.probes),
    ),
    Metric(
        "gauge",
        "lethe_drift_matched_share",
        "Share of the probes that a target which is enforced matched.",
        read=_probed(lambda last: last.matched_share),
    ),
    Metric(
        "gauge",
        "lethe_drift_mean_drop",
        "What the probes' answers lost in likelihood, in nats per token, on average over those that were scored.",
        read=_probed(lambda last: last.mean_drop),
    ),
    Metric(
        "gauge",
        "lethe_drift_timestamp_seconds",
        "End of the latest round that was done, or else the server's start, since the epoch.",
        read=_watched(lambda drift: drift.last.finished_at if drift.last else drift.started_at),
    ),
    Metric(
        "gauge",
        "lethe_drift_every_seconds",
        "drift.every_s as configured.",
        read=_watched(lambda drift: drift.settings.every_s),
    ),
    Metric(
        "gauge",
        "lethe_drift_max_matched_share",
        "drift.max_matched_share as configured.",
        read=_watched(lambda drift: drift.settings.max_matched_share),
    ),
    Metric(
        "gauge",
        "lethe_drift_max_drop",
        "drift.max_drop as configured.",
        read=_watched(lambda drift: drift.settings.max_drop),
    ),
)


_BY_NAME = {metric.name: metric for metric in TABLE}


class Metrics:
    """Counts what requests came to, and writes the page. `unready` gives the reason against readiness, or None."""

    def __init__(self, sources: Sources, unready: Callable[[], Awaitable[str | None]]) -> None:
        self._sources = sources
        self._unready = unready
        self._counts = {m.name: _counted(m) for m in TABLE if m.kind != "gauge"}
        self._seen: defaultdict[tuple[str, tuple[str, ...]], float] = defaultdict(float)
        self._lock = threading.Lock()

    def count(self, context: RequestContext, status: int, finished_at: float) -> None:
        """A request has ended, `finished_at` seconds since the epoch."""
        action, admissions = action_of(context, status), context.admissions.values()
        self._add("lethe_requests_total", context.route, action)
        self._observe("lethe_request_seconds", finished_at - context.received_at, action)
        if context.stream and context.begun_at is not None:
            self._observe("lethe_first_byte_seconds", context.begun_at - context.received_at, action)
        for admission in admissions:
            self._observe("lethe_detection_seconds", admission.decision.timings_ms.get("total", 0.0) / 1000)
        if any(match.shadow for admission in admissions for match in admission.decision.matches):
            self._add("lethe_shadow_matches_total")
        for method in context.applied:
            self._add("lethe_interventions_total", method)
        for edit in context.edits:
            for part in ("planned", "applied", "from_cache"):
                self._add("lethe_edit_positions_total", edit.site, part, amount=getattr(edit, part))
        for event in context.events:
            if event["event"] == "output":
                self._add("lethe_output_events_total", event["said"], event["action"])
            elif event["event"] == "tools_withheld":
                self._add("lethe_tools_withheld_total", amount=event["withheld"])
        if context.failure is not None:
            self.failed(context.failure)
        self._catch_up()

    def failed(self, error: LetheError) -> None:
        """A request ended with `error`."""
        if isinstance(error, RateLimited):
            self._add("lethe_limited_total", error.limit)
        if error.status == GuardUnavailable.status:
            self._add("lethe_unavailable_total", getattr(error, "reason", OTHER))

    def denied(self, error: LetheError) -> None:
        """Somebody was not let into the admin API."""
        self._add("lethe_admin_denied_total", "unauthorized" if error.status == 401 else "forbidden")

    def mount(self, app: FastAPI) -> None:
        """Answer `/metrics` in the place of vLLM's own page, which is a part of ours."""
        app.router.routes[:0] = [Route(path, self._answer) for path in ("/metrics", "/metrics/")]

    async def _answer(self, request: Request) -> Response:
        ready, stored = await asyncio.gather(
            _soon(self._unready(), "late"), _soon(asyncio.to_thread(self._ask_store), None)
        )
        sources = replace(self._sources, ready=ready is None, stored=stored)
        page = await asyncio.to_thread(self._page, sources)
        return Response(page, headers={"content-type": CONTENT_TYPE_LATEST, "cache-control": "no-store"})

    def _ask_store(self) -> Stored | None:
        store = self._sources.store
        try:
            number = store.snapshot
            standings = Counts(
                "current" if one.snapshot >= number else "behind" for one in self._sources.replica.live()
            )
            return Stored(number, store.jobs.counts(), standings)
        except LetheError:
            return None

    def _page(self, sources: Sources) -> bytes:
        """What vLLM counts, and ours; of several processes that serve one engine, what all of them have counted."""
        self._catch_up()
        own = generate_latest(_Families([*self._gauges(sources)]))
        if not os.environ.get(SHARED):
            return generate_latest(REGISTRY) + generate_latest(_Families([*self._counted()])) + own
        everybody = CollectorRegistry()
        MultiProcessCollector(everybody)
        return generate_latest(everybody) + own

    def _gauges(self, sources: Sources) -> Iterator[Family]:
        for metric in TABLE:
            if metric.kind == "gauge" and metric.read is not None:
                yield _reading(metric, metric.read, sources)

    def _counted(self) -> Iterator[Family]:
        for counts in self._counts.values():
            for family in counts.collect():
                family.samples = [s for s in family.samples if not s.name.endswith("_created")]
                yield family

    def _catch_up(self) -> None:
        """What others count that have no counters of their own."""
        with self._lock:
            for metric in TABLE:
                if metric.kind == "counter" and metric.read is not None:
                    for values, number in (metric.read(self._sources) or {}).items():
                        self._add(metric.name, *values, amount=number - self._seen[metric.name, values])
                        self._seen[metric.name, values] = number

    def _add(self, name: str, *values: str, amount: float = 1) -> None:
        self._of(name, values).inc(amount)

    def _observe(self, name: str, seconds: float, *values: str) -> None:
        self._of(name, values).observe(seconds)

    def _of(self, name: str, values: tuple[str, ...]) -> Any:
        """The series of a metric; a label value that the table does not have counts as `other`."""
        if not values:
            return self._counts[name]
        sets = _BY_NAME[name].labels.values()
        known = (value if value in all_ else OTHER for value, all_ in zip(values, sets, strict=True))
        return self._counts[name].labels(*known)


@dataclass(frozen=True, slots=True)
class _Families(Collector):
    families: list[Family]

    def collect(self) -> list[Family]:
        return self.families


async def _soon(asked: Awaitable[T], otherwise: T) -> T:
    """The answer, or `otherwise` where it does not come in time: a page must not wait for what is away."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            return await asked
    except TimeoutError:
        return otherwise


def _counted(metric: Metric) -> Counter | Histogram:
    """All series from the beginning: the first event of a kind must show as an increase."""
    counts: Counter | Histogram
    if metric.kind == "histogram":
        counts = Histogram(metric.name, metric.help, metric.labels, registry=None, buckets=metric.buckets)
    else:
        counts = Counter(metric.name, metric.help, metric.labels, registry=None)
    for values in metric.series if metric.labels else ():
        counts.labels(*values)
    return counts


def _reading(metric: Metric, read: Read, sources: Sources) -> Family:
    """The metric as it is now."""
    family = GaugeMetricFamily(metric.name, metric.help, labels=[*metric.labels])
    found = read(sources)
    if found is not None:
        for values in metric.series:
            family.add_metric(values, float(found.get(values, 0)))
    return family
