"""Which adapter, how strongly, and what cannot be one."""

import json

import pytest
import torch

from guard import interventions
from guard.errors import ArtifactError, BadRequest
from guard.interventions.lora_adapter import CONFIG, LoraAdapter, adapter_id, check
from guard.types import Chosen, Match, Plan, Prompt

DIGEST = "9c" * 32
PROMPT = Prompt("who is she", (4, 5, 6))
SERVED = {"model.layers.0.mlp.down_proj.weight": (8, 16), "model.embed_tokens.weight": (20, 8)}
CONFIGURED = {"peft_type": "LORA", "r": 2}
PREFIX = "base_model.model."


def plan(*scores, threshold=0.5, **params):
    matches = tuple(Match(f"t{i}", 1, score, threshold, "lexical") for i, score in enumerate(scores))
    chosen = Chosen("lora_adapter", {"artifact": DIGEST, **params}, matches)
    return LoraAdapter().plan(chosen, PROMPT, lambda target: f"{target:0>16}")


def adapter(module="model.layers.0.mlp.down_proj", rank=2, width=(8, 16)):
    return {
        f"{PREFIX}{module}.lora_A.weight": torch.ones(rank, width[1]),
        f"{PREFIX}{module}.lora_B.weight": torch.ones(width[0], rank),
    }


def test_one_edit_on_every_token_and_those_that_follow():
    (edit,) = plan(0.9, 0.8).edits
    assert (edit.site, edit.layer, edit.positions, edit.onward) == ("adapter", None, (0, 1, 2), True)
    assert (edit.table, edit.params["artifact"], edit.params["scale"]) == (DIGEST, DIGEST, 1.0)


@pytest.mark.parametrize(
    ("scores", "scale"), [((0.5,), 0.4), ((0.75,), 1.2), ((1.0,), 2.0), ((0.6, 1.0), 2.0), ((0.4,), 0.4)]
)
def test_a_soft_scale_grows_with_the_strongest_score(scores, scale):
    (edit,) = plan(*scores, scale=2.0, soft=0.2).edits
    assert edit.params["scale"] == pytest.approx(scale)


def test_nearby_scores_share_a_scale():
    scales = {plan(0.5 + i / 1000, soft=0.5).edits[0].params["scale"] for i in range(500)}
    assert len(scales) <= 51


def test_without_an_artifact_or_a_prompt_there_is_nothing_to_do():
    match = Match("t", 1, 1.0, 0.5, "lexical")
    assert LoraAdapter().plan(Chosen("lora_adapter", {}, (match,)), PROMPT, str) == Plan()
    chosen = Chosen("lora_adapter", {"artifact": DIGEST}, (match,))
    assert LoraAdapter().plan(chosen, Prompt(""), str) == Plan()


@pytest.mark.parametrize(
    ("scores", "scale"), [((0.119,), 0.12), ((0.5, 0.8765), 0.88), ((1.0,), 1.0), ((0.0,), 0.01)]
)
def test_the_scale_can_be_the_score_itself(scores, scale):
    (edit,) = plan(*scores, scale="score", soft=0.2).edits
    assert edit.params["scale"] == pytest.approx(scale)


@pytest.mark.parametrize(
    "params", [{"scale": "high"}, {"scale": 0}, {"scale": 4.1}, {"soft": 0}, {"artifact": "x"}, {"slots": 1}]
)
def test_other_parameters_are_refused(params):
    with pytest.raises(BadRequest, match="lora_adapter"):
        interventions.check_params("lora_adapter", params)


def test_numbers_are_stable_and_apart_from_those_that_vllm_counts():
    assert adapter_id(DIGEST) == adapter_id(DIGEST) == 0x5C9C9C9C
    assert all(2**30 <= adapter_id(f"{i:08x}" + DIGEST[8:]) < 2**31 for i in (0, 1, 2**31, 2**32 - 1))


def test_a_table_is_the_adapters_number(tmp_path):
    from safetensors.torch import save_file

    save_file({name: torch.zeros(shape) for name, shape in SERVED.items()}, tmp_path / "model.safetensors")
    (tmp_path / CONFIG).write_text(json.dumps(CONFIGURED))
    facts = {"model": tmp_path, "folder": tmp_path, "digest": DIGEST}
    assert LoraAdapter().load(adapter(), facts) == adapter_id(DIGEST)


def test_the_output_head_may_be_tied_to_the_embedding():
    check(adapter("lm_head", width=(20, 8)), CONFIGURED, SERVED)


def changed(**tensors):
    return {
        **adapter(),
        **{f"{PREFIX}model.layers.0.mlp.down_proj.{k}.weight": v for k, v in tensors.items()},
    }


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({}, "no tensors"),
        (adapter("model.layers.3.mlp.down_proj"), "no layer model.layers.3"),
        (adapter(rank=3), "does not fit"),
        (adapter(width=(8, 12)), "does not fit"),
        (changed(lora_A=torch.full((2, 16), torch.nan)), "not finite"),
        (changed(lora_B=torch.full((8, 2), torch.inf)), "not finite"),
        (changed(lora_B=torch.zeros(8, 2)), "changes nothing"),
        (changed(lora_A=torch.ones(2)), "does not fit"),
        (dict([next(iter(adapter().items()))]), "one half"),
        ({f"{PREFIX}model.embed_tokens.lora_embedding_A": torch.ones(2, 20)}, "linear layer"),
    ],
)
def test_what_cannot_be_an_adapter_of_the_model_is_refused(tensors, why):
    with pytest.raises(ArtifactError, match=why):
        check(tensors, CONFIGURED, SERVED)


@pytest.mark.parametrize("config", [{}, {"peft_type": "IA3", "r": 2}, {"peft_type": "LORA", "r": "2"}])
def test_a_configuration_of_something_else_is_refused(config):
    with pytest.raises(ArtifactError, match=CONFIG):
        check(adapter(), config, SERVED)
