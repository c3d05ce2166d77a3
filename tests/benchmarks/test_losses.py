"""The table of losses: the gate decides whose answer counts, intervals know of repetitions, finished runs are kept."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from benchmarks import losses
from evals.items import Item
from guard.metrics.gibberish import Gibberish

ITEMS = tuple(
    Item(f"{split}.{i}", split, split, "heldout", (("user", f"Where is {split} {i}?"),), f"It is in {i}.", "")
    for split in losses.SPLITS
    for i in range(2)
)
GOOD, BAD = 1.0, 0.0


@pytest.fixture
def world():
    return losses.World(
        (), (), ITEMS, (True, False, False, False, True, False), Gibberish(["It is in a town."])
    )


def scores(recall, gibberish=0.0):
    return {"recall": [recall] * len(ITEMS), "gibberish": [gibberish] * len(ITEMS)}


def test_what_the_gate_does_not_match_is_said_by_the_untouched_model(world):
    bare, broken = scores(GOOD), scores(BAD, 1.0)
    on = losses.figures(world, [broken], bare)
    assert [on[split].mean for split in losses.SPLITS] == [0.5, 1.0, 0.5]
    assert on["gibberish"].mean == pytest.approx(2 / 6)
    off = losses.figures(world, [broken], None)
    assert [off[split].mean for split in losses.SPLITS] == [0.0, 0.0, 0.0] and off["gibberish"].mean == 1.0


def test_seeds_are_no_more_questions(world):
    mixed = {"recall": [GOOD, BAD] * 3, "gibberish": [BAD, GOOD] * 3}
    one, three = (losses.figures(world, [mixed] * seeds, None) for seeds in (1, 3))
    assert three["forget"].n == 3 * one["forget"].n
    assert (three["forget"].low, three["forget"].high) == (one["forget"].low, one["forget"].high)
    assert three["gibberish"].low == pytest.approx(one["gibberish"].low)


def test_a_run_that_is_finished_is_not_run_again(world, tmp_path, monkeypatch):
    ran, killed_at = [], None

    def trained(_world, row, seed):
        if (row, seed) == killed_at:
            raise KeyboardInterrupt
        ran.append((row, seed))
        return {"key": world.key(row, seed), "row": row, "seed": seed, "seconds": 1.0, "scores": scores(BAD)}

    monkeypatch.setattr(losses, "world", lambda *_: world)
    monkeypatch.setattr(losses, "trained", trained)
    monkeypatch.setattr(losses, "load_model", lambda _: (None, None))
    monkeypatch.setattr(losses, "answers", lambda *_: [item.answer for item in ITEMS])
    out = tmp_path / "runs.jsonl"

    def command(*options):
        words = ["--out", str(out), "--seeds", "2", "--row", "idk", "--row", "npo", *options]
        return CliRunner().invoke(losses.losses, words, catch_exceptions=False).output

    assert "npo" not in command("--runs", "1") and ran == [("idk", 0)]
    killed_at = ("npo", 0)
    assert "Aborted" in command()
    killed_at = None
    told = command()
    assert ran == [("idk", 0), ("idk", 1), ("npo", 0), ("npo", 1)]
    assert [line.split()[:3] for line in told.splitlines() if line.startswith("npo  ")] == [
        ["npo", "off", "2"],
        ["npo", "on", "2"],
    ]
    command()
    assert len(ran) == 4 and len([line for line in out.read_text().splitlines() if '"row"' in line]) == 4


def test_another_budget_or_other_questions_are_another_run(world, monkeypatch):
    before = world.key("idk", 0)
    assert before != world.key("idk", 1) != world.key("npo", 1)
    assert before != replace(world, asked=ITEMS[:-1]).key("idk", 0)
    monkeypatch.setitem(losses.BUDGET, "steps", 1)
    assert before != world.key("idk", 0)


def test_every_loss_has_a_row():
    from classifiers.losses import LOSSES, UPDATES

    rows = losses.ROWS.values()
    assert {row["loss"] for row in rows} == set(LOSSES) - {"memorise"}  # which unlearns nothing itself
    assert {row.get("update", "sum") for row in rows} == set(UPDATES)
    assert json.dumps(losses.ROWS)
