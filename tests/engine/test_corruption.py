"""What the trainer of corruptions measures is what the engine does: the same edits by another way into the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from classifiers.activations import load_model
from classifiers.corrupted import Corruption, Reader, Row, Speaker
from classifiers.data import Example
from guard import artifacts
from guard.interventions.embedding_corruption import EmbeddingCorruption
from guard.types import Chosen
from tests.engine.conftest import planned

pytestmark = pytest.mark.engine
NAME = "lazy dog"
EXAMPLES = (
    Example((("user", f"the quick brown fox jumps over a {NAME}"),), " while many small birds sing"),
    Example((("user", f"a {NAME} in old trees"),), " jumps over the fox"),
    Example((("user", "many small birds"),), " sing in old trees"),
)


@pytest.fixture
def found(served: Any, model_dir: Path, tmp_path: Path) -> Any:
    """A corruption with a factor for each dimension, as the worker has loaded it, and its digest."""
    params = {"strength": 1.5, "dims": 48, "noise": "gaussian", "tokens": "window"}
    corruption = Corruption(params, torch.linspace(0.2, 1.8, 64))
    base = artifacts.weights_digest(model_dir)
    facts, tensors = {"found": params}, {"factors": corruption.factors}
    made = artifacts.write(tmp_path / "found", "embedding_corruption", base, tensors=tensors, facts=facts)
    (reason,) = served.run(
        served.engine.collective_rpc("lethe_load", args=(made.digest, str(tmp_path / "found")))
    )
    assert reason is None
    yield corruption, made
    served.run(served.engine.collective_rpc("lethe_unload", args=(made.digest,)))


def test_answers_are_as_likely_in_the_engine_as_the_trainer_says(
    served: Any, model_dir: Path, found: Any
) -> None:
    corruption, made = found
    model, tokenizer = load_model(model_dir)
    speaker, reader = Speaker(model, tokenizer, seed=0, draws=1), Reader(tokenizer, (NAME,))
    rows = list(map(reader.row, EXAMPLES))

    def in_engine(row: Row) -> float:
        chosen = Chosen("embedding_corruption", {"artifact": made.digest}, (row.match,), made.manifest.facts)
        plan = EmbeddingCorruption().plan(chosen, row.prompt, lambda _: row.seed("0:0"))
        scores = served.run(served.engine.score(row.prompt, planned(plan)(row.prompt), row.answer_ids))
        return float(np.exp(np.mean(scores)))

    def trained(corruption: Corruption | None) -> Any:
        return np.array(speaker.scores(rows, corruption, "probability"))

    assert np.array(list(map(in_engine, rows))) == pytest.approx(trained(corruption), rel=0.02)
    for other in (None, replace(corruption, factors=None)):  # else the comparison would prove nothing
        assert np.abs(trained(corruption) / trained(other) - 1).max() > 0.05
