"""TOFU's figures of adapters: what a run is made of, and which way forgetting went."""

from __future__ import annotations

import json
import random

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

from benchmarks import tofu, twin
from benchmarks.runs import Runs, key
from classifiers.data import Example
from evals.published.base import Measured
from evals.published.tofu import KEPT, _scores

MODEL = tofu.ROOT / "demo" / "models" / "full"


def log(right):
    found = Measured()
    for split in ("forget", *KEPT):
        for i in range(30):
            likely = [right, right - 0.1 * i, -1.0, -2.0]
            found.add(f"{split}.{i}", split, {"recall": 0.5, **_scores(split, likely)})
    return found


def test_the_direction_tells_too_much_from_too_little():
    never = log(-1.5)
    less, more = (tofu.figures(log(right), never) for right in (-0.1, -4.0))
    assert less["direction, geometric"] == pytest.approx(-1.4)
    assert more["direction, geometric"] == pytest.approx(2.5)
    assert tofu.figures(never, never)["quality, geometric"] == 1.0
    assert less["quality, geometric"] < 0.01 > more["quality, geometric"]


def test_rows_are_spread_over_their_seeds():
    never = log(-1.5)
    told = list(tofu.lines({"npo": [log(-1.0), log(-2.5)]}, never))
    assert told[0] == "npo, 2 seeds"
    assert any(
        line.split() == ["direction,", "geometric", "0.250", "(-0.500", "to", "1.000)"] for line in told
    )


def test_a_finished_run_is_read_and_no_more_than_allowed_are_made(tmp_path):
    path, made = tmp_path / "deep" / "runs.jsonl", []

    def make():
        made.append(1)
        return {"log": len(made)}

    runs = Runs(path, 1)
    assert runs.get(key("a"), make)["log"] == 1 and runs.get(key("b"), make) is None
    again = Runs(path)
    assert again.get(key("a"), make)["log"] == 1 and again.get(key("b"), make)["log"] == 2
    assert len(path.read_text().splitlines()) == 2 and key("a") != key("a", "b")


def test_a_twin_learns_what_it_is_given_and_goes_on_where_it_was(tmp_path, monkeypatch):
    rows = [Example((("user", f"Say {i}."),), f"It is {i}.") for i in range(6)]
    monkeypatch.setattr(twin, "PEAK", 1e-3)
    twin.train(MODEL, rows, tmp_path / "whole", seed=1, epochs=4)
    batches = twin._batches

    def killed(read, rng):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(1)
        yield from batches(read, rng)

    calls = []
    monkeypatch.setattr(twin, "_batches", killed)
    with pytest.raises(KeyboardInterrupt):
        twin.train(MODEL, rows, tmp_path / "parted", seed=1, epochs=4)
    monkeypatch.setattr(twin, "_batches", batches)
    twin.train(MODEL, rows, tmp_path / "parted", seed=1, epochs=4)
    whole, parted = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "parted"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parted.parameters(), strict=True))
    assert not (tmp_path / "parted.state" / "checkpoint.pt").exists()


def test_every_row_is_met_once_in_an_epoch_and_every_epoch_has_its_order():
    rows = [twin.Encoded((i,) * (1 + i % 7), 1) for i in range(100)]
    one, other = (list(twin._batches(rows, random.Random(seed))) for seed in (1, 2))
    assert sorted(r.ids for batch in one for r in batch) == sorted(r.ids for r in rows) and one != other


def test_the_benchmark_itself_on_a_small_scale(tmp_path, monkeypatch):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("forget05", "retain95", "retain", "real_authors", "world_facts"):
        rows = [
            {
                "question": f"Where is {name} {i}?",
                "answer": f"In {name} {i}.",
                "perturbed_answer": [f"In {i}."],
            }
            for i in range(3)
        ]
        for ending in ("", "_perturbed"):
            (data / f"{name}{ending}.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    monkeypatch.setattr(tofu, "BUDGET", {"rank": 1, "steps": 2, "batch": 2, "sample": 2})
    monkeypatch.setattr(tofu, "ROWS", {name: tofu.ROWS[name] for name in ("npo", "idkdpo")})
    monkeypatch.setattr("evals.published.tofu.LONGEST", 8)
    never = MODEL.with_name("never")
    words = [
        "--subject",
        MODEL,
        "--never",
        never,
        "--data",
        data,
        "--out",
        tmp_path / "runs.jsonl",
        "--seeds",
        1,
    ]
    told = CliRunner().invoke(tofu.tofu_command, list(map(str, words)), catch_exceptions=False).output
    assert [line for line in told.splitlines() if line.endswith("seeds")] == [
        f"{name}, 1 seeds" for name in ("untouched", "never learned", *tofu.ROWS)
    ]
