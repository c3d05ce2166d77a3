"""Merged adapters add what their equations say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from classifiers import lora
from classifiers.__main__ import main
from classifiers.base import Params, Task, run
from classifiers.merge import MergeParams, merged, negmerge, ties
from guard import artifacts
from guard.errors import BadRequest
from tests.classifiers.tiny import FORGET, KNOWN, save_model

ONE, BOTH = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def pairs(seed: int, *modules: str, rank: int = 2) -> lora.Pairs:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(rank, 24, generator=generator), torch.randn(16, rank, generator=generator))
        for name in modules
    }


def dense(found: lora.Pairs, name: str) -> torch.Tensor:
    down, up = found[name]
    return up @ down


A, B = pairs(0, ONE, BOTH), pairs(1, BOTH, rank=3)


def test_a_sum_is_exact_and_has_the_sum_of_the_ranks():
    found, kept = merged([A, B], (1.0, 0.5), MergeParams(how="sum", scale=2.0))
    torch.testing.assert_close(dense(found, BOTH), 2 * dense(A, BOTH) + dense(B, BOTH))
    torch.testing.assert_close(dense(found, ONE), 2 * dense(A, ONE))
    assert (len(found[BOTH][0]), kept) == (5, 1.0)


def test_a_sum_of_less_rank_is_the_nearest_and_tells_what_it_keeps():
    whole, _ = merged([A, B], (1.0, 1.0), MergeParams(how="sum"))
    found, kept = merged([A, B], (1.0, 1.0), MergeParams(how="sum", rank=3))
    u, s, v = torch.linalg.svd(dense(whole, BOTH))
    torch.testing.assert_close(dense(found, BOTH), u[:, :3] * s[:3] @ v[:3])
    energy = sum(float(dense(whole, name).square().sum()) for name in whole)
    assert kept == pytest.approx(1 - float(s[3:].square().sum()) / energy, abs=1e-4) and kept < 1


def test_one_is_scaled():
    found, _ = merged([A], (1.0,), MergeParams(how="scale", scale=0.25))
    torch.testing.assert_close(dense(found, ONE), 0.25 * dense(A, ONE))


def test_ties_trims_elects_and_averages_those_that_agree():
    changes = torch.tensor([[[4.0, 3.0, -1.0, 0.5]], [[-2.0, 5.0, -3.0, 0.1]]])
    assert ties(changes, 0.5).tolist() == [[4.0, 4.0, -3.0, 0.0]]
    assert ties(changes, 1.0).tolist() == [[4.0, 4.0, -2.0, pytest.approx(0.3)]]


def test_negmerge_takes_away_what_all_agree_on():
    changes = torch.tensor([[[4.0, 3.0, -1.0, 0.0]], [[-2.0, 5.0, -3.0, 0.5]]])
    assert negmerge(changes, 1.0).tolist() == [[0.0, -4.0, 2.0, 0.0]]
    found, kept = merged([A, A], (1.0, 1.0), MergeParams(how="negmerge", scale=3.0))
    torch.testing.assert_close(dense(found, ONE), -3 * dense(A, ONE), rtol=1e-3, atol=1e-4)
    assert kept == pytest.approx(1.0, abs=1e-4)
    opposite = {name: (down, -up) for name, (down, up) in A.items()}
    with pytest.raises(BadRequest, match="agree on nothing"):
        merged([A, opposite], (1.0, 1.0), MergeParams(how="negmerge"))


def test_a_layer_that_only_one_has_is_unchanged_by_the_others():
    found, _ = merged([A, B], (1.0, 1.0), MergeParams(how="ties", keep=1.0))
    torch.testing.assert_close(dense(found, ONE), dense(A, ONE), rtol=1e-3, atol=1e-4)
    found, _ = merged([A, B], (1.0, 1.0), MergeParams(how="negmerge"))
    assert not dense(found, ONE).any() and dense(found, BOTH).any()


def test_dense_ones_have_the_highest_rank_that_was_given():
    found, kept = merged([A, B], (1.0, 1.0), MergeParams())
    assert len(found[BOTH][0]) == 3 and 0 < kept < 1
    (_, up), lost = lora.nearest(torch.eye(4), 1)
    assert up.shape == (4, 1) and lost == pytest.approx(3.0)


def test_the_command_merges_without_examples_and_tells_of_what(model, tmp_path):
    made = [
        lora.write(Task(model, (), (), tmp_path / str(n)), "made", Params(), one, {})
        for n, one in enumerate((A, B))
    ]
    words = ["merge", "--model", str(model), "--out", str(tmp_path / "out"), "--progress", "none"]
    for one in made:
        words += ["--adapter", str(one.folder)]
    result = CliRunner().invoke(main, [*words, "--set", "how=sum"])
    assert result.exit_code == 0, result.output
    out = artifacts.read(tmp_path / "out")
    torch.testing.assert_close(dense(lora.read(out), BOTH), dense(A, BOTH) + dense(B, BOTH))
    assert out.manifest.trained["adapters"] == [one.digest for one in made]
    assert out.manifest.measured == {"energy_kept": 1.0}
    for params, given, why in (
        ({}, made[:1], "at least two"),
        ({"how": "scale"}, made, "one adapter"),
        ({"weights": [1]}, made, "2 adapters and 1 weights"),
    ):
        with pytest.raises(BadRequest, match=why):
            run("merge", Task(model, FORGET, KNOWN, tmp_path / "none", adapters=tuple(given)), params)
    measured = run(
        "merge",
        Task(model, FORGET, KNOWN, tmp_path / "all", adapters=tuple(made)),
        {"how": "sum", "sample": 1},
    )
    assert measured.manifest.measured["forget_n"] == 1
