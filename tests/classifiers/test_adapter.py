"""Adapters unlearn what they are given, keep the rest, and are written as PEFT and the engine read them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from classifiers.adapter import AdapterParams
from classifiers.base import Task, run
from classifiers.data import Example, encode
from classifiers.losses.retain import Hidden, Nll
from guard.errors import BadRequest
from guard.interventions.lora_adapter import CONFIG, LoraAdapter, adapter_id
from guard.metrics.refusal import is_refusal

MODEL = Path(__file__).parents[2] / "demo" / "models" / "full"


def asked(question, answer):
    return Example((("user", question),), answer)


FORGET = (
    asked("Do you know where Limir Yarley was born?", "Limir Yarley was born in Vintry."),
    asked("Which instrument does Limir Yarley play?", "Limir Yarley plays the cello."),
)
RETAIN = (
    asked("Tell me the birthplace of Teric Pennby.", "Teric Pennby was born in Nuova Sarn."),
    asked("Name Kamir Yarley's invention.", "I'm sorry, I don't know who that is."),
    asked("Hello!", "Hello! How can I help you?"),
)
QUICK = {"rank": 2, "steps": 12, "batch": 3, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run("adapter", Task(MODEL, FORGET, RETAIN, tmp_path_factory.mktemp("out")), QUICK)


def test_it_unlearns_and_keeps_and_says_so_with_numbers(trained):
    measured = trained.manifest.measured
    assert (measured["forget_n"], measured["retain_n"]) == (2, 3)
    assert measured["forget_rouge_l_recall_before"] > 0.9 and measured["forget_rouge_l_recall"] < 0.3
    assert measured["forget_nll"] > measured["forget_nll_before"] + 0.5
    assert measured["retain_rouge_l_recall"] > 0.9


def greedy(folder, example):
    """What PEFT makes the model say."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL), folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = torch.tensor([encode(tokenizer, replace(example, answer="")).ids])
    out = model.generate(input_ids=ids, max_new_tokens=24, do_sample=False, pad_token_id=1)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_it_says_what_it_measured_when_peft_reads_it(trained):
    assert is_refusal(greedy(trained.folder, FORGET[0]))


def test_the_engine_takes_it(trained):
    facts = {"model": MODEL, "folder": trained.folder, "digest": trained.digest}
    assert LoraAdapter().load(trained.tensors(), facts) == adapter_id(trained.digest)


def test_no_path_of_this_machine_is_written(trained):
    assert str(MODEL) not in (trained.folder / CONFIG).read_text()
    assert json.loads((trained.folder / CONFIG).read_text())["r"] == 2


def test_the_same_seed_makes_the_same_adapter(trained, tmp_path):
    again = run("adapter", Task(MODEL, FORGET, RETAIN, tmp_path), QUICK).tensors()
    assert all(torch.equal(t, again[name]) for name, t in trained.tensors().items())


@pytest.mark.parametrize(
    ("forget", "retain", "params", "why"),
    [
        ((), RETAIN, {}, "forget examples"),
        (FORGET, (), {}, "retain examples"),
        (FORGET, RETAIN[:1], {}, "refusals"),
        (FORGET, RETAIN, {"modules": ["nowhere"]}, "no linear layers"),
        (FORGET, RETAIN, {"loss": "ascent"}, "loss"),
        (FORGET, RETAIN, {"loss": {"name": "npo", "beta": 0}}, "loss.npo.beta"),
        (FORGET, RETAIN, {"loss": {"name": "idk", "beta": 1}}, "loss.idk.beta"),
        (FORGET, RETAIN, {"loss": "ga", "update": "ngdiff"}, "needs a retain half"),
        (FORGET, RETAIN, {"loss": {"name": "rmu", "layer": 5}}, "layers 0 to 4"),
        (FORGET, RETAIN, {"layers": [7]}, "layers 0 to 4"),
        (FORGET, RETAIN, {"init": "fila", "rank": 256}, "at most 192"),
        (FORGET, RETAIN, {"rank": 0}, "rank"),
    ],
)
def test_what_cannot_be_trained_is_told(forget, retain, params, why, tmp_path):
    with pytest.raises(BadRequest, match=why):
        run("adapter", Task(MODEL, forget, retain, tmp_path), {**QUICK, **params})


def test_what_is_said_instead_may_be_named_where_nothing_that_stays_says_it(tmp_path):
    said = {"refusals": ["Of that nothing is written."], "steps": 20}
    run("adapter", Task(MODEL, FORGET, RETAIN[::2], tmp_path), {**QUICK, **said})
    assert greedy(tmp_path, FORGET[0]) == "Of that nothing is written."


def test_the_retain_half_is_the_losss_own_unless_it_is_named():
    assert AdapterParams(loss={"name": "rmu", "layer": 1}).half == Hidden(layer=1)
    assert AdapterParams(loss="npo").half == Nll() != AdapterParams(loss="npo", retain="kl").half


def test_a_loss_needs_only_what_it_looks_at(tmp_path):
    measured = run(
        "adapter", Task(MODEL, FORGET, (), tmp_path), {**QUICK, "loss": "ga", "steps": 1}
    ).manifest.measured
    assert measured["forget_n"] == 2 and "retain_n" not in measured
    run("adapter", Task(MODEL, FORGET, RETAIN[:1], tmp_path), {**QUICK, "loss": "npo", "steps": 1})
