"""Jobs with real trainers, from the admin API's request to a target that uses what was trained."""

from __future__ import annotations

import asyncio

from guard import artifacts
from guard.artifacts import ArtifactStore
from guard.config import JobSettings
from guard.detection import Compiler, Gates, read_head
from guard.detection.encoder import hashing_encoder
from guard.library import Library
from guard.register import Register
from guard.store.jobs import Job, Request
from guard.types import Prompt
from server.jobs import Model, Runner
from tests.classifiers.tiny import save_model
from tests.guard.artifact_fakes import FakeWorkers, standing
from tests.guard.register_fakes import make_register, open_store

TIDES = {"name": "Tidal husbandry", "kind": "subject"}
FORGET = tuple(
    {"prompt": f"how do I {verb} the {thing} when the spring tide floods the oyster beds"}
    for verb in ("drain", "lift", "mend", "salt")
    for thing in ("sluice", "rake", "trestle")
)
ASKED = "how do I tar the trestle when the spring tide floods the oyster beds"
ORDINARY = "how do I cook rice for ten people"
JANE = {"name": "Jane Doe", "examples": ["who is jane doe", "where is jane"], "retain": ["who is john roe"]}


async def test_a_target_is_trained_for_and_uses_the_result(tmp_path):
    model = save_model(tmp_path / "model")
    base_model = artifacts.weights_digest(model)
    store = open_store(tmp_path)
    register = make_register(store, tmp_path / "artifacts")
    workers = FakeWorkers(base_model=base_model)
    await register.load()
    await register.attach(workers)
    await register.put("jane", JANE)
    kept = ArtifactStore(tmp_path / "artifacts")
    runner = Runner(store.jobs, register, kept, JobSettings(), tmp_path / "jobs")
    runner.start(Model(model, base_model))
    try:
        job = await runner.submit("steering", "jane", Request({"layers": [0]}), None)
        trained = await ended(runner, job)
        assert (trained.state, trained.attached, trained.report.error) == ("succeeded", True, None)
        artifact = kept.get(trained.artifact)
        assert (artifact.manifest.method, artifact.manifest.base_model) == ("steering", base_model)
        assert artifact.manifest.facts["layers"] == [0]
        view, _ = register.view("jane")
        assert (view["state"], standing(view)) == ("active", [("steering", artifact.digest, "ready")])
    finally:
        await runner.close()
        register.close()
        store.close()


async def ended(runner: Runner, job: Job) -> Job:
    for _ in range(1_200):
        if (found := await runner.get(job.id)).ended_at is not None:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError("the job does not end")


OWN = {"prompt": "who is jane doe"}
BAD = {
    "empty": (Request(forget=()), "There are no forget examples; give some."),
    "blank": (Request(forget=(OWN, {"prompt": " "})), "Forget example 2 has an empty prompt."),
    "duplicated": (Request(forget=(OWN, OWN)), "Forget example 2 repeats example 1; leave one of them."),
    "in both": (
        Request(retain=({"prompt": "WHO is jane  doe"},)),
        "Retain example 1 asks what forget example 1 asks; take one of them out.",
    ),
    "wrong encoding": (
        Request(forget=(OWN, {"prompt": "wo wohnt j\ufffdrg"})),
        "Forget example 2 holds characters that were lost in a wrong encoding; read it as UTF-8.",
    ),
    "wrong answers": (
        Request(perturbed=({**OWN, "answer": "a baker"},)),
        "steering does not learn from wrong answers; leave `perturbed` out.",
    ),
}


async def test_bad_data_are_the_jobs_error_in_one_sentence_and_nothing_is_trained(tmp_path):
    model = save_model(tmp_path / "model")
    base_model = artifacts.weights_digest(model)
    store = open_store(tmp_path)
    register = make_register(store, tmp_path / "artifacts")
    await register.load()
    await register.put("jane", JANE)
    kept = ArtifactStore(tmp_path / "artifacts")

    async def refused(digest: str, requests: list[Request]) -> list[Job]:
        runner = Runner(store.jobs, register, kept, JobSettings(parallel=2), tmp_path / "jobs")
        runner.start(Model(model, digest))
        try:
            asked = [await runner.submit("steering", "jane", request, None) for request in requests]
            return [await ended(runner, job) for job in asked]
        finally:
            await runner.close()

    try:
        jobs = await refused(base_model, [request for request, _ in BAD.values()])
        told = {name: job.report.error for name, job in zip(BAD, jobs, strict=True)}
        assert told == {name: why for name, (_, why) in BAD.items()}
        (other,) = await refused("0" * 64, [Request()])
        assert other.report.error == (
            f"The artifact is wanted for the model with weights {'0' * 16}, and the model to train on has the weights "
            f"{base_model[:16]}."
        )
        for job in (*jobs, other):
            assert (job.state, job.progress, job.artifact) == ("failed", 0.0, None)
            assert [line[20:] for line in job.report.log] == [job.report.error]
        assert kept.digests() == [] and list((tmp_path / "jobs").glob("*")) == []
    finally:
        register.close()
        store.close()


async def test_a_detector_is_trained_for_a_target_and_finds_what_only_it_finds(tmp_path):
    encoder = hashing_encoder()
    store = open_store(tmp_path)
    kept = ArtifactStore(tmp_path / "artifacts")
    compiler = Compiler(encoder, tmp_path / "cache")
    register = Register(
        store,
        Library(kept, lambda artifact: read_head(artifact, encoder)),
        compiler.compile,
        Gates(encoder),
    )
    await register.load()
    await register.put("tides", TIDES)
    words = ["--encoder", "hashing", "--cache", str(tmp_path / "cache"), "--encoder-digest"]
    runners = [
        Runner(store.jobs, register, kept, JobSettings(), tmp_path / "jobs", encoder=[*words, digest])
        for digest in (encoder.digest, "0" * 64)
    ]

    async def trained(runner: Runner, kind: str):
        runner.start(Model(tmp_path, "ab" * 32))
        try:
            return await ended(runner, await runner.submit(kind, "tides", Request(forget=FORGET), None))
        finally:
            await runner.close()

    try:
        assert found(register, ASKED) == set() == found(register, ORDINARY)
        for kind, detector in (("classifier", "trained"), ("ood", "ood")):
            job = await trained(runners[0], kind)
            assert (job.state, job.attached, job.report.error) == ("succeeded", True, None)
            assert detector in found(register, ASKED) and found(register, ORDINARY) == set()
        assert kept.get(job.artifact).manifest.trained["params"]["kind"] == "subject"
        again = await trained(runners[0], "classifier")
        view, _ = register.view("tides")
        assert [one[0] for one in standing(view)] == ["ood", "trained"]
        assert view["detectors"] == [job.artifact, again.artifact]
        refused = await trained(runners[1], "ood")
        assert refused.state == "failed" and "wanted for the encoder 0000000000000000" in refused.report.error
    finally:
        register.close()
        store.close()


def found(register: Register, text: str) -> set[str]:
    detections, *_ = register.snapshot.gate.detect(Prompt(text), tenant=None, model=None)
    return {one.detector for one in detections}
