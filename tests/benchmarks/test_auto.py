"""What the benchmark of `lethe train auto` gives away, asks and demands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.auto import TARGETS, Found, asked, write_examples
from evals.items import FORGET, load_items

ITEMS = load_items(Path(__file__).parents[2] / "demo" / "items.jsonl")


def test_what_is_asked_stands_in_no_example(tmp_path: Path) -> None:
    of = asked(ITEMS, TARGETS, 50, seed=0)
    assert [len(of.own[name]) for name in TARGETS] == [42, 51, 110] and len(of.others) == 100
    for name in TARGETS:
        assert {item.entity for item in of.own[name]} == {name}
        write_examples(ITEMS, name, tmp_path)
        given = [
            json.loads(line)["turns"]
            for part in ("forget", "retain")
            for line in (tmp_path / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        assert not any(item.messages in given for item in (*of.own[name], *of.others))
    assert all(item.split != FORGET for item in of.others)


HELD = Found("t", ["m", "refusal"], 1.0, ["a", "a", "b"], [1, 1, 1], [0, 0.1, 0], [0.1, 0, 0.1], 4, 4)


@pytest.mark.parametrize(
    ("broken", "holds"),
    [({}, True), ({"now": [0.3, 0.1, 0.1]}, False), ({"same": 3}, False), ({"never": [0.0] * 3}, False)],
)
def test_it_holds_where_the_recall_is_that_of_never_and_nothing_else_changes(
    broken: dict, holds: bool
) -> None:
    found = replace(HELD, **broken)
    assert found.holds == holds and ("DOES NOT HOLD" in found.line) != holds
