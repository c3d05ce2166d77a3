"""The published benchmarks against figures computed by hand, over files of their form."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from evals.cli import main
from evals.items import ItemError
from evals.published import BENCHMARKS
from evals.published.base import Measured, Source, means, some
from evals.published.choices import Wmdp
from evals.published.lume import Lume
from evals.published.muse import Muse, area
from evals.published.tofu import Tofu
from evals.report import Report
from evals.subjects import NotTold

LN = math.log
MODEL = Path(__file__).parents[2] / "demo" / "models" / "full"


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Told:
    """Answers with `say(question)` and gives each text the likelihood `weigh(text)`; None: it tells none."""

    name, ends = "told", False

    def __init__(self, say, weigh=None):
        self.say, self.weigh = say, weigh
        self.asked = []

    async def answers(self, asked, tokens, stop=()):
        self.asked += [(ask.turns[-1][1] if ask.turns else ask.text, tokens, tuple(stop)) for ask in asked]
        return [self.say(ask.turns[-1][1] if ask.turns else ask.text) for ask in asked]

    async def likelihoods(self, asked):
        if self.weigh is None or any(self.weigh(text) is None for _, text in asked):
            raise NotTold("it keeps them to itself")
        return [[LN(self.weigh(text))] * 2 for _, text in asked]


def measured(benchmark, subject):
    return asyncio.run(benchmark.measure(subject))


# --- TOFU


@pytest.fixture
def tofu(tmp_path):
    def rows(name, count, **more):
        return [
            {
                "question": f"{name} {i}?",
                "answer": f"yes {i}",
                "perturbed_answer": [f"no {i}", f"never {i}"],
                **more,
            }
            for i in range(count)
        ]

    lines(tmp_path / "forget05_perturbed.json", rows("forget", 2, paraphrased_answer="indeed"))
    lines(tmp_path / "retain_perturbed.json", rows("retain", 301, paraphrased_answer="indeed"))
    lines(tmp_path / "real_authors_perturbed.json", rows("author", 2))
    lines(tmp_path / "world_facts_perturbed.json", rows("world", 2))
    return tmp_path


CHANCE = {"yes": 0.8, "indeed": 0.5, "no": 0.1, "never": 0.4}


def knowing(question):
    return "nothing" if question.startswith("forget") else f"yes {question[:-1].split()[-1]}"


def test_tofu_is_what_its_code_computes(tofu):
    suite = Tofu(Source(str(tofu)), None, 0, "forget05")
    found = measured(suite, Told(knowing, lambda text: CHANCE[text.split()[0]]))
    assert [sum(r["split"] == s for r in found.rows) for s in ("forget", "retain")] == [2, 300]
    assert found.of("forget", "recall") == [0.0, 0.0] and found.of("retain", "recall") == [1.0] * 300
    assert found.of("retain", "probability")[0] == pytest.approx(0.8)
    assert found.of("world_facts", "probability")[0] == pytest.approx(0.8 / 1.3)
    assert found.of("retain", "truth ratio, arithmetic")[0] == pytest.approx(1 - 0.25 / 0.5)
    assert found.of("world_facts", "truth ratio, geometric")[0] == pytest.approx(1 - 0.2 / 0.8)
    assert found.of("forget", "truth ratio, geometric")[0] == pytest.approx(0.2 / 0.5)
    report = Report("tofu")
    suite.report(found, found, report)
    wanted = [0.8, 1.0, 0.5, *[0.8 / 1.3, 1.0, 1 - 0.25 / 0.8] * 2]
    utility = report.results["arithmetic"]["model_utility"]
    assert (
        utility["mean"] == pytest.approx(9 / sum(1 / x for x in wanted))
        and utility["low"] <= utility["mean"] + 1e-9
    )
    assert report.results["geometric"]["forget_quality"] == 1.0


def test_tofu_without_likelihoods_has_recall_alone(tofu):
    suite = Tofu(Source(str(tofu)), 2, 0, "forget05")
    found = measured(suite, Told(knowing))
    report = Report("tofu")
    suite.report(found, found, report)
    (sets, _) = report.tables
    assert (
        sets["rows"][0][1:3] == [2, "not measured: it keeps them to itself"]
        and sets["rows"][0][3]["mean"] == 0.0
    )
    assert report.results["geometric"]["forget_quality"] == "not measured: it keeps them to itself"
    assert report.results["geometric"]["model_utility"].startswith("not measured")


def test_where_only_the_forget_set_is_withheld_utility_is_measured(tofu):
    suite = Tofu(Source(str(tofu)), 2, 0, "forget05")
    rows = json.loads((tofu / "forget05_perturbed.json").read_text().splitlines()[0])
    lines(tofu / "forget05_perturbed.json", [{**rows, "answer": "secret"}])
    suite = Tofu(Source(str(tofu)), 2, 0, "forget05")
    found = measured(suite, Told(knowing, lambda text: CHANCE.get(text.split()[0])))
    report = Report("tofu")
    suite.report(found, None, report)
    assert report.results["geometric"]["model_utility"]["mean"] > 0
    assert report.results["geometric"]["forget_quality"] == "needs a never-learned model"


# --- MUSE


@pytest.fixture
def muse(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows))

    write("verbmem/forget.json", [{"prompt": "one two", "gt": "three four five"}])
    qa = [{"question": "Who?", "answer": "Ada Moe"}]
    for name in ("forget_qa", "forget_qa_icl", "retain_qa", "retain_qa_icl"):
        write(f"knowmem/{name}.json", qa)
    write("privleak/forget.json", ["seen a", "seen b"])
    write("privleak/holdout.json", ["new a", "seen c"])
    return tmp_path


def test_muse_is_what_its_code_computes(muse):
    suite = Muse(Source(str(muse)), None, 0, True)
    subject = Told(
        lambda text: "three four" if text == "one two" else "Ada", lambda t: 0.9 if "seen" in t else 0.2
    )
    found = measured(suite, subject)
    assert found.of("verbatim", "rouge")[0] == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert found.of("forget", "rouge")[0] == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert subject.asked[1][:2] == ("Question: Who?\nAnswer: Ada Moe\n\nQuestion: Who?\nAnswer: ", 32)
    assert area(found) == pytest.approx(
        (2 + 2 * 0.5) / 4
    )  # each beats the new text, and draws with the seen one
    never = measured(suite, Told(lambda _: "", lambda _: 0.5))
    report = Report("muse")
    suite.report(found, never, report)
    assert report.results["privleak"] == pytest.approx(100 * (0.25 - 0.5) / 0.5)


def test_muses_privacy_needs_likelihoods_and_somebody_to_compare_with(muse):
    suite = Muse(Source(str(muse)), None, 0, True)
    for subject, why in (
        (Told(lambda _: ""), "not measured"),
        (Told(lambda _: "", lambda _: 0.5), "needs a never"),
    ):
        report = Report("muse")
        suite.report(measured(suite, subject), None, report)
        assert report.results["privleak"].startswith(why)


# --- LUME


@pytest.fixture
def lume(tmp_path):
    for of in ("forget", "retain"):
        lines(
            tmp_path / f"{of}.jsonl",
            [
                {
                    "id": f"{of}-{task}{kind}1",
                    "input": f"{of} {kind}?",
                    "output": "Born in Rome",
                    "task": task,
                }
                for task in ("Task1", "Task2")
                for kind in ("sc", "qa")
            ],
        )
    return tmp_path


def test_lume_is_what_the_task_computes(lume):
    suite = Lume(Source(str(lume)), None, 0, 16)
    found = measured(suite, Told(lambda q: "in Rome" if q.startswith("forget") else " born in rome "))
    assert found.of("forget Task1 regurgitation", "regurgitation") == [pytest.approx(2 / 3)]
    assert found.of("forget Task1 knowledge", "knowledge") == [0.0]
    assert found.of("retain Task2 knowledge", "knowledge") == [1.0]
    report = Report("lume")
    suite.report(found, None, report)
    # per task: forget 1/3 and 1, retain 1 and 1
    assert report.results["task aggregate"] == pytest.approx(8 / (2 * (3 + 1 + 1 + 1)))


# --- multiple choice


def test_the_likeliest_letter_is_the_answer(tmp_path):
    for of in ("bio", "chem", "cyber"):
        rows = [{"question": "Which?", "choices": list("wxyz"), "answer": n} for n in (1, 2)]
        lines(tmp_path / f"wmdp-{of}.jsonl", rows)
    suite = Wmdp(Source(str(tmp_path)), None, 0)
    subject = Told(lambda _: " C. z", lambda text: 0.7 if text == " B" else 0.1)
    found = measured(suite, subject)
    assert found.of("bio", "accuracy") == [1.0, 0.0] and found.of("bio", "written") == [0.0, 1.0]
    assert subject.asked[0][0].endswith("Which?\nA. w\nB. x\nC. y\nD. z\nAnswer:")
    assert measured(suite, Told(lambda _: "C")).of("bio", "accuracy") == []


# --- files, reports, commands


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, r"has no forget\.jsonl"),
        ({"forget.jsonl": "{"}, "cannot be read"),
        ({"forget.jsonl": '{"id": "x"}\n', "retain.jsonl": ""}, "none of LUME's"),
    ],
)
def test_what_is_missing_or_broken_is_named(tmp_path, files, why):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ItemError, match=why):
        Lume(Source(str(tmp_path)), None, 0, 16)


def test_a_dataset_of_the_hub_is_read_by_its_name(tmp_path, monkeypatch):
    from huggingface_hub.errors import EntryNotFoundError

    lines(tmp_path / "b.jsonl", [{"n": 1}])
    asked = []

    def download(name, file, repo_type):
        asked.append((name, file, repo_type))
        if file == "a.parquet":
            raise EntryNotFoundError("no")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    source = Source("some/data")
    assert source.rows("a.parquet", "b.jsonl") == [{"n": 1}] and list(source.read) == ["b.jsonl"]
    assert asked == [("some/data", "a.parquet", "dataset"), ("some/data", "b.jsonl", "dataset")]
    with pytest.raises(ItemError, match="has no a"):
        source.rows("a.parquet")


def test_a_sample_keeps_the_order_and_follows_from_the_seed():
    rows = list(range(50))
    assert some(rows, 9, 1) == sorted(some(rows, 9, 1)) == some(rows, 9, 1) != some(rows, 9, 2)
    assert some(rows, None, 1) == some(rows, 99, 1) == rows


def test_a_mean_that_is_not_told_says_why():
    found = Measured(untold={"b": "it is shut"})
    found.add("a.0", "a", {"x": 1.0})
    found.add("b.0", "b", {})
    (a, b) = means(found, ("a", "b"), ["x"], 0)
    assert a[2]["mean"] == 1.0 and b == ["b", 1, "not measured: it is shut"]


def run(*words):
    return CliRunner().invoke(main, list(map(str, words)), catch_exceptions=False)


@pytest.mark.timeout(240)
def test_a_run_in_process_and_its_report_as_the_reference_of_the_next(tofu, tmp_path, monkeypatch):
    monkeypatch.setattr("evals.published.tofu.LONGEST", 4)
    words = ["tofu", "--data", tofu, "--split", "forget05", "--sample", 2]
    never = tmp_path / "never.json"
    done = run(*words, "--model", MODEL.with_name("never"), "--out", never, "--journal", tmp_path / "journal")
    assert done.exit_code == 0 and "needs a never-learned model" in done.output
    assert (tmp_path / "journal" / "told.jsonl").exists()
    done = run(*words, "--model", MODEL, "--reference-report", never, "--out", tmp_path / "full.json")
    report = json.loads((tmp_path / "full.json").read_text())
    assert done.exit_code == 0 and 0 <= report["results"]["geometric"]["forget_quality"] <= 1
    other = json.loads(never.read_text())
    for row in other["rows"]:
        row["tokens"] = [n + 1 for n in row["tokens"]]
    never.write_text(json.dumps(other))
    done = run(*words, "--model", MODEL, "--reference-report", never, "--out", tmp_path / "x.json")
    assert done.exit_code == 1 and "another tokenizer" in done.output
    lines(tofu / "world_facts_perturbed.json", [{"question": "?", "answer": "a", "perturbed_answer": ["b"]}])
    done = run(*words, "--model", MODEL, "--reference-report", never, "--out", tmp_path / "x.json")
    assert done.exit_code == 1 and "no report of this benchmark on these files" in done.output


def test_somebody_must_be_measured_and_only_one(tofu):
    words = ["tofu", "--data", tofu, "--split", "forget05"]
    assert run(*words).exit_code == 2
    assert run(*words, "--base-url", "http://h", "--model", MODEL).exit_code == 2
    assert run(*words, "--base-url", "http://h", "--adapter", MODEL).exit_code == 2
    assert (
        run(*words, "--model", MODEL, "--reference-model", MODEL, "--reference-url", "http://h").exit_code
        == 2
    )


def test_every_benchmark_has_its_command():
    assert set(BENCHMARKS) <= set(main.commands)
