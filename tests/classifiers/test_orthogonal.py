"""An adapter keeps apart from those before it: by O3's equation, after training, and where training was cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from classifiers import lora
from classifiers.activations import load_model
from classifiers.base import Task, run
from classifiers.checkpoints import Checkpoint
from classifiers.losses.updates import slope
from classifiers.orthogonal import Orthogonal
from guard.artifacts import Artifact
from tests.classifiers.test_training import Told
from tests.classifiers.tiny import FORGET, KNOWN, UNKNOWN, save_model

QUICK = {"rank": 2, "steps": 40, "batch": 2, "learning_rate": 0.02}
FIRST, SECOND = FORGET[:1], FORGET[1:]
RETAIN = (*KNOWN, *UNKNOWN)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def earlier(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run("adapter", Task(model, FIRST, RETAIN, tmp_path_factory.mktemp("first")), QUICK)


def overlap(one: Artifact, other: Artifact) -> float:
    mine, theirs = lora.read(one), lora.read(other)
    return sum(float((theirs[name][0] @ mine[name][0].T).square().sum()) for name in mine)


def adapted(model: Path, rank: int = 2):
    from peft import LoraConfig, get_peft_model

    plain, _ = load_model(model)
    return get_peft_model(plain, LoraConfig(r=rank, target_modules=["q_proj", "up_proj"]))


def test_the_penalty_is_o3s_and_its_gradient_is_that_of_its_equation(model):
    ours, generator = adapted(model), torch.Generator().manual_seed(1)
    names = [f"model.layers.{layer}.{of}" for layer in (0, 1) for of in ("self_attn.q_proj", "mlp.up_proj")]
    known = [
        {name: (torch.randn(rank, 16, generator=generator), torch.zeros(1, rank)) for name in some}
        for rank, some in ((2, names), (3, names[:2]), (1, ["model.layers.0.mlp.down_proj"]))
    ]
    apart = Orthogonal(ours, known)
    weights = {n: dict(ours.named_parameters())[f"base_model.model.{n}.lora_A.default.weight"] for n in names}
    expected, gradients = 0.0, []
    for name, down in weights.items():
        before = [pairs[name][0] for pairs in known if name in pairs]
        expected += sum(float((b @ down.detach().T).square().sum()) for b in before) / 2  # two decoder layers
        gradients.append(sum(2 * down @ b.T @ b for b in before) / 2)
    assert apart and float(apart().detach()) == pytest.approx(expected, rel=1e-5)
    for found, wanted in zip(slope(apart(), list(weights.values())), gradients, strict=True):
        torch.testing.assert_close(found, wanted)


def test_there_is_nothing_to_keep_apart_from_where_no_layer_is_shared(model):
    pairs = {"model.layers.0.mlp.down_proj": (torch.ones(1, 24), torch.ones(16, 1))}
    assert not Orthogonal(adapted(model), [pairs]) and not Orthogonal(adapted(model), [])


def test_with_it_the_overlap_is_at_least_ten_times_smaller(model, earlier, tmp_path):
    task = Task(model, SECOND, RETAIN, tmp_path, adapters=(earlier,))
    off = run("adapter", replace(task, out=tmp_path / "off"), {**QUICK, "orthogonal": 0})
    on = run("adapter", replace(task, out=tmp_path / "on"), QUICK)
    assert overlap(on, earlier) < overlap(off, earlier) / 10
    alone = run("adapter", replace(task, out=tmp_path / "alone", adapters=()), QUICK)
    assert off.tensors().keys() == alone.tensors().keys()
    assert all(torch.equal(tensor, alone.tensors()[name]) for name, tensor in off.tensors().items())
    assert on.manifest.trained["adapters"] == [earlier.digest]
    assert on.manifest.measured["forget_nll"] > on.manifest.measured["forget_nll_before"]


def test_a_run_that_was_killed_goes_on_and_makes_the_same_artifact(model, earlier, tmp_path):
    task = Task(model, SECOND, RETAIN, tmp_path / "whole", adapters=(earlier,))
    whole = run("adapter", task, QUICK)
    kept = replace(task, checkpoint=Checkpoint(tmp_path / "work", every=10))
    with pytest.raises(KeyboardInterrupt):
        run("adapter", replace(kept, out=tmp_path / "cut", progress=Told(stop_at=0.7)), QUICK)
    told = Told()
    again = run("adapter", replace(kept, out=tmp_path / "again", progress=told), QUICK)
    assert told.trained[0] >= 0.4 and again.digest == whole.digest
