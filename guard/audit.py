"""The decision log: what the guard did to each request, without the request's text unless configured.

`record` only queues; one thread writes batches, so that a record can be read within a second of the
response's end and no response ever waits for a disk. A full queue drops the record, and says so.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from guard.context import RequestContext
from guard.crypto import Secrets
from guard.store.decisions import Decisions, Filter, Page, Record
from guard.types import Action, Admission, Match

logger = logging.getLogger(__name__)

WRITE_SECONDS = 0.1
RETRY_SECONDS = 1.0
PRUNE_SECONDS = 3_600.0
BATCH = 500
_SEVERITY: tuple[Action, ...] = ("allow", "intervene", "refuse")


class DecisionLog:
    """Give it finished requests, ask it for decisions. `dropped` counts what was lost to a full queue."""

    def __init__(
        self,
        decisions: Decisions,
        secrets: Secrets,
        *,
        retain_days: float = 30,
        queue_size: int = 10_000,
        text: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._decisions = decisions
        self._secrets = secrets
        self._retain_seconds = retain_days * 86_400
        self._queue_size = queue_size
        self._text = text
        self._clock = clock
        self._queue: deque[tuple[RequestContext, int, float]] = deque()
        self._lock = threading.Lock()  # one writer at a time: the thread, or a flush
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.dropped = 0

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="lethe-decisions", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is queued, then stop."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
        self.flush()

    def record(self, context: RequestContext, status: int, finished_at: float) -> bool:
        """Queue one finished request, times in seconds since the epoch. False: the queue was full."""
        if len(self._queue) >= self._queue_size:
            self.dropped += 1
            if (
                self.dropped & (self.dropped - 1) == 0
            ):  # each power of two: a stuck disk must not fill the log
                logger.error("the decision log cannot keep up: %d decisions were not recorded", self.dropped)
            return False
        self._queue.append((context, status, finished_at))
        return True

    def flush(self) -> None:
        """Write everything that is queued, now.

        Raises:
            GuardUnavailable: the store does not answer; the records stay queued.
        """
        with self._lock:
            while self._queue:
                batch = [self._queue[i] for i in range(min(BATCH, len(self._queue)))]
                self._decisions.add(list(self._rows(batch)))
                for _ in batch:
                    self._queue.popleft()

    def page(self, wanted: Filter, *, limit: int, before: int | None = None) -> Page:
        return self._decisions.page(wanted, limit=limit, before=before)

    def get(self, decision_id: str) -> dict[str, Any] | None:
        return self._decisions.get(decision_id)

    def prune(self) -> int:
        """Delete what is older than the log retains."""
        return self._decisions.prune(self._clock() - self._retain_seconds)

    def _loop(self) -> None:
        pause, next_prune = 0.0, 0.0
        while not self._stopping.wait(pause):
            pause = WRITE_SECONDS
            try:
                self.flush()
                if self._clock() >= next_prune:
                    self.prune()
                    next_prune = self._clock() + PRUNE_SECONDS
            except Exception:
                logger.exception("decisions could not be written; they stay queued")
                pause = RETRY_SECONDS

    def _rows(self, batch: Iterable[tuple[RequestContext, int, float]]) -> Iterator[Record]:
        for item in batch:
            try:
                yield self._row(*item)
            except Exception:
                self.dropped += 1  # one record that cannot be made must not hold up all that follow
                logger.exception("a decision could not be recorded")

    def _row(self, context: RequestContext, status: int, finished_at: float) -> Record:
        admissions = tuple(context.admissions.values())
        judged = (match for admission in admissions for match in admission.decision.matches)
        matches = _strongest((*context.withheld, *judged))
        action = action_of(context, status)
        body = {
            "id": context.decision_id,
            "time": datetime.fromtimestamp(context.received_at, UTC).isoformat(),
            "tenant": context.tenant,
            "model": context.model,
            "route": context.route,
            "stream": context.stream,
            "status": status,
            "action": action,
            "snapshot": max((a.decision.snapshot for a in admissions), default=None),
            "targets": [_target(match) for match in matches],
            "unread": [asdict(place) for a in admissions for place in a.decision.unread],
            "requested": _requested(admissions),
            "applied": list(dict.fromkeys(context.applied)),
            "edits": [asdict(edit) for edit in context.edits],
            "events": list(context.events),
            "timings_ms": _timings(admissions, (finished_at - context.received_at) * 1000),
            "error": _error(context, admissions),
            "prompt_digest": self._digest(context),
        }
        return Record(
            id=context.decision_id,
            time=context.received_at,
            tenant=context.tenant,
            action=action,
            body=json.loads(
                json.dumps(body, default=str)
            ),  # events are open: nothing in them may stop the log
            target_ids=tuple(match.target_id for match in matches),
            text=json.dumps([asdict(m) for m in context.messages]) if self._text else None,
        )

    def _digest(self, context: RequestContext) -> str | None:
        """Equal prompts have equal digests; without the master secret a digest confirms no guess."""
        if not context.admissions:
            return None
        prompts = (",".join(map(str, token_ids)) for token_ids in context.admissions)
        return self._secrets.digest("prompt", *prompts)


def action_of(context: RequestContext, status: int) -> Action:
    """The strictest of the request's verdicts; what failed before a verdict was refused."""
    verdicts = [a.decision.action for a in context.admissions.values()]
    if not verdicts:
        verdicts.append("refuse" if status >= 400 else "allow")
    if context.withheld:
        verdicts.append("intervene")
    return max(verdicts, key=_SEVERITY.index)


def _strongest(matches: Iterable[Match]) -> list[Match]:
    """One match per target over all prompts of the request."""
    best: dict[str, Match] = {}
    for match in matches:
        if match.target_id not in best or match.score > best[match.target_id].score:
            best[match.target_id] = match
    return list(best.values())


def _target(match: Match) -> dict[str, Any]:
    shadow = {"shadow": True} if match.shadow else {}
    return {
        "id": match.target_id,
        "version": match.target_version,
        "score": match.score,
        "threshold": match.threshold,
        "detector": match.detector,
        "evidence": [asdict(evidence) for evidence in match.evidence],
        **shadow,
    }


def _requested(admissions: tuple[Admission, ...]) -> list[str]:
    methods = (chosen.method for a in admissions for chosen in a.decision.chosen)
    refused = ["refusal"] if any(a.decision.action == "refuse" for a in admissions) else []
    return list(dict.fromkeys([*methods, *refused]))


def _timings(admissions: tuple[Admission, ...], request_ms: float) -> Mapping[str, float]:
    total: dict[str, float] = {}
    for admission in admissions:
        for name, spent in admission.decision.timings_ms.items():
            total[name] = total.get(name, 0.0) + spent
    return {**{name: round(spent, 3) for name, spent in total.items()}, "request": round(request_ms, 3)}


def _error(context: RequestContext, admissions: tuple[Admission, ...]) -> str | None:
    if context.failure is not None:
        return context.failure.message
    return next((a.decision.error for a in admissions if a.decision.error), None)
