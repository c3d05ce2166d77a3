"""TOFU as published: which rows of which files, which answers, and the aggregates of a log."""

from __future__ import annotations

import json
import math

import pytest

from evals import tofu

LN = math.log


def write(folder, name, count, **more):
    lines = [
        {
            "question": f"{name} {i}?",
            "answer": f"yes {i}",
            "perturbed_answer": [f"no {i}", f"never {i}"],
            **more,
        }
        for i in range(count)
    ]
    (folder / f"{name}_perturbed.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "forget05", 2, paraphrased_answer="indeed")
    write(tmp_path, "retain", 301, paraphrased_answer="indeed")
    write(tmp_path, "real_authors", 2)
    write(tmp_path, "world_facts", 2)
    return tmp_path


class Told:
    """Says the first words of the questions that it knows; tells likelihoods by the answer's first word."""

    CHANCE = {"yes": 0.8, "indeed": 0.5, "no": 0.1, "never": 0.4}

    def likelihoods(self, asked):
        return [LN(self.CHANCE[answer.split()[0]]) for _, answer in asked]

    def answers(self, questions):
        return [f"yes {q[:-1].split()[-1]}" if "forget" not in q else "nothing" for q in questions]


def test_the_retain_set_is_its_first_three_hundred_rows(folder):
    asked = tofu.sets(folder, "forget05")
    assert {name: len(rows) for name, rows in asked.items()} == {
        "forget": 2,
        "retain": 300,
        "real_authors": 2,
        "world_facts": 2,
    }


def test_where_nothing_is_paraphrased_the_answer_stands_for_it(folder):
    asked = tofu.sets(folder, "forget05")
    assert asked["forget"][0].paraphrased == "indeed" and asked["world_facts"][1].paraphrased == "yes 1"


def test_a_log_and_its_nine_figures(folder):
    log = tofu.log(Told(), tofu.sets(folder, "forget05"))
    assert [one.recall for one in log["forget"]] == [0.0, 0.0]
    assert [one.recall for one in log["retain"]] == [1.0] * 300
    figures = tofu.nine(log, "arithmetic")
    assert figures["retain probability"] == pytest.approx(0.8)
    assert figures["retain truth ratio"] == pytest.approx(1 - 0.25 / 0.5)
    assert figures["world_facts probability"] == pytest.approx(0.8 / 1.3)
    assert figures["world_facts truth ratio"] == pytest.approx(1 - 0.25 / 0.8)
    assert tofu.nine(log, "geometric")["retain truth ratio"] == pytest.approx(1 - 0.2 / 0.5)


def test_what_is_missing_is_named(folder):
    (folder / "world_facts_perturbed.json").unlink()
    with pytest.raises(tofu.TofuError, match=r"world_facts_perturbed\.json"):
        tofu.sets(folder, "forget05")
    (folder / "forget05_perturbed.json").write_text('{"question": "?"}\n')
    with pytest.raises(tofu.TofuError, match=r"Line 1 of forget05_perturbed\.json"):
        tofu.sets(folder, "forget05")
