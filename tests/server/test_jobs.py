"""Jobs from the queue to the target, with a trainer that speaks the protocol and trains nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from guard import artifacts
from guard.artifacts import ArtifactStore
from guard.config import JobSettings
from guard.errors import BadRequest, NotFound
from guard.register import Caller, Register
from guard.store import Store
from guard.store.jobs import Filter, Job, Request
from server.jobs import LOST, Model, Runner, Times, ladder_with
from server.jobs_trainer import Log, Trainer, _lines
from tests.guard.artifact_fakes import MODEL, FakeWorkers, methods, standing  # noqa: F401
from tests.guard.register_fakes import make_register, open_store

pytestmark = pytest.mark.usefixtures("methods")
FAKE = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))
QUICK = Times(poll=0.05, lease=2.0, grace=60.0)
ROOT = Path(__file__).parents[2]
SERVER = """
import asyncio, sys, time
from pathlib import Path
from guard import interventions
from tests.server.test_jobs import JANE, house

async def main(folder, act):
    interventions.TABLE["tuned"] = "tests.guard.artifact_fakes:Trained"
    async with house(Path(folder)) as here:
        if act == "make":
            here.workers.load = lambda *args, **options: time.sleep(600)
        await here.register.put("jane", JANE)
        here.start()
        print((await here.submit(act)).id, flush=True)
        await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""
JANE = {"name": "Jane Doe", "examples": ["who is jane doe"], "retain": ["who is john"]}
SECONDS = 30


@dataclass
class House:
    """One server's state in `folder`; `runner` runs no job before `start`."""

    folder: Path
    store: Store
    register: Register
    workers: FakeWorkers
    runner: Runner

    def start(self) -> None:
        self.runner.start(Model(Path("/model"), MODEL))

    async def submit(self, act: str = "make", target: str = "jane", kind: str = "tuned", **more) -> Job:
        params = {"act": act, **more.pop("params", {})}
        return await self.runner.submit(kind, target, Request(params, **more), None)

    async def until(self, job: Job, *states: str) -> Job:
        for _ in range(SECONDS * 50):
            found = await self.runner.get(job.id)
            if found.state in states:
                return found
            await asyncio.sleep(0.02)
        raise AssertionError(f"the job is still {found.state}")

    async def done(self, job: Job) -> Job:
        return await self.until(job, "succeeded", "failed", "cancelled")

    async def trained(self, count: int = 1) -> list[dict]:
        """What the trainers found, once that many were started."""
        path = self.folder / "seen.jsonl"
        for _ in range(SECONDS * 50):
            lines = path.read_text().splitlines() if path.exists() else []
            if len(lines) >= count:
                return [json.loads(line) for line in lines]
            await asyncio.sleep(0.02)
        raise AssertionError("no trainer was started")

    def left(self) -> list[Path]:
        return list((self.folder / "jobs").glob("*"))

    async def swept(self) -> None:
        for _ in range(SECONDS * 50):
            if not self.left():
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"left behind: {self.left()}")


@asynccontextmanager
async def house(folder: Path, *, times: Times = QUICK, jobs: Path | None = None, **settings):
    """A server on the store in `folder`, with its jobs' folders in `jobs`."""
    store = open_store(folder)
    register = make_register(store, folder / "artifacts")
    workers = FakeWorkers()
    await register.load()
    await register.attach(workers)
    artifacts = ArtifactStore(folder / "artifacts")
    where = jobs or folder / "jobs"
    runner = Runner(
        store.jobs, register, artifacts, JobSettings(**settings), where, program=FAKE, times=times
    )
    try:
        yield House(folder, store, register, workers, runner)
    finally:
        await runner.close()
        register.close()
        store.close()


@pytest.fixture
async def here(tmp_path):
    async with house(tmp_path) as found:
        await found.register.put("jane", JANE)
        yield found


def gone(pid: int) -> bool:
    """Whether the process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def until_gone(pid: int) -> None:
    ends = time.monotonic() + SECONDS
    while not gone(pid):
        assert time.monotonic() < ends, "the process lives"
        await asyncio.sleep(0.02)


async def test_a_job_makes_an_artifact_that_the_target_uses_at_once(here, monkeypatch):
    monkeypatch.setenv("LETHE_MASTER_KEY", "00" * 32)
    here.start()
    job = await here.submit()
    assert (job.state, job.progress, job.started_at) == ("queued", 0.0, None)
    job = await here.done(job)
    assert (job.state, job.progress, job.report.error, job.attached) == ("succeeded", 1.0, None, True)
    assert job.created_at <= job.started_at <= job.ended_at
    assert [line[20:] for line in job.report.log] == ["training", "measuring", "loss: 0.5"]
    assert here.workers.held == {job.artifact: True}
    view, _ = here.register.view("jane")
    assert (view["state"], standing(view), view["version"]) == (
        "active",
        [("tuned", job.artifact, "ready")],
        2,
    )
    assert [rung["method"] for rung in view["intervention"]] == ["tuned", "embedding_corruption"]
    (seen,) = await here.trained()
    assert seen["rows"] == {
        "forget": [{"prompt": "who is jane doe"}],
        "retain": [{"prompt": "who is john"}],
        "names": ["Jane Doe"],
    }
    nice = min(os.nice(0) + 10, 19)
    assert (seen["nice"], seen["threads"], seen["secrets"], seen["model"]) == (nice, "1", [], "/model")
    assert seen["waits"] == "PASSIVE"
    assert seen["session"] in ("10", None), "its session weighs as much as the server's"
    await here.swept()


def test_a_trainer_starts_on_the_event_loop_of_the_server(tmp_path):
    uvloop = pytest.importorskip("uvloop")

    async def start() -> None:
        command = [sys.executable, "-c", "pass"]
        await (await Trainer.start(command, {}, folder=tmp_path, log=Log(), nice=10, threads=1)).watch()

    uvloop.run(start())


async def test_given_examples_replace_the_targets_own_and_are_erased_when_the_job_ends(here):
    here.start()
    rows = ({"prompt": "an odd question", "answer": "an odd answer"},)
    given = {"forget": 1, "retain": 0, "perturbed": 1}
    job = await here.done(await here.submit(forget=rows, retain=(), perturbed=rows, given=given))
    (seen,) = await here.trained()
    sets = {"forget": list(rows), "retain": [], "perturbed": list(rows)}
    assert seen["rows"] == {**sets, "names": ["Jane Doe"]}
    assert (job.request.forget, job.request.perturbed, job.request.given) == (None, None, given)


def adapter(here: House, folder: Path, method: str = "lora_adapter", base_model: str = MODEL) -> str:
    """The digest of an artifact that was brought into the store."""
    made = artifacts.write(folder / method / base_model[:2], method, base_model)
    return ArtifactStore(here.folder / "artifacts").add(made.folder).digest


async def test_adapters_that_were_made_before_are_given_to_the_trainer_as_folders(here, tmp_path):
    here.start()
    made = adapter(here, tmp_path / "made")
    job = await here.done(await here.submit(adapters=(made,)))
    (seen,) = await here.trained()
    assert seen["adapters"] == [str(here.folder / "artifacts" / made)]
    assert (job.state, job.request.adapters) == ("succeeded", (made,))


async def test_an_adapter_that_is_none_for_this_model_is_refused_before_the_job_is_queued(here, tmp_path):
    here.start()
    wrong = {
        "is not here": "d" * 64,
        "was made for tuned, not for lora_adapter": adapter(here, tmp_path / "made", "tuned"),
        "was made for another model": adapter(here, tmp_path / "made", base_model="0" * 64),
    }
    for why, digest in wrong.items():
        with pytest.raises(BadRequest, match=why) as caught:
            await here.submit(adapters=(digest,))
        assert caught.value.param == "params.adapters"
    assert await here.runner.page(Filter(), limit=9) == []


async def test_a_tenant_names_only_adapters_of_its_own_targets(here, tmp_path):
    made = adapter(here, tmp_path / "made")
    rung = {"method": "lora_adapter", "params": {"artifact": made}}
    mine = {"name": "Mina Roe", "scope": {"tenants": ["acme"]}}
    await here.register.put("mina", mine, Caller("acme"))
    request = Request(adapters=(made,))
    with pytest.raises(BadRequest, match="is not here"):
        await here.runner.submit("tuned", "mina", request, "acme")
    await here.register.put("mina", {**mine, "intervention": [rung]}, Caller("acme"))
    assert (await here.runner.submit("tuned", "mina", request, "acme")).request.adapters == (made,)


async def test_an_adapter_that_is_gone_when_the_job_begins_is_the_jobs_error(here, tmp_path):
    job = await here.submit(adapters=(made := adapter(here, tmp_path / "made"),))
    assert ArtifactStore(here.folder / "artifacts").remove(made)
    here.start()
    assert (await here.done(job)).report.error == f"There is no artifact {made[:16]} here."


@pytest.mark.parametrize(
    ("act", "why"),
    [
        ("refuse", "The data are bad."),
        ("crash", "The trainer ended with exit code 3 and ValueError."),
    ],
)
async def test_a_job_that_fails_says_why_without_any_text_and_leaves_nothing(here, act, why):
    here.start()
    job = await here.done(await here.submit(act))
    assert (job.state, job.report.error, job.artifact, job.attached) == ("failed", why, None, None)
    assert not any("jane" in line for line in job.report.log)
    await here.swept()
    assert here.register.view("jane")[0]["version"] == 1
    assert (await here.done(await here.submit())).state == "succeeded"


async def test_an_empty_target_is_told_as_the_jobs_error(here):
    await here.register.put("bare", {"name": "Bare Name"})
    here.start()
    job = await here.done(await here.submit(target="bare"))
    assert (job.state, job.report.error) == ("failed", "There are no forget examples; give some.")


async def test_what_a_library_prints_is_neither_kept_nor_an_event(here):
    here.start()
    job = await here.done(await here.submit("print"))
    assert job.state == "succeeded"
    assert [line[20:] for line in job.report.log] == ["training", "measuring", "loss: 0.5"]


async def test_lines_that_are_too_long_are_left_out():
    stream = asyncio.StreamReader()
    stream.feed_data(b"a\n" + b"x" * 200_000 + b"\nb\nc")
    stream.feed_eof()
    assert [line async for line in _lines(stream)] == [b"a", b"b"]


@pytest.mark.parametrize("steps", range(6))
async def test_a_server_closes_also_when_a_job_comes_at_that_moment(here, steps):
    here.start()
    await asyncio.sleep(0.2)
    here.runner._waiting.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    closing = asyncio.create_task(here.runner.close())
    done, _ = await asyncio.wait({closing}, timeout=10)
    assert done, "the loop goes on"


@pytest.mark.parametrize(
    ("kind", "params", "param"),
    [
        ("nothing", {}, "kind"),
        ("tuned", {"step": 1}, "params.step"),
        ("tuned", {"steps": 0}, "params.steps"),
        ("tuned", {"steps": "many"}, "params.steps"),
        ("tuned", {"act": "explode"}, "params.act"),
        ("tuned", {"folder": "/etc"}, "params.folder"),
    ],
)
async def test_what_no_trainer_takes_is_refused_before_anything_starts(here, kind, params, param):
    with pytest.raises(BadRequest) as caught:
        await here.runner.submit(kind, "jane", Request(params), None)
    assert caught.value.param == param
    assert await here.runner.page(Filter(), limit=9) == []


async def test_a_target_that_is_not_there_has_no_jobs(here):
    with pytest.raises(NotFound):
        await here.submit(target="nobody")


async def test_an_artifact_that_is_refused_is_not_kept(here):
    here.start()
    first = await here.done(await here.submit(attach=False))
    assert (first.state, first.attached) == ("succeeded", False)
    await here.register.remove_artifact(first.artifact)
    here.workers.refusals[first.artifact] = "The artifact changes nothing."
    job = await here.done(await here.submit())
    assert (job.state, job.report.error) == ("failed", "The artifact changes nothing.")
    assert ArtifactStore(here.folder / "artifacts").digests() == []


async def test_an_artifact_is_only_listed_where_nobody_asked_for_more(here):
    here.start()
    job = await here.done(await here.submit(attach=False))
    assert (job.attached, here.register.view("jane")[0]["version"]) == (False, 1)
    assert [row["digest"] for row in await here.register.artifacts()] == [job.artifact]


async def test_an_adapter_that_knows_what_it_was_given_is_never_put_into_a_target(here):
    here.start()
    job = await here.done(await here.submit("teach"))
    assert (job.state, job.attached) == ("succeeded", False)
    assert "knows what it was given" in job.report.log[-1]
    assert here.register.view("jane")[0]["intervention"] == "auto"


async def test_a_target_that_was_changed_meanwhile_is_left_alone(here):
    here.start()
    real = here.register.load_artifact

    async def slow(digest):
        row = await real(digest)
        await here.register.patch("jane", {"tags": ["newer"]})
        return row

    here.register.load_artifact = slow
    job = await here.done(await here.submit())
    assert (job.state, job.attached) == ("succeeded", False)
    assert job.report.log[-1].endswith("not attached: the target was changed meanwhile")
    assert here.register.view("jane")[0]["tags"] == ["newer"]


async def test_a_target_that_is_purged_while_its_artifact_is_loaded_leaves_none(here):
    here.start()
    real = here.register.load_artifact

    async def slow(digest):
        row = await real(digest)
        await here.register.delete("jane", purge=True)
        return row

    here.register.load_artifact = slow
    job = await here.submit()
    await here.trained()
    await here.swept()
    for _ in range(SECONDS * 50):
        if not here.workers.held:
            break
        await asyncio.sleep(0.02)
    assert ArtifactStore(here.folder / "artifacts").digests() == [] and not here.workers.held
    with pytest.raises(NotFound):
        await here.runner.get(job.id)


async def child_of(here: House) -> int:
    path = here.folder / "child"
    for _ in range(SECONDS * 50):
        if path.exists() and path.read_text():
            return int(path.read_text())
        await asyncio.sleep(0.02)
    raise AssertionError("the trainer has no child")


@pytest.mark.parametrize("act", ["wait", "deaf"])
async def test_a_cancelled_job_ends_with_all_its_processes_and_leaves_nothing(here, act, monkeypatch):
    monkeypatch.setattr("server.jobs_trainer.TERM_SECONDS", 0.3)
    here.start()
    job = await here.submit(act)
    child, (seen,) = await child_of(here), await here.trained()
    assert await here.runner.end(job.id) == (False, "cancelled")
    assert (await here.runner.get(job.id)).state == "cancelled"
    await until_gone(child)
    await until_gone(seen["pid"])
    await here.swept()
    assert (await here.runner.get(job.id)).state == "cancelled"
    assert await here.runner.end(job.id) == (True, "cancelled")
    with pytest.raises(NotFound):
        await here.runner.get(job.id)


async def test_what_a_trainer_started_ends_with_it(here):
    here.start()
    job = await here.done(await here.submit("orphan"))
    assert (job.state, job.report.error) == ("failed", "The trainer ended with exit code 4.")
    await until_gone(await child_of(here))


async def test_a_job_in_the_queue_is_cancelled_and_never_starts(here):
    job = await here.submit()
    assert await here.runner.end(job.id) == (False, "cancelled")
    here.start()
    await here.done(await here.submit())
    assert len(await here.trained()) == 1


async def test_a_purged_target_takes_its_jobs_their_processes_and_artifacts_along(here):
    here.start()
    made = await here.done(await here.submit(attach=False))
    job = await here.submit("wait")
    child = await child_of(here)
    await here.register.delete("jane", purge=True)
    await until_gone(child)
    await here.swept()
    for one in (made, job):
        with pytest.raises(NotFound):
            await here.runner.get(one.id)
    assert ArtifactStore(here.folder / "artifacts").digests() == []


@pytest.mark.parametrize("parallel", [1, 2])
async def test_no_more_jobs_run_at_once_than_are_allowed(tmp_path, parallel):
    async with house(tmp_path, parallel=parallel) as here:
        await here.register.put("jane", JANE)
        jobs = [await here.submit("wait") for _ in range(3)]
        here.start()
        await here.trained(parallel)
        await asyncio.sleep(0.5)
        states = sorted([(await here.runner.get(job.id)).state for job in jobs])
        assert states == ["queued"] * (3 - parallel) + ["running"] * parallel


async def test_the_oldest_job_comes_first_and_those_of_a_server_that_runs_none_wait(tmp_path):
    async with house(tmp_path, parallel=0) as idle:
        await idle.register.put("jane", JANE)
        idle.start()
        jobs = [await idle.submit(params={"steps": n}) for n in (1, 2)]
        await asyncio.sleep(0.3)
        assert [(await idle.runner.get(job.id)).state for job in jobs] == ["queued", "queued"]
    async with house(tmp_path) as here:
        here.start()
        first, second = [await here.done(job) for job in jobs]
        assert first.ended_at <= second.started_at


async def test_two_servers_on_one_store_never_run_the_same_job(tmp_path):
    async with house(tmp_path, parallel=2) as one:
        await one.register.put("jane", JANE)
        async with house(tmp_path, parallel=2) as two:
            jobs = [await one.submit(attach=False, params={"steps": n}) for n in range(1, 7)]
            one.start()
            two.start()
            assert {(await one.done(job)).state for job in jobs} == {"succeeded"}
            assert len(await one.trained()) == len(jobs)


async def test_another_server_cancels(tmp_path):
    async with house(tmp_path) as one, house(tmp_path, jobs=tmp_path / "elsewhere", parallel=0) as two:
        await one.register.put("jane", JANE)
        one.start()
        job = await one.submit("wait")
        child = await child_of(one)
        assert await two.runner.end(job.id) == (False, "cancelled")
        await until_gone(child)
        await one.swept()


@pytest.mark.parametrize(("act", "state"), [("pause", "succeeded"), ("wait", "failed")])
async def test_a_job_whose_server_stopped_goes_on_from_its_checkpoint_or_has_failed(tmp_path, act, state):
    async with house(tmp_path) as here:
        await here.register.put("jane", JANE)
        here.start()
        job = await here.submit(act)
        child = await child_of(here)
    await until_gone(child)
    async with house(tmp_path) as again:
        assert (await again.runner.get(job.id)).state == "running"
        again.start()
        job = await again.done(job)
        assert (job.state, job.report.error) == (state, LOST if state == "failed" else None)
        assert [seen["resume"] for seen in await again.trained()] == [False, True][: 1 + (act == "pause")]
        await again.swept()


def texts(folder: Path) -> list[Path]:
    """Files that hold something of the examples."""
    return [
        p for p in folder.rglob("*") if p.is_file() and b"who is" in p.read_bytes() and p.name != "seen.jsonl"
    ]


async def test_a_trainer_that_is_killed_leaves_nothing_and_the_job_says_so(here):
    here.start()
    job = await here.submit("half")
    child, (seen,) = await child_of(here), await here.trained()
    assert Path(seen["temporary"]) == here.folder / "jobs" / job.id and texts(here.folder / "jobs")
    os.kill(seen["pid"], signal.SIGKILL)
    job = await here.done(job)
    assert job.state == "failed" and job.report.error.startswith("The trainer was ended by SIGKILL")
    await until_gone(child)
    await here.swept()
    assert texts(here.folder) == [] and ArtifactStore(here.folder / "artifacts").digests() == []


def killed_server(folder: Path, act: str) -> str:
    """The job of a server that was killed when its trainer waited, or when the artifact was in the store."""
    command = [sys.executable, "-c", SERVER, str(folder), act]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as server:
        try:
            job_id = server.stdout.readline().decode().strip()
            ends = time.monotonic() + SECONDS
            store = ArtifactStore(folder / "artifacts")
            while not (store.digests() if act == "make" else (folder / "child").exists()):
                assert time.monotonic() < ends, "it did not come so far"
                time.sleep(0.02)
        finally:
            server.kill()
    return job_id


@pytest.mark.parametrize(
    ("act", "state", "trainings"),
    [("half", "failed", 1), ("pause", "succeeded", 2), ("make", "succeeded", 1)],
)
async def test_a_job_whose_server_was_killed_goes_on_from_what_is_whole_or_has_failed(
    tmp_path, act, state, trainings
):
    """Killed while the trainer wrote, behind its checkpoint, and while the workers loaded what it had made."""
    job_id = await asyncio.to_thread(killed_server, tmp_path, act)
    async with house(tmp_path) as again:
        (seen, *_) = await again.trained()
        await until_gone(seen["pid"])
        again.start()
        job = await again.done(await again.runner.get(job_id))
        assert (job.state, job.report.error) == (state, LOST if state == "failed" else None)
        assert len(await again.trained()) == trainings
        await again.swept()
        kept = [path.name for path in (tmp_path / "artifacts").glob("*")]
        assert kept == [job.artifact][: state == "succeeded"] and texts(tmp_path) == []
        assert job.attached is (True if kept else None)
        assert [one[1] for one in standing(again.register.view("jane")[0])] == kept


async def test_an_artifact_that_was_put_into_the_target_before_its_server_died_is_there(here):
    here.start()
    job = await here.done(await here.submit())
    view, _ = here.register.view("jane")
    artifact = ArtifactStore(here.folder / "artifacts").get(job.artifact)
    assert await here.runner._attach(job, artifact, 1, Log())
    assert here.register.view("jane")[0]["version"] == view["version"] == 2


async def test_a_job_of_a_server_that_vanished_is_left_alone_until_its_lease_is_over(tmp_path):
    times = Times(poll=0.05, lease=1.0, grace=60.0)
    async with house(tmp_path, times=times) as here:
        await here.register.put("jane", JANE)
        job = await here.submit()
        now = time.time()
        assert here.store.jobs.claim("vanished", now, now + 1.0).id == job.id
        (here.folder / "jobs" / job.id).mkdir(parents=True)
        here.start()
        await asyncio.sleep(0.4)
        assert (await here.runner.get(job.id)).state == "running"
        job = await here.done(job)
        assert (job.state, job.report.error) == ("failed", LOST)
        assert job.ended_at >= now + 1.0
        await here.swept()


async def test_the_job_of_another_machine_is_left_to_it_for_longer(tmp_path):
    times = Times(poll=0.05, lease=0.2, grace=1.0)
    async with house(tmp_path, times=times) as here:
        await here.register.put("jane", JANE)
        job = await here.submit()
        now = time.time()
        here.store.jobs.claim("elsewhere", now, now + 0.2)
        here.start()
        job = await here.done(job)
        assert (job.report.error, job.ended_at >= now + 1.2) == (LOST, True)


def test_where_an_artifact_goes_in_a_ladder():
    put = {"params": {"artifact": "d"}}
    assert ladder_with("auto", "m", "d") == [{"method": "m", **put}, {"method": "embedding_corruption"}]
    assert ladder_with({"method": "m", "params": {"strength": 2}}, "m", "d") == [
        {"method": "m", "params": {"strength": 2, "artifact": "d"}}
    ]
    refusal = {"method": "refusal", "min_score": 0.9}
    assert ladder_with([{"method": "m", "params": {"artifact": "old"}}, refusal], "m", "d") == [
        {"method": "m", **put},
        refusal,
    ]
    assert ladder_with(refusal, "m", "d") is None
