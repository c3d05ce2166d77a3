"""The swap suite on a fake guard that enforces at once, late, or never."""

from __future__ import annotations

import asyncio
import random

import pytest

from evals.admin import action, matches
from evals.client import Answer, ClientError
from evals.report import Report
from evals.suites import swap


class FakeGuard:
    """Client and admin in one: names under `targets` match, `lag` generations too late."""

    def __init__(self, lag: int = 0):
        self.lag, self.left = lag, 0
        self.targets: dict[str, tuple[str, ...]] = {}
        self.seen: dict[str, tuple[str, ...]] = {}
        self.records: dict[str, dict] = {}

    async def put(self, target_id: str, spec: dict) -> None:
        self.targets[target_id] = (spec["name"], *spec.get("aliases", ()))
        self.left = self.lag

    async def delete(self, target_id: str) -> None:
        self.targets.pop(target_id, None)
        self.left = self.lag

    def _decide(self, text: str, known: dict[str, tuple[str, ...]]) -> dict:
        found = [{"id": i} for i, names in known.items() if any(name in text for name in names)]
        return {"action": "intervene" if found else "allow", "targets": found}

    async def check(self, text: str) -> dict:
        return self._decide(text, self.targets)

    async def decision(self, decision_id: str) -> dict:
        return self.records[decision_id]

    async def send(self, request) -> Answer:
        if self.left:
            self.left -= 1
        else:
            self.seen = dict(self.targets)
        decision_id = f"d-{len(self.records)}"
        self.records[decision_id] = self._decide(request.body["messages"][0]["content"], self.seen)
        return Answer(text="x", decision_id=decision_id)


def cycle(guard: FakeGuard) -> Report:
    changes = asyncio.run(swap._cycle(guard, guard, random.Random(1), 0))
    return swap.build_report(changes, swap.Traffic(streams=3), seed=1, clients=2)


def test_a_guard_that_enforces_at_once_passes():
    report = cycle(FakeGuard())
    assert report.passed
    assert [row["operation"] for row in report.rows] == ["put", "update", "delete"]
    assert report.results["put_enforced_ms"]["n"] == 1


def test_a_guard_that_is_late_fails():
    report = cycle(FakeGuard(lag=2))
    assert report.passed is False
    assert sum(row["late"] for row in report.rows) == 6


def test_a_guard_that_never_enforces_ends_the_run_and_leaves_no_target():
    guard = FakeGuard(lag=10**6)
    with pytest.raises(ClientError, match="not enforced"):
        cycle(guard)
    assert guard.targets == {}


def test_broken_streams_fail():
    report = swap.build_report([], swap.Traffic(streams=1, errors=["0: gone"]), seed=0, clients=1)
    assert report.passed is False


def test_decisions_are_read_wrapped_or_not():
    plain = {"action": "refuse", "targets": [{"id": "a"}]}
    for record in (plain, {"id": "d", "decision": plain}, {"action": "refuse", "targets": ["a"]}):
        assert matches(record, "a")
        assert not matches(record, "b")
        assert action(record) == "refuse"
    assert not matches({"action": "allow", "targets": [{"id": "a", "shadow": True}]}, "a")


def test_a_released_target_may_not_leave_a_nameless_match():
    assert not swap.settled({"action": "intervene", "targets": [{"id": None}]}, "a", want=False)
    assert swap.settled({"action": "allow", "targets": []}, "a", want=False)


def test_percentiles_and_names():
    assert swap.percentiles([1.0, 2.0, 3.0]) == {"p50": 2.0, "p95": pytest.approx(2.9), "max": 3.0}
    assert swap.invented_name(random.Random(1)) == swap.invented_name(random.Random(1))
