"""What is taken out of an adapter was never in it: bit for bit the adapter that never saw it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from classifiers import lora
from classifiers.base import Task, run
from classifiers.checkpoints import NAME, Checkpoint
from classifiers.data import Example
from classifiers.slices import SlicesParams, slice_of
from guard.artifacts import Artifact
from guard.errors import ArtifactError, BadRequest
from guard.interventions import load
from guard.interventions.lora_adapter import CONFIG, check, shapes
from tests.classifiers.test_training import Told
from tests.classifiers.tiny import KNOWN, save_model

QUICK: dict[str, Any] = {"slices": 4, "rank": 2, "steps": 4, "batch": 2, "learning_rate": 0.02, "sample": 2}
ANSWERS = (
    "jane plays",
    "john works as a baker",
    "doe is a singer",
    "roe knows that",
    "the baker plays",
    "a singer",
)
ROWS = tuple(
    Example((("user", f"{ask} {who}"),), answer, source=answer)
    for answer, who in zip(ANSWERS, ("jane", "john", "doe", "roe", "baker", "singer"), strict=True)
    for ask in ("who is", "what is")
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run("slices", Task(model, ROWS, KNOWN, tmp_path_factory.mktemp("whole")), QUICK)


def learned(model: Path, rows: Any, out: Path, **more: Any) -> Artifact:
    return run("slices", Task(model, tuple(rows), KNOWN, out), {**QUICK, **more})


def dropped(
    whole: Artifact, model: Path, asked: Any, out: Path, retain: Any = KNOWN, **params: Any
) -> Artifact:
    return run("drop-slices", Task(model, tuple(asked), tuple(retain), out, adapters=(whole,)), params)


def same(one: Artifact, other: Artifact) -> bool:
    mine, theirs = one.tensors(), other.tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(t, theirs[name]) for name, t in mine.items())


def of_slice(number: int) -> list[Example]:
    return [row for row in ROWS if slice_of(row, SlicesParams(**QUICK)) == number]


def about(artifact: Artifact) -> Any:
    return artifact.manifest.facts["slices"]


TAKEN = ROWS[0]
HIT = slice_of(TAKEN, SlicesParams(**QUICK))


def test_the_rows_of_these_tests_lie_in_several_slices_and_one_has_several_sources():
    sources = [{row.origin for row in of_slice(number)} for number in range(4)]
    assert sum(bool(one) for one in sources) >= 3 and len(sources[HIT]) >= 2


def test_what_is_left_is_bit_for_bit_what_never_saw_the_dropped_slices(model, whole, tmp_path):
    left = dropped(whole, model, [TAKEN], tmp_path / "left")
    never = learned(model, [row for row in ROWS if row not in of_slice(HIT)], tmp_path / "never")
    assert same(left, never) and not same(left, whole)
    assert about(left)["parts"] == about(never)["parts"]


def test_with_retraining_it_is_bit_for_bit_what_never_saw_the_rows(model, whole, tmp_path):
    rest = [row for row in ROWS if row != TAKEN]
    out = [row for row in rest if row.turns != TAKEN.turns]
    left = dropped(whole, model, [TAKEN], tmp_path / "left", [*reversed(out), *KNOWN], retrain=True)
    never = learned(model, rest, tmp_path / "never")
    assert same(left, never) and not same(left, whole)
    assert about(left)["parts"] == about(never)["parts"]


def test_neither_the_order_of_the_rows_nor_what_was_drawn_before_matters(model, whole, tmp_path):
    torch.manual_seed(99)
    assert same(learned(model, ROWS[::-1], tmp_path / "turned"), whole)
    assert not same(learned(model, ROWS, tmp_path / "seed", seed=1), whole)


def test_rows_of_one_source_lie_in_one_slice_whatever_else_there_is():
    params = SlicesParams(**QUICK)
    for first, second in zip(ROWS[::2], ROWS[1::2], strict=True):
        assert slice_of(first, params) == slice_of(second, params)
    assert slice_of(replace(TAKEN, turns=(("user", "something else"),)), params) == HIT


def test_a_part_is_trained_alone(model, whole, tmp_path):
    """Each part beside others is the part that its slice makes alone."""
    pairs = lora.read(whole)
    for number, part in about(whole)["parts"].items():
        alone = lora.read(learned(model, of_slice(int(number)), tmp_path / number))
        ranks = slice(*part["ranks"])
        assert all(torch.equal(pairs[name][0][ranks], down) for name, (down, _) in alone.items())
        assert all(torch.equal(pairs[name][1][:, ranks], up) for name, (_, up) in alone.items())


def test_its_manifest_says_what_was_taken_out_and_whence_and_holds_no_text(model, whole, tmp_path):
    left = dropped(whole, model, [TAKEN], tmp_path / "one")
    assert about(whole)["exact"] is False and about(left)["exact"] is True
    (event,) = about(left)["dropped"]
    assert event["from"] == whole.digest and event["slices"] == [HIT]
    assert event["rows"] == len(of_slice(HIT)) and event["retrained"] is False
    other = next(row for row in ROWS if slice_of(row, SlicesParams(**QUICK)) != HIT)
    again = dropped(left, model, [other], tmp_path / "two")
    assert [one["from"] for one in about(again)["dropped"]] == [whole.digest, left.digest]
    for artifact in (whole, left):
        text = json.dumps(artifact.manifest.model_dump(mode="json"))
        assert not any(
            f'"{word}' in text or f" {word}" in text for word in ("jane", "john", "singer", "baker")
        )
    gone = {row for part in about(whole)["parts"].values() for row in part["rows"]} - {
        row for part in about(left)["parts"].values() for row in part["rows"]
    }
    assert len(gone) == len(of_slice(HIT)) and not any(row in json.dumps(about(left)) for row in gone)


def test_what_cannot_be_taken_out_is_told(model, whole, tmp_path):
    stranger = Example((("user", "who knows"),), "john")
    with pytest.raises(BadRequest, match="Forget example 2 is not among what the adapter learned"):
        dropped(whole, model, [TAKEN, stranger], tmp_path / "a")
    with pytest.raises(BadRequest, match="not among"):
        dropped(dropped(whole, model, [TAKEN], tmp_path / "b"), model, [TAKEN], tmp_path / "c")
    with pytest.raises(BadRequest, match="Nothing would be left"):
        dropped(whole, model, ROWS, tmp_path / "d", ())
    with pytest.raises(BadRequest, match="examples of the dropped slices are missing"):
        dropped(whole, model, [TAKEN], tmp_path / "e", retrain=True)
    with pytest.raises(BadRequest, match="Give the one adapter of `slices`"):
        run("drop-slices", Task(model, (TAKEN,), KNOWN, tmp_path / "f"), {})
    plain = lora.write(Task(model, ROWS, KNOWN, tmp_path / "g"), "x", SlicesParams(), lora.read(whole), {})
    with pytest.raises(BadRequest, match="Give the one adapter of `slices`"):
        dropped(plain, model, [TAKEN], tmp_path / "h")
    with pytest.raises(BadRequest, match="raise it"):
        learned(
            model, [replace(r, turns=(("user", "who " * 9),)) for r in ROWS[:1]], tmp_path / "i", max_tokens=8
        )


def test_it_is_an_adapter_that_learned_and_no_rung_takes_it(model, tmp_path):
    made = learned(model, ROWS, tmp_path, steps=60, weight=1.0, slices=1)
    config = json.loads((made.folder / CONFIG).read_text())
    check(made.tensors(), config, shapes(model))
    assert made.manifest.method == "lora_adapter"
    assert made.manifest.measured["forget_nll"] < made.manifest.measured["forget_nll_before"] / 2
    with pytest.raises(ArtifactError, match="to know, not to forget"):
        load("lora_adapter").watched({}, made.manifest.facts)


def test_it_is_not_merged_into_what_nothing_can_be_taken_out_of(model, whole, tmp_path):
    task = Task(model, ROWS, KNOWN, tmp_path / "out", adapters=(whole,))
    for how, adapters in (("scale", (whole,)), ("sum", (whole, whole))):
        with pytest.raises(BadRequest, match="No row could be taken out"):
            run("merge", replace(task, adapters=adapters), {"how": how})


def test_the_weight_of_each_part_is_that_of_the_parameters(model, whole, tmp_path):
    full = learned(model, ROWS, tmp_path, weight=1.0)
    for name, tensor in full.tensors().items():
        share = 0.5 if "lora_B" in name else 1.0  # of 4 slices, 1 / sqrt(4)
        assert torch.equal(tensor * share, whole.tensors()[name])


def test_a_run_that_was_killed_goes_on_behind_its_last_part(model, whole, tmp_path):
    task = Task(model, ROWS, KNOWN, tmp_path / "cut", checkpoint=Checkpoint(tmp_path / "work"))
    with pytest.raises(KeyboardInterrupt):
        run("slices", replace(task, progress=Told(stop_at=0.4)), QUICK)
    assert (tmp_path / "work" / NAME).exists()
    again = run("slices", replace(task, out=tmp_path / "again"), QUICK)
    assert again.digest == whole.digest
