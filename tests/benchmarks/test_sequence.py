"""Sequences: which adapter answers a question, what is told of a removal, and that nothing is asked twice."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from benchmarks import sequence
from benchmarks.runs import Runs
from benchmarks.sequence import Arm, World, served, told
from evals.items import Item

NAMES = tuple(f"e{i}" for i in range(10))


def item(number: int, entity: str) -> Item:
    turns = ({"role": "user", "content": f"question {number}"},)
    return Item(f"{entity}.{number}", entity, "forget", "heldout", turns, "the answer", "answer")


ASKED = (*(item(i, name) for i, name in enumerate(NAMES)), item(10, "somebody"), item(11, "somebody"))
WORLD = World(NAMES, {}, (), ASKED, (*((i,) for i in range(9)), (9, 0), (), (3,)))


class Asking:
    """The untouched model knows everything, an adapter alone nothing, and each of several merged a bit less."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def once(self, _about: str, pairs: Any, questions: Any) -> list[float]:
        self.asked.append(len(pairs))
        return [1.0 if not pairs else 0.1 if len(pairs) > 1 else 0.0 for _ in questions]


@pytest.fixture
def forms(monkeypatch, tmp_path):
    monkeypatch.setattr(Arm, "trained", lambda self: list(range(10)))
    monkeypatch.setattr(sequence.lora, "read", lambda one: {one: (1, 1)})
    monkeypatch.setattr(
        sequence.merge, "merged", lambda some, *_: ({k: v for one in some for k, v in one.items()}, 1)
    )
    return served(WORLD, Arm(WORLD, 0.1, tmp_path), Asking())


def test_a_question_is_answered_by_the_adapter_of_its_surest_target_in_force(forms):
    _, own = forms
    assert own(range(10)) == [0.0] * 10 + [1.0, 0.0]
    assert own([]) == [1.0] * 12
    assert own([0]) == [0.0, *[1.0] * 8, 0.0, 1.0, 1.0]
    without = [i for i in range(10) if i != sequence.REMOVED]
    assert own(without) == [0.0] * 3 + [1.0] + [0.0] * 6 + [1.0, 1.0]


def test_merged_adapters_act_on_every_question(forms):
    merged, _ = forms
    assert merged([]) == [1.0] * 12 and merged([2]) == [0.0] * 12 and merged([1, 2]) == [0.1] * 12


def test_a_removal_is_told_with_its_intervals(forms):
    lines = list(told(WORLD, forms[1]))
    assert lines[1].split()[1:11] == ["1.00"] * 10 and lines[11].split()[1:11] == ["0.00"] * 10
    assert lines[4].split()[1:11] == ["0.00"] * 3 + ["1.00"] * 6 + ["0.00"]
    assert "request 4 removed: its recall 1.000 [1.000, 1.000], n = 1" in lines
    assert "  change of the other nine 0.000 [0.000, 0.000], n = 9" in lines
    assert "  change of what is retained 0.500 [0.000, 1.000], n = 2" in lines


def test_what_was_asked_is_not_asked_again(monkeypatch, tmp_path):
    asked = []

    def answers(_model: Any, _tokenizer: Any, items: Any) -> list[str]:
        asked.append(len(items))
        return ["the answer"] * len(items)

    monkeypatch.setattr(sequence, "load_model", lambda _: (None, None))
    monkeypatch.setattr(sequence, "answers", answers)
    monkeypatch.setattr(sequence.lora, "added", lambda *_: nullcontext())
    for _ in range(2):
        asking = sequence.Asking(WORLD, Runs(tmp_path / "runs.jsonl"))
        assert asking.once("a", {}, [0, 3]) == [1.0, 1.0]
    assert asked == [2]
