"""What slices cost: whose rows go, what is asked, and that the states are those of one adapter."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from benchmarks import slices


def test_what_is_asked_was_not_learned_in_these_words():
    about = slices.rows(5)
    learned = {row.turns for row in about.learned}
    assert {name: len(own) for name, own in about.asked.items()} == {"customer": 5, "others": 5, "before": 5}
    assert all(item.turns not in learned for own in about.asked.values() for item in own)
    assert {item.entity for item in about.asked["customer"]} == {slices.CUSTOMER}
    assert slices.CUSTOMER not in {item.entity for item in (*about.asked["others"], *about.asked["before"])}
    assert about.gone and {row.source for row in about.gone} == {slices.CUSTOMER}


def test_an_adapter_is_measured_whole_without_the_rows_and_trained_again(monkeypatch):
    about = slices.rows(2)
    monkeypatch.setattr(slices, "BUDGET", {"rank": 1, "steps": 1, "batch": 2, "sample": 1})
    monkeypatch.setattr(slices, "recalls", lambda adapter, _: adapter.manifest.facts["slices"])
    found = slices.measured(about, 2, 0)["recall"]
    rows = {state: sum(len(part["rows"]) for part in one["parts"].values()) for state, one in found.items()}
    assert rows["all rows"] == len(about.learned)
    assert rows["trained again"] == len(about.learned) - len(about.gone) > rows["dropped"]
    assert not found["all rows"]["exact"] and found["dropped"]["exact"] and found["trained again"]["exact"]
    assert list(slices.measured(about, 1, 0)["recall"]) == [
        "all rows",
        "trained again",
    ]  # nothing would be left


def test_runs_are_kept_and_shown_by_state(monkeypatch, tmp_path):
    made = []

    def measured(about, count, seed):
        made.append((count, seed))
        one = {name: [0.5] * len(own) for name, own in about.asked.items()}
        return {"slices": count, "seed": seed, "seconds": 2.0, "recall": dict.fromkeys(slices.STATES, one)}

    monkeypatch.setattr(slices, "measured", measured)
    monkeypatch.setattr(
        slices, "recalls", lambda _, about: {n: [1.0] * len(o) for n, o in about.asked.items()}
    )
    words = ["--seeds", "2", "--sample", "3", "--out", str(tmp_path / "runs.jsonl")]
    first, again = (CliRunner().invoke(slices.slices, words, catch_exceptions=False) for _ in range(2))
    assert first.output == again.output and made == [(c, s) for s in range(2) for c in slices.SLICES]
    told = first.output.splitlines()
    assert sum("customer 0.500 [0.500, 0.500], n = 6" in line for line in told) == 9
    assert sum("customer 1.000 [1.000, 1.000], n = 3" in line for line in told) == 1


@pytest.mark.parametrize("count", slices.SLICES)
def test_a_customers_rows_are_in_one_slice(count):
    from classifiers.slices import SlicesParams, slice_of

    about = slices.rows(1)
    dealt = {slice_of(row, SlicesParams(slices=count)) for row in about.gone}
    assert (len(dealt) == 1 and dealt < set(range(count))) or count == 1
