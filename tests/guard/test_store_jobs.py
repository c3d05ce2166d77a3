"""What the store promises of jobs: one runner for each, nothing readable, nothing of a purged target left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from guard.errors import NotFound
from guard.store import Store
from guard.store.jobs import Filter, Report, Request
from guard.store.targets import Write
from guard.targets import TargetSpec

SECRET = "a question about jane"
GIVEN = Request(
    {"rank": 4},
    False,
    ({"prompt": SECRET},),
    (),
    {"forget": 1, "retain": 0},
    ({"prompt": SECRET},),
    ("d" * 64,),
)


def add_target(store: Store, target_id: str) -> None:
    store.targets.put([Write(target_id, TargetSpec(name="Jane Doe"), 1)], 1.0)


@pytest.fixture
def store(place):
    store = place.open()
    add_target(store, "jane")
    return store


@pytest.fixture
def jobs(store):
    return store.jobs


def test_a_job_is_given_back_as_it_was_taken(jobs, place):
    job = jobs.create("adapter", "jane", "acme", GIVEN, 5.0)
    assert jobs.get(job.id) == job
    assert (job.kind, job.target, job.tenant, job.state, job.created_at) == (
        "adapter",
        "jane",
        "acme",
        "queued",
        5.0,
    )
    assert job.request == GIVEN
    with pytest.raises(NotFound):
        jobs.get("job_0")
    with pytest.raises(NotFound):
        jobs.create("adapter", "nobody", None, Request(), 5.0)
    raw = place.raw()
    assert SECRET.encode() not in raw and b"jane" not in raw


def test_what_a_runner_writes_is_read(jobs):
    made = jobs.create("adapter", "jane", None, GIVEN, 5.0)
    job = jobs.claim("a", 6.0, 16.0)
    assert (job.id, job.state, job.runner, job.started_at, job.request) == (
        made.id,
        "running",
        "a",
        6.0,
        GIVEN,
    )
    assert jobs.renew(job, 20.0, progress=0.5, report=Report(("training",)), version=3)
    found = jobs.get(job.id)
    assert (found.progress, found.report.log, found.version, found.lease) == (0.5, ("training",), 3, 20.0)
    assert jobs.finish(job, "succeeded", 9.0, report=Report(("done",)), artifact="d" * 64, attached=True)
    found = jobs.get(job.id)
    assert (found.state, found.progress, found.ended_at, found.attached) == ("succeeded", 1.0, 9.0, True)
    assert (found.runner, found.lease) == (None, None)
    assert found.request == replace(GIVEN, forget=None, retain=None, perturbed=None)
    assert jobs.artifacts_of("jane") == {"d" * 64}


def test_the_queue_is_served_in_order_and_once(jobs):
    made = [jobs.create("adapter", "jane", None, Request(), float(n)).id for n in range(3)]
    assert [jobs.claim("a", 9.0, 19.0).id for _ in made] == made
    assert jobs.claim("a", 9.0, 19.0) is None


def test_of_many_claims_at_once_each_job_is_given_once(store, place):
    stores = [store, *(place.open() for _ in range(3))]
    made = {store.jobs.create("adapter", "jane", None, Request(), float(n)).id for n in range(12)}
    taken: list[str] = []

    def claim(number: int) -> None:
        while job := stores[number].jobs.claim(str(number), 20.0, 30.0):
            taken.append(job.id)

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(claim, range(len(stores))))
    assert sorted(taken) == sorted(made)


def test_a_lease_that_is_over_is_taken_over_once_and_the_first_runner_learns_it(jobs):
    jobs.create("adapter", "jane", None, Request(), 5.0)
    first = jobs.claim("a", 6.0, 16.0)
    assert jobs.take_over("b", 15.9, 30.0, [first.id], 100.0) is None
    second = jobs.take_over("b", 16.0, 30.0, [first.id], 100.0)
    assert (second.id, second.runner, second.started_at) == (first.id, "b", 6.0)
    assert jobs.take_over("c", 16.0, 30.0, [first.id], 100.0) is None
    assert not jobs.renew(first, 40.0, progress=0.9, report=Report())
    assert not jobs.finish(first, "failed", 17.0, report=Report())
    assert jobs.get(first.id).state == "running"
    assert jobs.renew(second, 40.0, progress=0.9, report=Report())


def test_the_job_of_another_machine_is_taken_over_later(jobs):
    job_id = jobs.create("adapter", "jane", None, Request(), 5.0).id
    jobs.claim("a", 6.0, 16.0)
    assert jobs.take_over("b", 115.9, 130.0, [], 100.0) is None
    assert jobs.take_over("b", 116.0, 130.0, [], 100.0).id == job_id


def test_a_cancelled_job_is_nobodys_and_keeps_no_examples(jobs):
    jobs.create("adapter", "jane", None, GIVEN, 5.0)
    job = jobs.claim("a", 6.0, 16.0)
    assert not jobs.delete(job.id)
    assert jobs.cancel(job.id, 8.0)
    assert not jobs.cancel(job.id, 9.0)
    assert not jobs.renew(job, 40.0, progress=0.9, report=Report())
    assert not jobs.finish(job, "succeeded", 9.0, report=Report())
    found = jobs.get(job.id)
    assert (found.state, found.ended_at, found.request.forget) == ("cancelled", 8.0, None)
    assert jobs.unfinished([job.id]) == set()
    assert jobs.delete(job.id)
    with pytest.raises(NotFound):
        jobs.cancel(job.id, 9.0)


def test_lists_are_filtered_and_go_on_behind_a_job(store, jobs):
    add_target(store, "john")
    for n, (target, tenant) in enumerate(
        [("jane", None), ("john", "acme"), ("jane", "acme"), ("jane", None)]
    ):
        jobs.create("adapter", target, tenant, Request(), float(n // 2))
    whole = jobs.page(Filter(), limit=9)
    assert [job.created_at for job in whole] == [1.0, 1.0, 0.0, 0.0]
    paged, after = [], None
    while page := jobs.page(Filter(), limit=1, after=after):
        paged += page
        after = (page[-1].created_at, page[-1].id)
    assert paged == whole
    assert {job.target for job in jobs.page(Filter(target="john"), limit=9)} == {"john"}
    assert len(jobs.page(Filter(tenant="acme"), limit=9)) == 2
    jobs.claim("a", 6.0, 16.0)
    assert len(jobs.page(Filter(state="queued"), limit=9)) == 3


def test_a_purged_target_leaves_no_job_and_a_deleted_one_does(jobs, store):
    job = jobs.create("adapter", "jane", None, GIVEN, 5.0)
    store.targets.delete("jane", 6.0, purge=False)
    assert jobs.get(job.id).target == "jane"
    with pytest.raises(NotFound):
        jobs.create("adapter", "jane", None, GIVEN, 7.0)
    store.targets.delete("jane", 8.0, purge=True)
    with pytest.raises(NotFound):
        jobs.get(job.id)
    assert jobs.artifacts_of("jane") == set()
