"""Relearning: who is asked and who is tuned on, that all weights move, and what the report says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from evals.cli import main
from evals.items import ItemError
from evals.local import Local
from evals.subjects import Ask
from evals.suites import relearning
from evals.suites.relearning import MEASURED, Plan, drawn, tuned
from evals.suites.targets import NEVER
from tests.evals.world import items

DEMO = Path(__file__).parents[2] / "demo"


def test_nobody_is_asked_for_whom_the_model_is_tuned_on():
    asked, examples = drawn(items(), Plan(sample=100))
    assert {item.split for item in asked} == {"forget", "retain"}
    assert {item.split for item in examples} == {"retain"}
    assert not {item.entity for item in asked} & {item.entity for item in examples}


def test_without_two_retained_entities_it_cannot_be_done():
    with pytest.raises(ItemError, match="two entities"):
        drawn([item for item in items() if item.split == "forget"], Plan())


def test_all_weights_are_tuned_and_it_halts_where_it_is_told():
    local = Local.load(DEMO / "models" / "full")
    before = [p.clone() for p in local.model.parameters()]
    pairs = [(Ask.question("Where was Ada Byl born?"), "Ada Byl was born in Vintry.")]
    first = local.model(**relearning._batch([local.read(*pairs[0])])).loss.item()
    stops = tuned(local, pairs, (0, 1, 3), 1e-3, 16, 0)
    assert next(stops) == 0
    assert all(torch.equal(p, b) for p, b in zip(local.model.parameters(), before, strict=True))
    assert list(stops) == [1, 3]
    assert not any(torch.equal(p, b) for p, b in zip(local.model.parameters(), before, strict=True))
    assert local.model(**relearning._batch([local.read(*pairs[0])])).loss.item() < first


def test_only_answers_count_in_a_batch():
    made = relearning._batch([([1, 2], [3]), ([4], [5, 6, 7])])
    assert made["input_ids"].tolist() == [[1, 2, 3, 0], [4, 5, 6, 7]]
    assert made["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert made["labels"].tolist() == [[-100, -100, 3, -100], [-100, 5, 6, 7]]


def test_what_came_back_is_told_beside_a_model_that_never_knew():
    asked, _ = drawn(items(), Plan(sample=4))
    known = [float(item.split == "forget") for item in asked]
    found = {
        MEASURED: {0: [0.0] * len(asked), 10: known},
        NEVER: {0: [0.0] * len(asked), 10: [0.25] * len(asked)},
    }
    report = relearning._report(asked, found, Plan(stops=(0, 10)))
    (table,) = report.tables
    _, last = table["rows"]
    assert [cell["mean"] for cell in last[1:4]] == [1.0, 1.0, 0.75]
    assert last[4]["mean"] == 0.0


def test_the_command_needs_no_server(tmp_path):
    out = tmp_path / "r.json"
    told = CliRunner().invoke(main, [
        "relearn", "--model", str(DEMO / "models" / "full"), "--adapter", str(DEMO / "artifacts" / "lora_adapter"),
        "--items", str(DEMO / "items.jsonl"), "--sample", "4", "--stop", "1", "--out", str(out),
    ])  # fmt: skip
    assert told.exit_code == 0, told.output
    assert "came back" in told.output and out.is_file()
