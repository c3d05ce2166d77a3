"""Artifacts into a real engine: a table in every worker and a canary that shows its effect, or nothing at all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from guard import artifacts
from guard.engine.loading import EngineWorkers, load_artifact, unload_artifact
from guard.errors import ArtifactError
from guard.types import Edit

pytestmark = pytest.mark.engine
WIDTH = 64


@pytest.fixture
def made(model_dir: Path, tmp_path: Path):
    """Steering artifacts that move the residual by `strength` times one direction."""

    def make(strength: float = 5.0, *, base_model: str | None = None, **facts: Any) -> artifacts.Artifact:
        folder = tmp_path / f"a{len(list(tmp_path.iterdir()))}"
        direction = torch.linspace(-1, 1, WIDTH).unsqueeze(0)
        tensors = {"forget": 0 * direction, "retain": direction, "unknown": strength * direction}
        base = base_model or artifacts.weights_digest(model_dir)
        known = {"layers": [1], "unknown": True, **facts}
        return artifacts.write(folder, "steering", base, tensors=tensors, facts=known)

    return make


def held(served: Any) -> list[str]:
    (status,) = served.run(served.engine.collective_rpc("lethe_status"))
    return status["tables"]


def test_an_artifact_with_an_effect_is_in_every_worker(served, made):
    artifact = made()
    served.run(load_artifact(served.engine, artifact))
    assert held(served) == [artifact.digest]
    served.run(unload_artifact(served.engine, artifact.digest))
    assert held(served) == []


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"strength": 0.0}, "does not change"),
        ({"strength": float("nan")}, "failed its canary"),
        ({"base_model": "ab" * 32}, "another model"),
        ({"layers": [9]}, "failed its canary"),
        ({"unknown": False}, "does not change"),  # the method cannot act with it
        ({"canary": ["x"]}, "lacks what steering needs"),
        ({"params": {"strngth": 1}}, "lacks what steering needs"),
    ],
)
def test_an_artifact_that_does_nothing_or_does_not_fit_is_in_no_worker(served, made, options, why):
    with pytest.raises(ArtifactError, match=why):
        served.run(load_artifact(served.engine, made(**options)))
    assert held(served) == []


def test_an_artifact_brings_the_prompt_and_the_parameters_that_show_it(served, made, monkeypatch):
    asked: list[tuple[list[int], tuple[Edit, ...]]] = []
    canary = served.engine.canary

    async def seen(ids: list[int], params: Any, edits: tuple[Edit, ...] = ()) -> Any:
        asked.append((ids, edits))
        return await canary(ids, params, edits)

    monkeypatch.setattr(served.engine, "canary", seen)
    artifact = made(unknown=False, canary=[5, 6, 383, 7], params={"mode": "additive", "strength": 3.0})
    served.run(load_artifact(served.engine, artifact))
    assert {tuple(ids) for ids, _ in asked} == {(5, 6, 383, 7)}
    (edit,) = asked[-1][1]
    assert (edit.params["strength"], edit.table) == (3.0, artifact.digest)
    served.run(unload_artifact(served.engine, artifact.digest))


def test_the_canary_can_be_left_out(served, made):
    artifact = made(strength=0.0)
    served.run(load_artifact(served.engine, artifact, prove=False))
    assert held(served) == [artifact.digest]
    served.run(unload_artifact(served.engine, artifact.digest))


def test_workers_are_called_from_another_thread(served, made, model_dir):
    good, bad = made(), made(strength=0.0)

    async def work() -> EngineWorkers:
        workers = await EngineWorkers.of(served.engine)
        await asyncio.to_thread(workers.load, good, canary=True)
        with pytest.raises(ArtifactError):
            await asyncio.to_thread(workers.load, bad, canary=True)
        return workers

    workers = served.run(work())
    assert workers.base_model == artifacts.weights_digest(model_dir)
    assert {("embedding", None), ("residual", 0), ("residual", 1), ("neuron", 1)} <= workers.places
    assert held(served) == [good.digest]

    async def unload() -> None:
        await asyncio.to_thread(workers.unload, good.digest)

    served.run(unload())
    assert held(served) == []
