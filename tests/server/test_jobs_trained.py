"""A job with a real trainer, from the admin API's request to a target that uses what was trained."""

from __future__ import annotations

import asyncio

from guard import artifacts
from guard.artifacts import ArtifactStore
from guard.config import JobSettings
from guard.store.jobs import Request
from server.jobs import Model, Runner
from tests.classifiers.tiny import save_model
from tests.guard.artifact_fakes import FakeWorkers, standing
from tests.guard.register_fakes import make_register, open_store

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
        overlap = ({"prompt": "WHO is jane  doe"},)
        asked = [
            await runner.submit("steering", "jane", Request({"layers": [0]}), None),
            await runner.submit("steering", "jane", Request(retain=overlap), None),
        ]
        for _ in range(1_200):
            trained, refused = [await runner.get(job.id) for job in asked]
            if refused.ended_at is not None:
                break
            await asyncio.sleep(0.1)
        assert (trained.state, trained.attached, trained.report.error) == ("succeeded", True, None)
        artifact = kept.get(trained.artifact)
        assert (artifact.manifest.method, artifact.manifest.base_model) == ("steering", base_model)
        assert artifact.manifest.facts["layers"] == [0]
        view, _ = register.view("jane")
        assert (view["state"], standing(view)) == ("active", [("steering", artifact.digest, "ready")])
        assert (refused.state, refused.report.error) == (
            "failed",
            "Retain example 1 asks what forget example 1 asks; take one of them out.",
        )
    finally:
        await runner.close()
        register.close()
        store.close()
