"""The audit trail: every write is in it, and nobody changes it unseen."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from guard import trail
from guard.errors import PreconditionFailed
from guard.store import Store
from guard.store.audit import Filter
from guard.store.jobs import Request
from guard.store.schema import audit, meta
from guard.store.targets import Write
from guard.targets import TargetSpec
from guard.trail import Act, Actor
from tests.guard.register_fakes import SECRETS, Clock

ANN = Actor("key_ann", "operator", "acme")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(place, clock):
    place.open().close()
    opened = Store(place.url, SECRETS, clock)
    yield opened
    opened.close()


def put(store, target_id="jane", version=1, **fields):
    spec = TargetSpec(**{"name": "Jane Doe", **fields})
    return store.targets.put([Write(target_id, spec, version, fields.get("seen"))], now=1.0)


def rows(store, **wanted):
    return store.audit.page(Filter(**wanted), limit=100).data


def alter(store, statement):
    with store._database.write() as connection:
        connection.execute(statement)


def test_a_write_is_recorded_with_who_did_it(store, clock):
    act = Act("targets.put", "jane", request_id="req-1", source="10.0.0.1", by=ANN)
    with trail.following(act):
        number = put(store)
    assert act.written
    assert rows(store) == [
        {
            "seq": 1,
            "time": clock.now,
            "key_id": "key_ann",
            "role": "operator",
            "tenant": "acme",
            "action": "targets.put",
            "subject": None,
            "outcome": "done",
            "status": None,
            "snapshot": number,
            "request_id": "req-1",
            "source": "10.0.0.1",
            "target": "jane",
            "detail": {"created": 1, "updated": 0},
        }
    ]


def test_what_the_server_does_itself_is_recorded_too(store):
    put(store)
    assert (rows(store)[0]["key_id"], rows(store)[0]["role"]) == ("system", None)


def test_a_write_that_fails_leaves_no_row(store):
    put(store)
    with pytest.raises(PreconditionFailed):
        put(store, version=5)
    assert len(rows(store)) == 1


def test_a_write_that_cannot_be_recorded_is_not_done(store):
    put(store)
    alter(store, meta.update().where(meta.c.name == "audit:head").values(value="0:"))
    with pytest.raises(sa.exc.IntegrityError):
        put(store, version=2)
    assert [target.version for target in store.targets.all()] == [1]


def test_keys_and_jobs_are_recorded(store):
    put(store)
    key, token = store.keys.create("auditor", "acme", None, now=1.0)
    store.keys.delete(key.id)
    job = store.jobs.create("sae", "jane", None, Request({}, True), 1.0)
    store.jobs.cancel(job.id, 2.0)
    store.jobs.delete(job.id)
    found = [(row["action"], row["subject"], row["target"]) for row in reversed(rows(store))]
    assert found == [
        ("targets.put", None, "jane"),
        ("keys.create", key.id, None),
        ("keys.revoke", key.id, None),
        ("jobs.create", job.id, "jane"),
        ("jobs.cancel", job.id, None),
        ("jobs.delete", job.id, None),
    ]
    assert token not in str(rows(store))


def test_a_purge_leaves_the_row_that_says_so_and_no_name(store, place):
    put(store, "jane-doe")
    with trail.following(Act("targets.purge", "jane-doe", by=ANN)):
        store.targets.delete("jane-doe", 2.0, purge=True)
    store.targets.erase_traces()
    purge, before = rows(store)
    assert (purge["action"], purge["key_id"], purge["detail"]) == ("targets.purge", "key_ann", {"purged": 1})
    assert "jane" not in str(purge) + str(before)
    assert purge["target"].startswith("purged-") and before["target"].startswith("purged-")
    assert rows(store, target="jane-doe") == [purge]  # who knows the id can show that it was purged
    put(store, "jane-doe", version=2)
    assert "jane" not in str(rows(store)[1:])  # nor does a new life give the name back
    assert store.audit.verify().problem is None
    if place.url.startswith("sqlite"):
        assert b"jane" not in place.raw()


def test_rows_are_found_by_what_they_say(store, clock):
    with trail.following(Act("targets.put", by=ANN)):
        put(store)
    clock.now += 10
    store.audit.add(Act("keys.revoke", subject="key_x", by=Actor("key_bob", "admin")), "refused", 404)
    one, two = rows(store)[1], rows(store)[0]
    assert (
        rows(store, action="targets.put") == rows(store, tenant="acme") == rows(store, target="jane") == [one]
    )
    assert rows(store, snapshots=True) == rows(store, until=clock.now) == [one]
    assert (
        rows(store, outcome="refused")
        == rows(store, key_id="key_bob")
        == rows(store, since=clock.now)
        == [two]
    )
    assert rows(store, target="nobody") == []
    page = store.audit.page(Filter(), limit=1)
    assert (page.data, store.audit.page(Filter(), limit=1, before=page.before).data) == ([two], [one])


def test_an_untouched_trail_is_valid(store):
    assert store.audit.verify().problem is None
    for version in (1, 2, 3):
        put(store, version=version)
    found = store.audit.verify()
    assert (found.rows, found.first, found.problem) == (3, 1, None)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        (audit.update().where(audit.c.seq == 2).values(key_id="key_eve"), "Row 2 was changed."),
        (audit.update().where(audit.c.seq == 2).values(detail="{}"), "Row 2 was changed."),
        (audit.update().where(audit.c.seq == 2).values(time=5.0), "Row 2 was changed."),
        (audit.delete().where(audit.c.seq == 1), "Row 1 is missing."),
        (audit.delete().where(audit.c.seq == 2), "Row 2 is missing."),
        (audit.delete().where(audit.c.seq == 3), "Rows behind row 2 are missing."),
        (meta.insert().values(name="audit:base", value="1:ab:cd"), "What says up to where"),
        (meta.delete().where(meta.c.name == "audit:head"), "Rows behind row 3 are missing."),
    ],
)
def test_whatever_is_changed_or_removed_shows(store, statement, problem):
    for version in (1, 2, 3):
        put(store, version=version)
    alter(store, statement)
    assert store.audit.verify().problem.startswith(problem)


def test_rows_that_are_exchanged_show(store):
    for version in (1, 2, 3):
        put(store, version=version)
    for old, new in ((1, 9), (2, 1), (9, 2)):
        alter(store, audit.update().where(audit.c.seq == old).values(seq=new))
    assert store.audit.verify().problem == "Row 1 was changed."


def test_an_end_that_was_cut_off_with_its_head_shows_against_a_head_that_was_kept(store):
    put(store)
    early = store.audit.verify().head
    put(store, version=2)
    kept = store.audit.verify().head
    alter(store, audit.delete().where(audit.c.seq == 2))
    alter(store, meta.update().where(meta.c.name == "audit:head").values(value=early))
    assert store.audit.verify().problem is None
    assert store.audit.verify(early).problem is None
    assert store.audit.verify(kept).problem == "The head that was kept is not in the trail."


def test_pruning_removes_what_is_old_and_says_so(store, clock):
    for version in (1, 2, 3):
        put(store, version=version)
        clock.now += 100
    early = store.audit.verify().head
    assert store.audit.prune(clock.now - 150) == 2
    assert [(row["seq"], row["action"]) for row in rows(store)] == [(4, "audit.prune"), (3, "targets.put")]
    assert rows(store)[0]["detail"] == {"rows": 2}
    assert store.audit.verify(early).problem is None
    assert store.audit.prune(clock.now - 150) == 0
    assert len(rows(store)) == 2
    alter(store, audit.delete().where(audit.c.seq == 3))
    assert store.audit.verify().problem == "Row 3 is missing."


def test_two_processes_write_one_chain(place):
    first, second = place.open(), place.open()
    put(first)
    put(second, version=2)
    put(first, version=3)
    assert second.audit.verify().problem is None
    assert [row["seq"] for row in rows(second)] == [3, 2, 1]
