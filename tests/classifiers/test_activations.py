"""What is collected is what the model computes, whatever is read together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from classifiers.activations import blocks, chosen_tokens, collect, layers_of, load_model
from classifiers.data import Encoded, encode
from guard.errors import BadRequest
from tests.classifiers.tiny import FORGET, KNOWN, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(save_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def examples(model: Any) -> list[Encoded]:
    return [encode(model[1], e) for e in (*FORGET, *KNOWN)]


def test_residuals_are_the_model_s_hidden_states(model: Any, examples: list[Encoded]) -> None:
    for example, values in collect(model[0], examples, "residual", [0]):
        with torch.no_grad():
            out = model[0](torch.tensor([example.ids]), output_hidden_states=True)
        assert values.shape == (1, len(example.ids), 16)
        assert torch.allclose(values[0], out.hidden_states[1][0], atol=1e-6)


def test_neurons_are_the_gate_s_output(model: Any, examples: list[Encoded]) -> None:
    seen: list[torch.Tensor] = []
    gate = blocks(model[0])[1].mlp.gate_proj
    for example, values in collect(model[0], examples, "neuron", [0, 1]):
        hook = gate.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
        with torch.no_grad():
            model[0](torch.tensor([example.ids]))
        hook.remove()
        assert values.shape == (2, len(example.ids), 24)
        assert torch.allclose(values[1], seen[-1], atol=1e-6)


def test_reading_together_changes_nothing_and_leaves_no_hook(model: Any, examples: list[Encoded]) -> None:
    hooks = [len(block._forward_hooks) for block in blocks(model[0])]
    apart = {e.ids: v for e, v in collect(model[0], examples, "residual", [1], tokens_at_once=1)}
    together = list(collect(model[0], examples, "residual", [1]))
    assert sorted(e.ids for e, _ in together) == sorted(e.ids for e in examples)
    for example, values in together:
        assert torch.allclose(values, apart[example.ids], atol=1e-5)
    assert [len(block._forward_hooks) for block in blocks(model[0])] == hooks


@pytest.mark.parametrize(
    ("which", "expected"), [("last", [2]), ("answer", [3, 4]), ("prompt", [1, 2]), ("all", [1, 2, 3, 4])]
)
def test_which_tokens(which: Any, expected: list[int]) -> None:
    values = torch.arange(5.0).view(1, 5, 1)
    assert chosen_tokens(Encoded((9, 8, 7, 6, 5), 3), values, which).flatten().tolist() == expected


def test_layers_are_checked(model: Any) -> None:
    assert layers_of(model[0], "all") == [0, 1]
    assert layers_of(model[0], "middle") == [1]
    assert layers_of(model[0], [1, 1, 0]) == [0, 1]
    for wanted in ([2], [-1], []):
        with pytest.raises(BadRequest, match="layers 0 to 1"):
            layers_of(model[0], wanted)


def test_a_network_without_a_gate_is_refused() -> None:
    plain = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    with pytest.raises(BadRequest, match="gate"):
        next(collect(torch.nn.Sequential(plain), [Encoded((1,), 1)], "neuron", [0]))
