"""Adapters are read as they were written, by PEFT too, and measured on weights that are as they were afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from classifiers import lora
from classifiers.activations import load_model
from classifiers.base import Params, Task
from guard.errors import BadRequest
from tests.classifiers.tiny import FORGET, KNOWN, UNKNOWN, save_model

DOWN, GATE = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.gate_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Of two layers of the tiny model, with ranks 1 and 3."""
    generator = torch.Generator().manual_seed(0)
    shapes = {DOWN: (1, 24, 16), GATE: (3, 16, 24)}
    return {
        name: (torch.randn(rank, wide, generator=generator), torch.randn(out, rank, generator=generator))
        for name, (rank, wide, out) in shapes.items()
    }


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[2, 3, 4, 5]])).logits


def test_what_was_written_is_read_and_is_what_peft_adds(model, tmp_path):
    from peft import PeftModel

    wanted = pairs()
    made = lora.write(Task(model, FORGET, KNOWN, tmp_path), "made", Params(), wanted, {"n": 1})
    assert made.manifest.facts == {"rank": 3, "modules": [DOWN, GATE]}
    found = lora.read(made)
    assert found.keys() == wanted.keys()
    for name, (down, up) in wanted.items():
        torch.testing.assert_close(found[name][1] @ found[name][0], up @ down)
        assert len(found[name][0]) == 3, "one rank for all layers"
    plain, _ = load_model(model)
    before = logits(plain)
    with lora.added(plain, wanted):
        edited = logits(plain)
    assert torch.equal(logits(plain), before) and not torch.allclose(edited, before)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(plain, made.folder)), edited)


def test_the_scaling_is_within_what_is_read(model, tmp_path):
    down, up = pairs()[DOWN]
    tensors = {f"base_model.model.{DOWN}.lora_{half}.weight": t for half, t in (("A", down), ("B", up))}
    task = Task(model, FORGET, KNOWN, tmp_path)
    made = lora.write_tensors(
        task, "made", Params(), tensors, rank=1, scaling=2.5, modules=["down_proj"], measured={}
    )
    (read,) = lora.read(made).values()
    torch.testing.assert_close(read[1] @ read[0], 2.5 * up @ down)


def test_weights_are_as_they_were_even_after_an_error(model):
    plain, _ = load_model(model)
    before = logits(plain)
    with pytest.raises(ZeroDivisionError), lora.added(plain, pairs()):
        raise ZeroDivisionError
    assert torch.equal(logits(plain), before)
    with pytest.raises(BadRequest, match="no layer nowhere"), lora.added(plain, {"nowhere": pairs()[DOWN]}):
        pass


def test_measured_is_what_changes_and_of_how_many(model):
    plain, tokenizer = load_model(model)
    measure = lora.Measure(plain, tokenizer, FORGET, (*KNOWN, *UNKNOWN), sample=2, seed=0)
    told = measure.under(pairs())
    assert (told["forget_n"], told["retain_n"]) == (2, 2)
    assert told["forget_nll"] != told["forget_nll_before"]
    none = lora.Measure(plain, tokenizer, (), (), sample=2, seed=0)
    assert none.under(pairs()) == {}
