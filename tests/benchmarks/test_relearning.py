"""Relearning: what is fine-tuned on has nothing to do with what is asked, and the attack is a real one."""

from __future__ import annotations

import pytest

from benchmarks import relearning
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


def test_the_difference_is_what_sam_leaves_less_of(about, monkeypatch):
    monkeypatch.setattr(relearning, "AFTER", (0, 10))

    def run(forget):
        values = [forget if item.split == FORGET else 1.0 for item in about.asked]
        return {"stops": {"0": [0.0] * len(values), "10": values}}

    told = list(relearning.lines(about, {"without SAM": [run(0.75)], "with SAM": [run(0.5)]}))
    assert "forget 0.750 [0.750, 0.750], n = 20; retain 1.000" in told[1]
    assert told[-1] == "SAM's difference after  10 steps: -0.250 [-0.250, -0.250]"
    assert len(list(relearning.lines(about, {"without SAM": [run(0.75)]}))) == 2
