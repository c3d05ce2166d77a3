"""The means are those of the right examples at the right tokens, and make a table that steers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from classifiers.base import Task, run
from classifiers.data import Example, encode
from guard import artifacts
from guard.errors import BadRequest
from guard.interventions.steering import Steering
from tests.classifiers.tiny import FORGET, KNOWN, UNKNOWN, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


def train(model: Path, out: Path, retain: tuple[Example, ...] = (*KNOWN, *UNKNOWN), **params: Any) -> Any:
    return run("steering", Task(model, FORGET, retain, out), params)


def last_tokens(model: Path, examples: tuple[Example, ...], layer: int) -> torch.Tensor:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    found = []
    for example in examples:
        ids = encode(tokenizer, example)
        with torch.no_grad():
            states = network(
                torch.tensor([ids.ids[: ids.answer_at]]), output_hidden_states=True
            ).hidden_states
        found.append(states[layer + 1][0, -1])
    return torch.stack(found).mean(0)


def test_means_at_the_last_prompt_token(model: Path, tmp_path: Path) -> None:
    artifact = train(model, tmp_path, layers=[0])
    tensors = artifact.tensors()
    for name, examples in (("forget", FORGET), ("retain", KNOWN), ("unknown", UNKNOWN)):
        assert torch.allclose(tensors[name][0], last_tokens(model, examples, 0), atol=1e-5), name
    assert artifact.manifest.facts == {"layers": [0], "at": "last", "unknown": True}
    assert artifact.manifest.measured["examples"] == {"forget": 2, "retain": 2, "unknown": 1}
    assert artifact.manifest.base_model == artifacts.weights_digest(model)


def test_the_engine_can_steer_with_it(model: Path, tmp_path: Path) -> None:
    artifact = train(model, tmp_path, layers="all")
    assert artifact.manifest.method == "steering"
    table = Steering().load(artifact.tensors(), artifact.manifest.facts)
    rows = torch.zeros(1, dtype=torch.int64)
    x = artifact.tensors()["forget"][1:]
    moved = Steering().edit(x, rows, rows, 1, {"mode": "redirection", "strength": 1.0}, table)
    assert torch.allclose(moved, artifact.tensors()["unknown"][1:], atol=1e-6)


def test_without_unknown_items_there_is_no_redirection(model: Path, tmp_path: Path) -> None:
    artifact = train(model, tmp_path, KNOWN)
    assert set(artifact.tensors()) == {"forget", "retain"}
    assert artifact.manifest.facts["unknown"] is False


def test_answers_are_other_tokens_than_the_last_one(model: Path, tmp_path: Path) -> None:
    means = [train(model, tmp_path / at, at=at).tensors()["forget"] for at in ("last", "answer", "all")]
    assert not torch.allclose(means[0], means[1])
    assert not torch.allclose(means[1], means[2])


def test_too_few_examples_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="retain examples"):
        train(model, tmp_path, UNKNOWN)
    with pytest.raises(BadRequest, match="layers 0 to 1"):
        train(model, tmp_path, layers=[7])
    with pytest.raises(BadRequest, match="at"):
        train(model, tmp_path, at="first")
