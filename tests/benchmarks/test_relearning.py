"""Relearning: what is fine-tuned on has nothing to do with what is asked, and the attack is a real one."""

from __future__ import annotations

import pytest
import torch

from benchmarks import relearning
from classifiers.activations import load_model
from evals.items import FORGET


@pytest.fixture(scope="module")
def about():
    return relearning.facts(20)


def test_nobody_is_fine_tuned_on_who_was_unlearned_kept_or_is_asked(about):
    items = {i.turns: i for i in relearning.load_items(relearning.DEMO / "items.jsonl")}
    forget, retain, unrelated = (
        {items[e.turns].entity for e in examples}
        for examples in (about.forget, about.retain, about.unrelated)
    )
    assert unrelated and not unrelated & forget and not unrelated & retain
    assert not unrelated & {item.entity for item in about.asked}
    assert {item.split for item in about.asked} == {FORGET, "retain"}


def test_all_weights_are_tuned_and_it_halts_where_it_is_told(about, monkeypatch):
    monkeypatch.setattr(relearning, "AFTER", (0, 1, 3))
    model, tokenizer = load_model(relearning.MODEL)
    before = [p.clone() for p in model.parameters()]
    stops = relearning.tuned(model, tokenizer, about.unrelated[:4], seed=0)
    assert next(stops) == "0"
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert list(stops) == ["1", "3"]
    assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_the_difference_is_what_sam_leaves_less_of(about, monkeypatch):
    monkeypatch.setattr(relearning, "AFTER", (0, 10))

    def run(forget):
        values = [forget if item.split == FORGET else 1.0 for item in about.asked]
        return {"stops": {"0": [0.0] * len(values), "10": values}}

    told = list(relearning.lines(about, {"without SAM": [run(0.75)], "with SAM": [run(0.5)]}))
    assert "forget 0.750 [0.750, 0.750], n = 20; retain 1.000" in told[1]
    assert told[-1] == "SAM's difference after  10 steps: -0.250 [-0.250, -0.250]"
    assert len(list(relearning.lines(about, {"without SAM": [run(0.75)]}))) == 2
