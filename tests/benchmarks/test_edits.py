"""The table of edits: its worlds hold one target's facts, adapters are made before what takes them, runs are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from click.testing import CliRunner

from benchmarks import edits
from classifiers import TRAINERS
from classifiers.base import load


@pytest.mark.parametrize("target", edits.TARGETS)
def test_a_world_is_one_targets_and_asks_what_was_not_shown(target):
    world = edits.world(target, 5)
    shown = {example.turns[-1][1] for example in (*world.forget, *world.retain)}
    assert world.forget and all(item.turns[-1][1] not in shown for item in world.asked)
    assert [item.split for item in world.asked] == [split for split in edits.SPLITS for _ in range(5)]
    assert {item.entity for item in world.asked[:5]} == {world.names[0].lower().replace(" ", "-")}
    assert not {e.turns for e in world.forget} & {e.turns for e in world.retain}


@pytest.mark.parametrize("row", edits.ROWS.values())
def test_a_rows_parameters_are_its_trainers(row):
    for kind, params in (row.step, *row.of):
        load(kind).params_type.model_validate({**edits.MEASURED, **params})
    assert bool(row.of) <= load(row.step[0]).adapters and row.step[0] in TRAINERS


def test_what_is_taken_is_made_first(monkeypatch, tmp_path):
    made = []

    def run(kind, task, params):
        made.append((kind, params, task.adapters))
        return kind

    monkeypatch.setattr(edits, "run", run)
    row = edits.Row(("merge", {"how": "sum"}), (("revs", {}), ("rank-one", {})))
    assert edits.World((), (), (), ()).make(row, tmp_path) == "merge"
    assert [kind for kind, _, _ in made] == ["revs", "rank-one", "merge"]
    assert made[-1][1:] == ({**edits.MEASURED, "how": "sum"}, ("revs", "rank-one"))


def test_finished_runs_are_kept_and_shown_with_intervals(monkeypatch, tmp_path):
    asked = []

    def measured(world, row):
        asked.append(row)
        return {"rank": 3, "seconds": 1.5, "recall": [0.0] * len(world.asked)}

    monkeypatch.setattr(edits, "measured", measured)
    monkeypatch.setattr(edits, "load_model", lambda folder: (folder, None))
    monkeypatch.setattr(edits.World, "recall", lambda world, *_: [1.0] * len(world.asked))
    words = ["--sample", "2", "--row", "revs", "--row", "sum", "--target", "limir-yarley"]
    words += ["--out", str(tmp_path / "runs.jsonl")]
    first, again = (CliRunner().invoke(edits.edits, words) for _ in range(2))
    assert first.output == again.output and asked == [edits.ROWS["revs"], edits.ROWS["sum"]]
    lines = {line.split("  ")[0].strip(): line for line in first.output.splitlines()}
    assert "1.000 [1.000, 1.000]" in lines["never learned"]
    assert lines["revs"].split()[-2:] == ["1.5", "3"] and "0.000 [0.000, 0.000]" in lines["revs"]
    monkeypatch.setitem(edits.ROWS, "revs", replace(edits.ROWS["revs"], step=("revs", {"share": 0.1})))
    CliRunner().invoke(edits.edits, words)
    assert len(asked) == 3, "what is made in another way is another run"
