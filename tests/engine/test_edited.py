"""What trainers measure in process is what the engine does: the same plans, by another way into the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from classifiers.activations import load_model
from classifiers.data import Example
from classifiers.edited import Reader, Row, Speaker, Treatment, draws
from guard import artifacts
from guard.config import AdapterSettings
from guard.engine.loading import load_artifact, unload_artifact
from guard.types import Plan
from tests.engine.conftest import Harness, planned, serving
from tests.engine.samples import SAMPLES

pytestmark = pytest.mark.engine
NAME = "lazy dog"
EXAMPLES = (
    Example((("user", f"the quick brown fox jumps over a {NAME}"),), " while many small birds sing"),
    Example((("user", f"a {NAME} in old trees"),), " jumps over the fox"),
    Example((("user", "many small birds"),), " sing in old trees"),
)
FOUND = {"strength": 1.5, "dims": 48, "noise": "gaussian", "tokens": "window"}


@pytest.fixture(scope="module")
def engine(model_dir: Path) -> Iterator[Harness]:
    with serving(model_dir, AdapterSettings(slots=1, max_rank=8, resident=1)) as harness:
        harness.engine.guard = harness.guard
        yield harness


@pytest.fixture(scope="module")
def model(model_dir: Path) -> Any:
    return load_model(model_dir)


@pytest.fixture(params=[*SAMPLES, "factors"])
def treatment(
    engine: Harness, model_dir: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Treatment]:
    """Each method with its sample's artifact, which the worker has loaded; and a corruption with a factor for each
    dimension."""
    if request.param == "factors":
        base, factors = artifacts.weights_digest(model_dir), {"factors": torch.linspace(0.2, 1.8, 64)}
        artifacts.write(tmp_path, "embedding_corruption", base, tensors=factors, facts={"found": FOUND})
        params: dict[str, Any] = {}
    else:
        sample = SAMPLES[request.param]
        params = {**sample.plan(8, "")[0].params}
        params.pop("artifact", None)
        if sample.make is None:
            yield Treatment(request.param, params)
            return
        sample.make(model_dir, tmp_path)
    made = artifacts.read(tmp_path)
    engine.run(load_artifact(engine.engine, made, prove=False))
    yield Treatment.of(made, model_dir, **params)
    engine.run(unload_artifact(engine.engine, made.digest))


def test_answers_are_as_likely_in_the_engine_as_in_process(
    engine: Harness, model: Any, treatment: Treatment
) -> None:
    (draw,) = draws(0, 1)
    speaker, reader = Speaker(*model, [draw]), Reader(model[1], (NAME,))
    rows = list(map(reader.row, EXAMPLES))

    def in_engine(row: Row) -> float:
        plan = Plan(edits=row.edits(treatment, draw))
        scores = engine.run(engine.engine.score(row.prompt, planned(plan)(row.prompt), row.answer_ids))
        return float(np.exp(np.mean(scores)))

    def in_process(wanted: Treatment | None) -> Any:
        return np.array(speaker.scores(rows, wanted, "probability"))

    found = in_process(treatment)
    assert np.array(list(map(in_engine, rows))) == pytest.approx(found, rel=0.02)
    others = [None, replace(treatment, table=None)] if treatment.facts == {"found": FOUND} else [None]
    for other in others:  # else the comparison would prove nothing
        assert np.abs(found / in_process(other) - 1).max() > 0.05
