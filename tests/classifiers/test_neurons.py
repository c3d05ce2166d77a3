"""The Gaussians are those of the neurons' values, and the chosen neurons are those that tell the sets apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from classifiers.activations import blocks
from classifiers.base import Task, run
from classifiers.data import Example, encode
from classifiers.neurons import NeuronParams, Neurons
from guard.errors import BadRequest
from guard.interventions.neuron_adjust import NeuronAdjust
from tests.classifiers.tiny import FORGET, KNOWN, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


def values(model: Path, examples: tuple[Example, ...], layer: int) -> torch.Tensor:
    """Gate pre-activations [tokens, 24] of all tokens but each example's first, read one by one."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    found: list[torch.Tensor] = []
    blocks(network)[layer].mlp.gate_proj.register_forward_hook(
        lambda m, i, output: found.append(output[0, 1:])
    )
    for example in examples:
        with torch.no_grad():
            network(torch.tensor([encode(tokenizer, example).ids]))
    return torch.cat(found).double()


def train(model: Path, out: Path, **params: Any) -> Any:
    return run("neurons", Task(model, FORGET, KNOWN, out), params)


def test_gaussians_are_means_and_standard_deviations(model: Path, tmp_path: Path) -> None:
    tensors = train(model, tmp_path, layers=[1], share=1.0).tensors()
    for name, examples in (("forget", FORGET), ("retain", KNOWN)):
        seen = values(model, examples, 1)[:, tensors["1.index"]]
        expected = torch.stack([seen.mean(0), seen.std(0)])
        assert torch.allclose(tensors[f"1.{name}"], expected, atol=1e-5), name


@pytest.mark.parametrize("both_sides", [False, True])
def test_chosen_are_the_best_of_all_layers_together(model: Path, tmp_path: Path, both_sides: bool) -> None:
    artifact = train(model, tmp_path, share=0.125, both_sides=both_sides)
    scores = []
    for layer in (0, 1):
        forget, retain = values(model, FORGET, layer), values(model, KNOWN, layer)
        score = forget.mean(0) - retain.mean(0)
        scores.append(score.abs() if both_sides else score)
    best = torch.cat(scores).topk(6).indices.tolist()
    chosen = [
        24 * layer + int(i)
        for layer in artifact.manifest.facts["layers"]
        for i in artifact.tensors()[f"{layer}.index"]
    ]
    assert sorted(best) == chosen
    assert artifact.manifest.facts["neurons"] == 6


def test_the_engine_can_adjust_with_it(model: Path, tmp_path: Path) -> None:
    artifact = train(model, tmp_path, share=0.5)
    assert artifact.manifest.method == "neuron_adjust"
    table = NeuronAdjust().load(artifact.tensors(), artifact.manifest.facts)
    x = values(model, FORGET, 0).float()
    rows = torch.arange(len(x))
    out = NeuronAdjust().edit(x, rows, rows, 0, {"strength": 1.0}, table)
    moved = (out != x).any(dim=0).nonzero().flatten().tolist()
    assert moved
    assert set(moved) <= set(table[0].index.tolist())


def test_bad_sets_and_parameters_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="both"):
        run("neurons", Task(model, FORGET, (), tmp_path), {})
    with pytest.raises(BadRequest, match="No neuron"):
        Neurons().train(Task(model, FORGET, FORGET, tmp_path), NeuronParams())
    with pytest.raises(BadRequest, match="share"):
        train(model, tmp_path, share=0)
