"""An adapter edits where it is told to, starts as FILA says, and adds to the stock model whatever it started from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from classifiers import fila
from classifiers.adapter import AdapterParams
from classifiers.adapter import _gradient as gradient_of
from classifiers.base import Task, run
from classifiers.checkpoints import Checkpoint
from classifiers.data import encode
from classifiers.losses.base import Pair, Step, answers
from classifiers.losses.updates import slope
from classifiers.places import MemFlex, Sensed, Wagle, linear_layers, sensed
from classifiers.progress import Silent
from guard.errors import BadRequest
from guard.interventions.lora_adapter import CONFIG, LoraAdapter, adapter_id
from tests.classifiers.tiny import FORGET, KNOWN, UNKNOWN, save_model

RETAIN = (*KNOWN, *UNKNOWN)
QUICK = {"rank": 3, "steps": 6, "batch": 2, "learning_rate": 0.05}
ATTENTION = {
    f"model.layers.{layer}.self_attn.{module}" for layer in (0, 1) for module in ("q_proj", "v_proj")
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def read(folder, examples):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [encode(tokenizer, example) for example in examples]


def logits(model):
    with torch.no_grad():
        return model(torch.arange(2, 20)[None]).logits


def edited(artifact) -> set[str]:
    names = artifact.tensors()
    return {name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for name in names}


@pytest.mark.parametrize(
    ("layers", "found"),
    [("all", {0, 1}), ("lower", {0}), ((1,), {1})],
)
def test_layers_are_all_or_the_lower_ones_or_those_that_are_named(model, layers, found):
    weights = linear_layers(model, ("down_proj",), layers)
    assert set(weights) == {f"model.layers.{layer}.mlp.down_proj" for layer in found}


def test_what_is_in_no_layer_is_edited_where_all_are(model):
    assert set(linear_layers(model, ("lm_head",), "all")) == {"lm_head"}
    with pytest.raises(BadRequest, match="lm_head there"):
        linear_layers(model, ("lm_head",), (0, 1))


@pytest.mark.parametrize("params", [{"layers": "lower"}, {"layers": [0], "attribution": "memflex"}])
def test_only_where_it_is_told_to(folder, tmp_path, params):
    made = run("adapter", Task(folder, FORGET, RETAIN, tmp_path), {**QUICK, **params})
    places = edited(made)
    assert places and all(name.startswith("model.layers.0.") for name in places)
    config = json.loads((made.folder / CONFIG).read_text())
    assert set(config["target_modules"]) == places == set(made.manifest.facts["modules"])
    facts = {"model": folder, "folder": made.folder, "digest": made.digest}
    assert LoraAdapter().load(made.tensors(), facts) == adapter_id(made.digest)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = logits(stock)
    assert not torch.allclose(logits(PeftModel.from_pretrained(stock, made.folder).eval()), before)


def test_attribution_takes_its_share_of_the_places(folder, tmp_path):
    params = {**QUICK, "modules": ["q_proj", "v_proj"], "attribution": {"name": "wagle", "share": 0.3}}
    assert (
        len(edited(run("adapter", Task(folder, FORGET, RETAIN, tmp_path), params))) == 2
    )  # of 4, rounded up


def test_gradients_are_means_over_single_examples(folder, model):
    weights = linear_layers(model, ("down_proj",), (1,))
    ((name, weight),) = weights.items()
    before = weight.detach().clone()
    examples = read(folder, KNOWN)
    found = sensed(model, weights, examples, seed=0)
    own = []
    for one in examples:
        weight.requires_grad_(True)
        answers(model, [one]).nll.mean().backward()
        own.append(weight.grad)
        weight.grad = None
    both = torch.stack(own)
    assert torch.allclose(found.mean[name], both.mean(dim=0), atol=1e-6)
    assert torch.allclose(found.square[name], (both**2).mean(dim=0), atol=1e-6)
    assert torch.equal(weight, before)


def sense(**of) -> Sensed:
    mean = {name: torch.tensor(values) for name, values in of.items()}
    return Sensed(mean, {name: values**2 for name, values in mean.items()})


def test_wagle_scores_what_a_weight_does_to_the_forget_loss_beside_the_retain_loss():
    weights = {"a": torch.tensor([[2.0, 1.0]]), "b": torch.tensor([[1.0, 1.0]])}
    forget, retain = sense(a=[[0.5, 0.5]], b=[[1.0, -1.0]]), sense(a=[[0.4, 0.0]], b=[[0.2, 0.2]])
    found = Wagle(curvature=0.2).scores(weights, forget, retain)
    assert found == pytest.approx({"a": 0.25, "b": 0.0})  # (2 - 0.4 / 0.2) * 0.5 and 1 * 0.5; (1 - 1) * 1
    mean = (0.16 + 0.04 + 0.04) / 4
    found = Wagle().scores(weights, forget, retain)
    assert found["b"] == pytest.approx(abs(1 - 0.2 / mean))


def test_memflex_leaves_out_what_both_sets_pull_alike():
    weights = {name: torch.zeros(1, 2) for name in "abc"}
    forget = sense(a=[[3.0, 3.0]], b=[[1.0, -1.0]], c=[[2.0, 0.0]])
    retain = sense(a=[[1.0, 1.0]], b=[[1.0, 1.0]], c=[[0.0, 5.0]])
    assert MemFlex().scores(weights, forget, retain) == pytest.approx({"b": 1.0, "c": 1.0})
    assert MemFlex(share=1.0).choose(weights, forget, retain) == ("b", "c")
    with pytest.raises(BadRequest, match="No place"):
        MemFlex(similarity=-0.5).choose(weights, forget, retain)


def test_fila_takes_the_parts_of_the_weights_that_matter():
    generator = torch.Generator().manual_seed(1)
    weight, importance = torch.randn(8, 6, generator=generator), torch.rand(8, 6, generator=generator)
    down, up = fila.principal(weight, importance, 6, 2.0)
    assert torch.allclose(2.0 * up @ down, weight, atol=1e-4)  # all parts are the weight itself
    importance[1:] = 0.0
    down, up = fila.principal(weight, importance, 1, 2.0)
    assert torch.allclose((2.0 * up @ down)[0], weight[0], atol=1e-3)  # one part is the row that matters


def test_fila_starts_as_no_change_and_moves_one_half_alone(folder, model, tmp_path):
    params = {**QUICK, "init": "fila", "loss": "ihl", "modules": ["down_proj"]}
    made = run("adapter", Task(folder, FORGET, RETAIN, tmp_path), params)
    assert made.manifest.facts["rank"] == json.loads((made.folder / CONFIG).read_text())["r"] == 6
    weights = linear_layers(model, ("down_proj",), "all")
    own, other = (sensed(model, weights, read(folder, examples), 0) for examples in (FORGET, RETAIN))
    before = logits(model)
    adapted = get_peft_model(model, LoraConfig(r=6, lora_alpha=12, target_modules=["down_proj"]))
    fila.start(adapted, tuple(weights), own, other, 3, 2.0, 0)
    assert torch.allclose(logits(adapted), before, atol=1e-5)
    name = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    started = adapted.state_dict()[name.replace(".weight", ".default.weight")]
    trained = made.tensors()[name]
    assert torch.equal(trained[3:], started[3:]) and not torch.allclose(trained[:3], started[:3])


def test_what_fila_exports_adds_to_the_stock_model(folder, tmp_path):
    """The paper's own form: the first parts are taken out of the weights, and the trained matrices put there."""
    made = run("adapter", Task(folder, FORGET, RETAIN, tmp_path), {**QUICK, "init": "fila", "loss": "ihl"})
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tensors = load_file(made.folder / "adapter_model.safetensors")
    changed = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for place in edited(made):
            down, up = (tensors[f"base_model.model.{place}.lora_{half}.weight"] for half in "AB")
            weight = changed.get_submodule(place).weight
            weight -= 2.0 * -up[:, 3:] @ down[3:]  # B0 is kept turned round
            weight += 2.0 * up[:, :3] @ down[:3]
    exported = PeftModel.from_pretrained(stock, made.folder).eval()
    assert torch.allclose(logits(exported), logits(changed), atol=1e-4)
    assert not torch.allclose(
        logits(exported), logits(AutoModelForCausalLM.from_pretrained(folder)), atol=1e-2
    )


class Killed(Silent):
    def report(self, done: float, stage: str) -> None:
        if stage == "training" and done >= 0.7:
            raise KeyboardInterrupt


def test_what_an_adapter_remembers_of_its_gradients_survives_a_kill(folder, tmp_path):
    params = {**QUICK, "steps": 12, "loss": "ihl", "retain": "nll_kl", "update": "mudman", "sam": 0.05}
    params |= {"init": "fila", "layers": [1], "attribution": "wagle"}
    whole = run("adapter", Task(folder, FORGET, RETAIN, tmp_path / "whole"), params)
    checkpoint = Checkpoint(tmp_path / "work", every=5)
    with pytest.raises(KeyboardInterrupt):
        run("adapter", Task(folder, FORGET, RETAIN, tmp_path / "cut", None, Killed(), checkpoint), params)
    again = run(
        "adapter", Task(folder, FORGET, RETAIN, tmp_path / "again", None, Silent(), checkpoint), params
    )
    assert again.digest == whole.digest


@pytest.mark.parametrize(
    "params",
    [
        {"sam": 0.5},
        {"update": "ngdiff"},
        {"update": "mudman"},
        {"gamma": 3.0},
        {"retain_weight": 0.1},
        {"retain": "none"},
        {"retain": "kl"},
        {"loss": {"name": "npo", "beta": 2.0}},
    ],
)
def test_what_is_chosen_is_what_is_trained(folder, tmp_path, params):
    quick = {**QUICK, "steps": 4, "sample": 1, "loss": "npo", "modules": ["down_proj"]}
    plain, other = (
        run("adapter", Task(folder, FORGET, RETAIN, tmp_path / name), {**quick, **more}).tensors()
        for name, more in (("plain", {}), ("other", params))
    )
    assert any(not torch.allclose(tensor, other[name]) for name, tensor in plain.items())


def test_with_sam_the_forget_gradient_is_that_of_the_weights_uphill(folder, model):
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["down_proj"])).eval()
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    pairs = [Pair(one) for one in read(folder, FORGET)]
    params = AdapterParams(loss="ga", gamma=2.0, sam=0.5)
    found = gradient_of(Step(adapted, pairs, []), weights, params, {})
    here = slope(params.loss(Step(adapted, pairs, [])), weights)
    length = torch.cat([g.flatten() for g in here]).norm()
    with torch.no_grad():
        for weight, gradient in zip(weights, here, strict=True):
            weight += 0.5 * gradient / length
    there = slope(params.loss(Step(adapted, pairs, [])), weights)
    assert all(torch.allclose(g, 2.0 * t, atol=1e-5) for g, t in zip(found, there, strict=True))
    assert not all(torch.allclose(h, t, atol=1e-3) for h, t in zip(here, there, strict=True))
