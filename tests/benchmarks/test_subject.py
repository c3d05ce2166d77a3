"""A subject of TOFU: what is asked of it, what is registered, and artifacts that are made once for what they are of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import subject
from evals import corpora
from evals.items import load_items
from guard import artifacts
from guard.errors import ArtifactError
from guard.targets import TargetSpec
from tests.evals.test_detection import rows_of, write

MODEL = Path(__file__).parents[2] / "demo" / "models" / "full"
SPLIT = "forget10"
SMALL = {
    "steering": ("steering", {}),
    "lora_adapter": ("adapter", {"rank": 1, "steps": 2, "sample": 2, "refusals": subject.UNKNOWING}),
}


def perturbed(rows: list[dict]) -> list[dict]:
    return [{**row, "perturbed_answer": [f"No, {n}." for n in range(4)]} for row in rows]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two authors to forget, and one to keep, of whom one question is retained by another split only."""
    folder = tmp_path / "tofu"
    first, second, third = (rows_of(name) for name in ("Ada Byl Corr", "Bo Crane", "Cleo Corr"))
    third = [row for row in third if "Cleo" in row["question"]]  # the others ask what the first two ask
    for forget, retain in corpora.TOFU_SPLITS.items():
        write(folder / f"{forget}.json", [*first, *second])
        write(folder / f"{forget}_perturbed.json", perturbed([*first, *second]))
        write(folder / f"{retain}.json", third)
    elsewhere = [{"question": "Was Dan Dorr born?", "answer": "Yes."}]
    write(folder / "retain_perturbed.json", perturbed([*third, *elsewhere]))
    for name in ("real_authors", "world_facts"):
        rows = [{"question": f"What is long in {name}?", "answer": f"The {name} river."}]
        write(folder / f"{name}.json", rows)
        write(folder / f"{name}_perturbed.json", perturbed(rows))
    return folder


def test_items_are_of_their_authors_and_carry_wrong_answers(data: Path, tmp_path: Path) -> None:
    subject._write(tmp_path / "items.jsonl", subject.items(str(data), SPLIT))
    items = {item.id: item for item in load_items(tmp_path / "items.jsonl")}
    assert (items[f"{SPLIT}.0"].entity, items[f"{SPLIT}.20"].entity) == ("ada-byl-corr", "bo-crane")
    assert {item.split for name, item in items.items() if name.startswith("retain.")} == {"neighbour"}
    assert items["retain.1"].entity == "cleo-corr" and "retain.18" not in items
    assert (items["world_facts.0"].split, items["world_facts.0"].entity) == ("retain", "")
    assert all(len(item.wrong) == subject.WRONG for item in items.values())


def test_only_the_shown_target_has_rungs_and_answers(data: Path) -> None:
    shown, other = subject.targets(str(data), SPLIT, {"steering": "a" * 64})
    assert (shown["id"], other["id"]) == (subject.SHOWN, "bo-crane")
    methods = [rung["method"] for rung in shown["intervention"]]
    assert methods == sorted((*subject.WITHOUT, "steering"))
    assert {"method": "steering", "params": {"artifact": "a" * 64}} in shown["intervention"]
    assert len(shown["answers"]) == len(corpora.REGISTERED) + 1
    assert "answers" not in other and "intervention" not in other
    for one in (shown, other):
        TargetSpec.model_validate({key: value for key, value in one.items() if key != "id"})


def test_an_artifact_is_made_once_for_what_it_is_of(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(subject, "METHODS", dict(SMALL))
    made: list[str] = []

    def counted(kind, task, params):
        made.append(kind)
        return run(kind, task, params)

    run = subject.run
    monkeypatch.setattr(subject, "run", counted)
    out = tmp_path / "out"

    def command(split: str) -> dict[str, str]:
        words = ["--model", str(MODEL), "--data", str(data), "--split", split, str(out)]
        CliRunner().invoke(subject.subject, words, catch_exceptions=False)
        first = json.loads((out / "targets.jsonl").read_text().splitlines()[0])
        rungs = {rung["method"]: rung.get("params", {}) for rung in first["intervention"]}
        return {method: rungs[method]["artifact"] for method in SMALL}

    def digests() -> set[str]:
        return {artifacts.read(folder).digest for folder in (out / "artifacts").iterdir()}

    found = command(SPLIT)
    assert set(found.values()) == digests() and made == ["steering", "adapter"]
    assert command(SPLIT) == found and len(made) == 2
    command("forget05")
    assert len(made) == 4
    monkeypatch.setitem(subject.METHODS, "lora_adapter", ("adapter", {**SMALL["lora_adapter"][1], "rank": 2}))
    other = command(SPLIT)
    assert other["steering"] == found["steering"] and other["lora_adapter"] != found["lora_adapter"]
    assert made == ["steering", "adapter"] * 2 + ["adapter"] and set(other.values()) < digests()


def test_a_changed_artifact_is_not_taken_for_the_one_that_was_made(data: Path, tmp_path: Path) -> None:
    made = subject.trained(MODEL, str(data), SPLIT, tmp_path, "steering")
    (folder,) = (tmp_path / "artifacts").iterdir()
    assert artifacts.read(folder).digest == made
    (folder / "more.txt").write_text("x")
    with pytest.raises(ArtifactError):
        subject.trained(MODEL, str(data), SPLIT, tmp_path, "steering")
