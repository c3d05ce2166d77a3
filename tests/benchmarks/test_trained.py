"""What the benchmarks of trainers compare: every kind there is, and features that are as active as the chosen ones."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from benchmarks import edits, slices
from benchmarks.features import alike
from benchmarks.kinds import DETECTORS, METHODS, RETAINED, ROOT, fact, questions
from classifiers import TRAINERS
from evals.items import load_items


def test_every_kind_is_measured() -> None:
    solved = {row.step[0] for row in edits.ROWS.values()}
    assert {*METHODS, *DETECTORS, *solved, *slices.KINDS} == set(TRAINERS)


def test_what_is_asked_was_not_trained_on() -> None:
    about = questions(load_items(ROOT / "demo" / "items.jsonl"), "limir-yarley", 20, 0)
    trained = {item.turns for item in (*about.forget, *about.retain)}
    assert not trained & {item.turns for item in (*about.asked, *about.others)}
    assert {item.entity for item in (*about.forget, *about.asked)} == {"limir-yarley"}
    assert {item.split for item in about.retain} == {*RETAINED, "unknown", "chat"}
    assert Counter(item.split for item in about.others) == dict.fromkeys(RETAINED, 20)
    assert len({fact(item) for item in about.asked}) == 14


@pytest.mark.parametrize("seed", range(5))
def test_drawn_features_are_others_that_are_about_as_often_active(seed: int) -> None:
    often = torch.linspace(0.001, 0.5, 400)
    often[::7] = 0.0  # dead ones stand for nothing
    chosen = [390, 1, 200, 201, 8]
    drawn = alike(often, chosen, random.Random(seed))
    assert len(set(drawn)) == len(drawn) == len(chosen) and not set(drawn) & set(chosen)
    assert all(often[feature] > 0 for feature in drawn)
    apart = (often[drawn].log() - often[chosen].log()).abs()
    assert apart[[0, 2, 3]].max() < 0.05 and apart.max() < 2.0
    assert drawn != alike(often, chosen, random.Random(seed + 100))
