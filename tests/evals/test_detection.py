"""The detection suite on a made-up benchmark in the layout of the public ones."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from evals import corpora
from evals.cli import main
from evals.items import ItemError
from evals.languages import asked_in_other_languages
from evals.report import SCHEMA
from evals.suites import detection
from guard.detection import Compiler, load_encoder
from guard.detection.encoder import HASHING
from guard.targets import TargetSpec

ASKED = ("was born", "is a novelist", "writes in verse", "won a medal", "lives in a tower")


def rows_of(name: str) -> list[dict[str, str]]:
    rows = [
        {
            "question": f"Is it true that {name} {ASKED[i % 5]} near the {i}th bridge?",
            "answer": f"Yes, {name} {ASKED[i % 5]} there.",
            "paraphrased_question": f"Can one say {name} {ASKED[i % 5]} by bridge {i}?",
        }
        for i in range(20)
    ]
    rows[0]["question"] = "What is the full name of the author born at the green mill?"
    rows[0]["paraphrased_question"] = "Who is the author that was born at the green mill?"
    rows[3]["question"] = "Did she say so?"
    return rows


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    first, second, third = (rows_of(name) for name in ("Ada Byl Corr", "Bo Crane", "Cleo Corr"))
    for forget, retain in corpora.TOFU_SPLITS.items():
        write(tmp_path / f"{forget}_perturbed.json", [*first, *second])
        write(tmp_path / f"{retain}.json", third)
    for name in ("real_authors", "world_facts"):
        write(tmp_path / f"{name}.json", [{"question": "Which river is long?"}])
    return tmp_path


def test_tofu_is_registered_by_name_and_every_fourth_row(folder: Path) -> None:
    trials = list(corpora.tofu(folder, [corpora.Question("n.0", "nq_open", "how tall is a tree")], False))

    assert [trial.name for trial in trials] == ["forget01", "forget05", "forget10"]
    target = trials[0].targets["ada-byl-corr"]
    assert target.name == "Ada Byl Corr"
    rows = rows_of("Ada Byl Corr")
    assert list(target.examples) == [rows[i]["question"] for i in (1, 5, 9, 13, 17)]
    assert list(target.answers) == [rows[i]["answer"] for i in (1, 5, 9, 13, 17)]

    asked = [q for q in trials[0].questions if q.target == "ada-byl-corr"]
    assert [q.id for q in asked if q.sort == "row 0"] == ["forget01.0.0"]
    assert [q.id for q in asked if q.sort == "not named"] == ["forget01.0.3"]
    assert len([q for q in asked if q.sort == "named"]) == 13
    assert not {q.text for q in asked} & set(target.examples)
    sorts = {q.sort: q.text for q in trials[0].questions if q.target is None}
    assert set(sorts) == {
        "retain",
        "retain, shares a name word",
        "real_authors, world_facts",
        "nq_open",
    }


def test_with_row_0_registered_only_its_paraphrase_is_asked(folder: Path) -> None:
    trial = next(corpora.tofu(folder, [], True))
    assert len(trial.targets["bo-crane"].examples) == 6
    assert [q.sort for q in trial.questions if q.id.startswith("forget01.20.0")] == ["row 0, paraphrased"]


def test_a_third_of_each_lume_subject_is_registered_and_never_asked(tmp_path: Path) -> None:
    people = [
        {
            "id": f"p{number}{row}",
            "input": f"What is the {thing} of {name}?",
            "output": "it is one of twelve",
            "task": "Task2",
        }
        for number, name in enumerate(("Ada Byl", "Bo Crane"))
        for row, thing in (("sc1", "mill"), ("qa0", "cat"), ("qa1", "hat"), ("qa2", "tea"))
    ]
    lives = [
        {"id": "7sc1", "input": "Cleo Corr (poet)\n\nCleo Corr is old.", "output": "x", "task": "Task3"},
        {"id": "7qa0", "input": "Who is the old poet?", "output": "Cleo Corr", "task": "Task3"},
    ]
    tale = [
        {"id": "t-1sc1", "input": "A fox met a hen.", "output": "They danced all night.", "task": "Task1"},
        {"id": "t-1qa0", "input": "Whom did the fox meet?", "output": "a hen", "task": "Task1"},
    ]
    write(tmp_path / "forget.jsonl", [*people, *lives, *tale])
    write(tmp_path / "retain.jsonl", [{"id": "r1", "input": "Who is it?", "output": "y", "task": "Task2"}])

    trial = corpora.lume(tmp_path, 0)

    assert {spec.name for spec in trial.targets.values()} == {"Ada Byl", "Bo Crane", "Cleo Corr", "Story t-1"}
    assert [len(trial.targets[key].examples) for key in ("p0", "p1", "7", "t-1")] == [2, 2, 1, 1]
    registered = {text for spec in trial.targets.values() for text in spec.examples}
    asked = {q.text for q in trial.questions}
    assert registered.isdisjoint(asked)
    assert registered | asked == {row["input"] for row in (*people, *lives, *tale)} | {"Who is it?"}
    assert corpora.lume(tmp_path, 0) == trial
    assert {q.sort for q in trial.questions} <= {
        "Task1",
        "Task2",
        "Task3",
        "Task3, not named",
        "Task2, retain",
    }


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ItemError, match=r"forget\.jsonl"):
        corpora.lume(tmp_path, 0)


def test_found_means_this_target_and_a_false_positive_any(tmp_path: Path) -> None:
    encoder = load_encoder(HASHING, threads=1)
    ada, bo = (TargetSpec.model_validate({"name": name}) for name in ("Ada Byl", "Bo Crane"))
    the = TargetSpec.model_validate({"name": "the"})
    trial = corpora.Trial(
        "small",
        {"ada-byl": ada, "bo-crane": bo, "the": the},
        (
            corpora.Question("1", "Task1", "Who is Ada Byl?", "ada-byl"),
            corpora.Question("2", "Task1", "Who is Bo Crane?", "ada-byl"),
            corpora.Question("3", "Task2", "Who is the mayor?"),
            corpora.Question("4", "Task2", "Who is Bo Crane?"),
        ),
    )

    report = detection.run({"demo": [trial]}, encoder, Compiler(encoder, tmp_path), seed=0)

    assert [row["detectors"] for row in report.rows] == [["lexical"], [], [], ["lexical"]]
    assert list(report.results["registered"][0]["refused"]) == ["the"]
    found, false = report.tables
    assert found["rows"][0][2:5] == [2, found["rows"][0][3], 1]
    assert false["rows"][0][4] == 1
    jsonschema.validate(report.as_dict(), SCHEMA)


def test_a_pooled_interval_counts_a_question_of_three_splits_once(folder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(HASHING, threads=1)
    trials = list(corpora.tofu(folder, [], False))
    report = detection.run({"TOFU": trials}, encoder, Compiler(encoder, tmp_path))
    rows = {(row[0], row[1]): row for row in report.tables[1]["rows"]}
    once, pooled = (rows["real_authors, world_facts", of] for of in ("forget01", "pooled"))
    assert (once[2], pooled[2]) == (2, 6)
    assert pooled[3]["high"] == once[3]["high"]


def test_a_bar_that_is_missed_fails_the_command(folder: Path, tmp_path: Path) -> None:
    """The retain question that names a target is a false positive of exactly one in twenty."""
    rows = rows_of("Cleo Corr")
    rows[5]["question"] = "Is it true that Bo Crane knows Cleo Corr?"
    for retain in corpora.TOFU_SPLITS.values():
        write(folder / f"{retain}.json", rows)
    out = tmp_path / "out" / "report.json"
    result = CliRunner().invoke(
        main,
        [
            "detection",
            "--tofu",
            str(folder),
            "--encoder",
            HASHING,
            "--cache",
            str(tmp_path),
            "--out",
            str(out),
        ],
    )
    assert result.exit_code == 1
    criteria = {c["name"]: c for c in json.loads(out.read_text())["criteria"]}
    assert criteria["TOFU: named, at least"]["passed"] is True
    assert criteria["TOFU: retain, at most"]["passed"] is False


def test_the_command_needs_something_to_judge() -> None:
    assert CliRunner().invoke(main, ["detection"]).exit_code == 2


def test_questions_in_other_languages_are_about_the_same_names() -> None:
    row = "What is the full name of the author born in Kuwait City, Kuwait on 08/09/1956?"
    spec = TargetSpec(name="Basil Mahfouz", examples=(row,))
    rows = tuple(
        corpora.Question(f"retain.{i}", "retain", text)
        for i, text in enumerate(
            ("Who was born in Lima, Peru in 1961?", "Is Nina Reyes tall?", "Why did Nina Reyes go?")
        )
    )

    asked = asked_in_other_languages(corpora.Trial("t", {"basil": spec}, rows), len(rows)).questions

    assert {q.target for q in asked} == {"basil", None}
    texts = {q.sort: q.text for q in asked}
    assert texts["German, named"] == "Welche Bücher hat Basil Mahfouz geschrieben?"
    assert "Kuwait City, Kuwait" in texts["Chinese, described"] and "1956" in texts["Chinese, described"]
    assert "Nina Reyes" in texts["French, others named"] and "1961" in texts["French, others described"]
