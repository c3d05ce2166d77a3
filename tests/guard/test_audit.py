"""The decision log: what was done is readable within a second, what was said is not."""

from __future__ import annotations

import time

import pytest

from guard.audit import DecisionLog
from guard.context import RequestContext
from guard.errors import GuardUnavailable
from guard.store.decisions import Filter
from guard.store.targets import Write
from guard.targets import TargetSpec
from guard.types import Admission, AppliedEdit, Chosen, Decision, Evidence, Match, Message
from tests.guard.register_fakes import SECRETS, Clock

START = 1_900_000_000.0


@pytest.fixture
def store(place):
    store = place.open()
    store.targets.put([Write("jane", TargetSpec(name="Jane Doe"), 1)], 1.0)
    return store


def make_log(store, **options) -> DecisionLog:
    return DecisionLog(store.decisions, SECRETS, **options)


UNREAD = Evidence(None, 0, 9)


def match(score: float = 0.97, *, shadow: bool = False) -> Match:
    return Match("jane", 1, score, 0.81, "semantic", evidence=(Evidence(0, 4, 12),), shadow=shadow)


def admission(action="intervene", score: float = 0.97, method: str = "embedding_corruption") -> Admission:
    found = match(score)
    chosen = () if action == "refuse" else (Chosen(method, {"text": "about Jane Doe"}, (found,)),)
    return Admission(
        Decision(action, 17, (found,), chosen, timings_ms={"semantic": 6.0, "total": 6.5}, unread=(UNREAD,))
    )


def request(decision_id: str = "d1", **fields) -> RequestContext:
    context = RequestContext(
        decision_id, "/v1/chat/completions", START, tenant="acme", model="m", stream=True
    )
    context.messages = (Message("user", "who is Jane Doe?"),)
    context.admissions[(1, 2, 3)] = admission()
    for name, value in fields.items():
        setattr(context, name, value)
    return context


def written(log: DecisionLog, context: RequestContext, status: int = 200) -> dict:
    log.record(context, status, context.received_at + 0.25)
    log.flush()
    found = log.get(context.decision_id)
    assert found is not None
    return found


def test_a_record_tells_what_was_done(store):
    context = request(
        applied=["embedding_corruption"],
        edits=[AppliedEdit("embedding", None, 4, 3, 1)],
        events=[{"event": "cut", "target": "jane"}],
    )
    found = written(make_log(store), context)
    assert (
        found["prompt_digest"]
        != written(make_log(store), request("d2", admissions={(9,): admission()}))["prompt_digest"]
    )
    assert len(found.pop("prompt_digest")) == 64
    assert found == {
        "id": "d1",
        "time": "2030-03-17T17:46:40+00:00",
        "tenant": "acme",
        "model": "m",
        "route": "/v1/chat/completions",
        "stream": True,
        "status": 200,
        "action": "intervene",
        "snapshot": 17,
        "targets": [
            {
                "id": "jane",
                "version": 1,
                "score": 0.97,
                "threshold": 0.81,
                "detector": "semantic",
                "evidence": [{"message": 0, "start": 4, "end": 12}],
            }
        ],
        "unread": [{"message": None, "start": 0, "end": 9}],
        "requested": ["embedding_corruption"],
        "applied": ["embedding_corruption"],
        "edits": [{"site": "embedding", "layer": None, "planned": 4, "applied": 3, "from_cache": 1}],
        "events": [{"event": "cut", "target": "jane"}],
        "timings_ms": {"semantic": 6.0, "total": 6.5, "request": 250.0},
        "error": None,
    }


def test_no_text_is_kept_unless_configured(store, place):
    written(make_log(store), request())
    assert "text" not in make_log(store).get("d1")
    found = written(make_log(store, text=True), request("d2"))
    assert "who is Jane Doe?" in found["text"]
    files = place.raw()
    assert b"Jane Doe" not in files


def test_several_prompts_make_one_record_of_the_strictest_verdict(store):
    admissions = {
        (1,): admission(score=0.9),
        (2,): admission("refuse", 0.99),
        (3,): Admission(Decision("allow", 18)),
    }
    found = written(make_log(store), request(admissions=admissions))
    assert (found["action"], found["snapshot"], len(found["targets"])) == ("refuse", 18, 1)
    assert found["targets"][0]["score"] == 0.99
    assert found["requested"] == ["embedding_corruption", "refusal"]
    assert found["timings_ms"]["semantic"] == 12.0


def test_shadow_matches_are_marked(store):
    admissions = {(1,): Admission(Decision("allow", 1, (match(shadow=True),)))}
    found = written(make_log(store), request(admissions=admissions))
    assert (found["action"], found["targets"][0]["shadow"]) == ("allow", True)


def test_a_request_that_could_not_be_judged_is_recorded_as_refused(store):
    failure = GuardUnavailable("The request could not be checked; try again.")
    found = written(make_log(store), request(admissions={}, failure=failure), 503)
    assert (found["action"], found["error"], found["prompt_digest"]) == ("refuse", failure.message, None)


def test_records_are_readable_within_a_second(store):
    log = make_log(store)
    log.start()
    try:
        log.record(request(), 200, START)
        deadline = time.monotonic() + 5
        while log.get("d1") is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        log.close()


def test_closing_writes_what_is_queued(store):
    log = make_log(store)
    for i in range(3):
        log.record(request(f"d{i}"), 200, START)
    log.close()
    assert len(log.page(Filter(), limit=10).data) == 3


def test_a_full_queue_drops_counts_and_never_blocks(store, caplog):
    log = make_log(store, queue_size=2)
    assert [log.record(request(f"d{i}"), 200, START) for i in range(4)] == [True, True, False, False]
    assert log.dropped == 2
    assert "cannot keep up" in caplog.text
    log.flush()
    assert len(log.page(Filter(), limit=10).data) == 2


def test_records_wait_for_a_store_that_fails(store, monkeypatch):
    log = make_log(store)
    log.record(request(), 200, START)
    add = store.decisions.add
    monkeypatch.setattr(
        store.decisions, "add", lambda records: (_ for _ in ()).throw(GuardUnavailable("disk full"))
    )
    with pytest.raises(GuardUnavailable):
        log.flush()
    monkeypatch.setattr(store.decisions, "add", add)
    log.flush()
    assert log.get("d1") is not None


def test_an_event_that_is_not_json_does_not_stop_the_log(store):
    found = written(make_log(store), request(events=[{"event": "odd", "value": {1, 2}}]))
    assert found["events"][0]["event"] == "odd"


def test_a_record_that_cannot_be_made_does_not_hold_up_the_others(store):
    log = make_log(store)
    log.record(request("broken", received_at="never"), 200, START)
    written(log, request("whole"))
    assert (log.get("broken"), log.dropped) == (None, 1)


def test_old_records_go_after_the_days_that_they_are_kept(store):
    clock = Clock(START)
    log = make_log(store, retain_days=2, clock=clock)
    written(log, request())
    clock.now += 86_400
    assert log.prune() == 0
    clock.now += 86_401
    assert log.prune() == 1


def test_a_tool_that_was_taken_out_is_told_with_its_target(store):
    context = request()
    context.admissions = {(1,): Admission(Decision("allow", 7))}
    context.withheld = [match()]
    context.events = [{"event": "tools_withheld", "withheld": 1, "left": 0}]
    record = written(make_log(store), context)
    assert record["action"] == "intervene"
    assert [target["id"] for target in record["targets"]] == [match().target_id]
    assert record["events"] == context.events
