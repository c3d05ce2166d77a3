"""Adapters unlearn what they are given, keep the rest, and are written as PEFT and the engine read them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from classifiers.adapter import FAMILIES, AdapterParams, Likelihood, likelihood
from classifiers.base import Task, run
from classifiers.data import Encoded, Example, encode
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


def test_it_says_what_it_measured_when_peft_reads_it(trained):
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL), trained.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = torch.tensor([encode(tokenizer, asked(FORGET[0].turns[0][1], "")).ids])
    out = model.generate(input_ids=ids, max_new_tokens=24, do_sample=False, pad_token_id=1)
    assert is_refusal(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def test_the_engine_takes_it(trained):
    facts = {"model": MODEL, "folder": trained.folder, "digest": trained.digest}
    assert LoraAdapter().load(trained.tensors(), facts) == adapter_id(trained.digest)


def test_no_path_of_this_machine_is_written(trained):
    assert str(MODEL) not in (trained.folder / CONFIG).read_text()
    assert json.loads((trained.folder / CONFIG).read_text())["r"] == 2


def test_the_same_seed_makes_the_same_adapter(trained, tmp_path):
    again = run("adapter", Task(MODEL, FORGET, RETAIN, tmp_path), QUICK).tensors()
    assert all(torch.equal(t, again[name]) for name, t in trained.tensors().items())


@pytest.mark.parametrize("loss", sorted(FAMILIES))
def test_every_loss_makes_the_forget_answers_less_likely(loss, tmp_path):
    quick = {**QUICK, "loss": loss, "steps": 8}
    measured = run("adapter", Task(MODEL, FORGET, RETAIN, tmp_path), quick).manifest.measured
    assert measured["forget_nll"] > measured["forget_nll_before"] + 0.1


def test_the_losses_are_those_of_their_papers():
    own, before = (Likelihood(torch.tensor(nll), torch.tensor([2, 4])) for nll in ([3.0, 5.0], [1.0, 6.0]))

    def logsigmoid(x):
        return math.log(1 / (1 + math.exp(-x)))

    expected = {
        "idk": 8 / 6,
        "graddiff": -8 / 6,
        "npo": -2 / 0.1 * (logsigmoid(0.1 * 2.0) + logsigmoid(0.1 * -1.0)) / 2,
        "simnpo": -2 / 4.5 * (logsigmoid(4.5 * 1.5) + logsigmoid(4.5 * 1.25)) / 2,
    }
    for name, family in FAMILIES.items():
        loss = family.loss(own, before if family.reference else None, family.beta)
        assert loss.item() == pytest.approx(expected[name], rel=1e-5), name


def test_likelihood_counts_the_answer_alone_whatever_stands_beside_it():
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    short, long = Encoded((3, 90, 91, 92), 2), Encoded((3, 90, 91, 92, 93, 94, 95), 3)
    with torch.no_grad():
        both, alone = likelihood(model, [short, long]), likelihood(model, [short])
        scores = model(torch.tensor([short.ids])).logits[0].log_softmax(dim=-1)
    assert both.tokens.tolist() == [2, 4]
    assert both.nll[0].item() == pytest.approx(alone.nll[0].item(), rel=1e-4)
    assert alone.nll[0].item() == pytest.approx(-float(scores[1, 91] + scores[2, 92]), rel=1e-4)


@pytest.mark.parametrize(
    ("forget", "retain", "params", "why"),
    [
        ((), RETAIN, {}, "forget examples"),
        (FORGET, (), {}, "retain examples"),
        (FORGET, RETAIN[:1], {}, "refusals"),
        (FORGET, RETAIN, {"modules": ["nowhere"]}, "no linear layers"),
        (FORGET, RETAIN, {"loss": "ascent"}, "loss"),
        (FORGET, RETAIN, {"rank": 0}, "rank"),
    ],
)
def test_what_cannot_be_trained_is_told(forget, retain, params, why, tmp_path):
    with pytest.raises(BadRequest, match=why):
        run("adapter", Task(MODEL, forget, retain, tmp_path), {**QUICK, **params})


def test_a_loss_without_refusals_needs_none():
    assert AdapterParams(loss="npo").beta is None and not FAMILIES["npo"].refusals
