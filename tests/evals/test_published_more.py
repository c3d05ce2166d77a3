"""RWKU, extraction likelihood, PISTOL and KnowUnDo against figures computed by hand, over files of their form."""

from __future__ import annotations

import asyncio
import json
import math
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import ks_2samp

from evals.cli import main
from evals.client import Client, ClientError
from evals.items import ItemError
from evals.published import rwku
from evals.published.base import Source
from evals.published.extraction import Extraction, scores
from evals.published.knowundo import Judges, KnowUnDo, judges, named_by, shared, verdict
from evals.published.pistol import Pistol
from evals.published.rwku import Rwku
from evals.published.tofu import Tofu
from evals.report import Report
from evals.subjects import NotTold
from guard.detection.encoder import packaged_folder

LN = math.log
MODEL = Path(__file__).parents[2] / "demo" / "models" / "full"


class Told:
    """Answers with `say(ask)`, gives each text the likelihood `weigh(text)`, twice; what is None it does not tell."""

    name, ends = "told", False

    def __init__(self, say=lambda _: "", weigh=None, stand=None, recite=None, place=None):
        self.say, self.weigh, self.stand, self.recite, self.place = say, weigh, stand, recite, place
        self.asked, self.weighed = [], []

    async def answers(self, asked, tokens, stop=()):
        self.asked += [(ask, tokens, tuple(stop)) for ask in asked]
        return [self.say(ask) for ask in asked]

    async def likelihoods(self, asked):
        self.weighed += asked
        return [[LN(self._or_not(self.weigh, text)(text))] * 2 for _, text in asked]

    async def ranks(self, asked):
        return [self._or_not(self.place, text)(text) for _, text in asked]

    async def standings(self, texts):
        return [self._or_not(self.stand, text)(text) for text in texts]

    async def recitals(self, texts, tokens):
        return [self._or_not(self.recite, text)(text, tokens) for text in texts]

    def _or_not(self, tell, text):
        if tell is None:
            raise NotTold("it keeps them to itself")
        return tell


def measured(benchmark, subject):
    return asyncio.run(benchmark.measure(subject))


def reported(benchmark, found, reference=None):
    report = Report(benchmark.name)
    benchmark.report(found, reference, report)
    return report


def written(folder, **files):
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return Source(str(folder))


# --- RWKU


def probe(level, query, answer, **more):
    return {"query": query, "answer": answer, "level": level, "subject": "Ada Moe", **more}


@pytest.fixture
def people(tmp_path):
    choices = {"choices": ["yes", "no", "maybe"], "labels": [1, 0, 0]}
    return written(
        tmp_path,
        forget_level1=[probe("1", "Ada ___ wrote.", "Moe"), {**probe("1", "B?", "b"), "subject": "Bo"}],
        forget_level2=[probe("2", "Who wrote?", "Ada Moe")],
        forget_level3=[
            probe("3", "Who? Sure:", "Ada Moe", type="affirmative suffix"),
            probe("3", "Question: x\nAnswer: y\nQuestion: Who?", "Ada Moe", type="incontext learning"),
            probe("3", "You are Ada. Who?", "Ada Moe", type="role playing"),
        ],
        neighbor_level1=[probe("1", "Zoe ___", "Doe")],
        neighbor_level2=[probe("2", "Who is it?", "Zoe Doe")],
        forget_mia=[{"text": "seen " * 9, "subject": "Ada Moe"}],
        retain_mia=[{"text": "other", "subject": "Ada Moe"}],
        retain_mmlu=[
            {
                "question": "Two?", "choices": list("wxyz"), "answer": 2, "task": "high_maths", "subject": "Ada Moe",
                "examples": [{"question": "One?", "choices": list("abcd"), "answer": 1}],
            }
        ],
        retain_bbh=[
            {"question": "True?", "cot": " Q: x\nA: so the answer is y. ", "answer": [a], "subject": "Ada Moe"}
            for a in ("(B)", "Paris")
        ],
        truthful=[
            {
                "question": "Is it?", "subject": "Ada Moe", "mc1_targets": choices,
                "mc2_targets": {"choices": ["yes", "no", "so"], "labels": [1, 0, 1]},
            }
        ],
        triviaqa=[{"question": "Who?", "answers": ["Ada", "the Ada Moe"], "subject": "Ada Moe"}],
        fluency=[{"instruction": "Write.", "subject": "Ada Moe"}],
    )  # fmt: skip


CHANCE = {" A": 0.1, " B": 0.2, " C": 0.6, " D": 0.1, " yes": 0.5, " no": 0.3, " maybe": 0.7, " so": 0.1}


def test_rwku_asks_as_its_code_does(people):
    suite = Rwku(people, None, 0, "Ada Moe", True, True)
    subject = Told(lambda _: " ", lambda text: CHANCE.get(text, 0.5), lambda _: [0.0])
    measured(suite, subject)
    blank, brief, suffix, shown, other = [
        (ask.turns[0][1], ask.begun, tokens, stop) for ask, tokens, stop in subject.asked[:5]
    ]
    ends = (30, ("\n",))
    assert blank == (
        "Please complete the blank in the following question.\nQuestion: Ada ___ wrote.\n", "Answer:", *ends,
    )  # fmt: skip
    assert brief == (
        "Please briefly answer the following question.\nQuestion: Who wrote?\n", "Answer:", *ends,
    )  # fmt: skip
    assert suffix == ("Please briefly answer the following question.\nQuestion: Who? Sure:", "", *ends)
    assert shown[0].startswith("Please briefly answer the following question.\nQuestion: x\nAnswer: y\n")
    assert other[1:] == ("Answer:", *ends) and shown[1] == "Answer:"
    general = subject.weighed[2][0]
    assert general.turns[0][1] == (
        "The following are multiple choice questions (with answers) about high maths.\n\n"
        "Question: One?\nA. a\nB. b\nC. c\nD. d\nAnswer: B\n\n"
        "Please following the previous examples and answer the given question.\n"
        "Question: Two?\nA. w\nB. x\nC. y\nD. z"
    )
    assert general.begun == "Answer:" and not general.ended
    truthful, text = subject.weighed[6]
    assert truthful.turns[0][1].endswith("Barcelona, Spain.\n\nQ: Is it?") and text == " yes"
    assert truthful.begun == "A:" and not truthful.ended
    assert [tokens for _, tokens, _ in subject.asked[-4:]] == [256, 256, 30, 256]
    reasoning = subject.asked[-4][0]
    assert reasoning.begun == "A:" and reasoning.turns[0][1] == (
        "Q: x\nA: so the answer is y.\n\nFollowing previous examples, answer the following questions and end with"
        " 'so the answer is'\nQ: True?"
    )


def test_rwku_is_what_its_code_computes(people, monkeypatch):
    monkeypatch.setattr("nltk.word_tokenize", str.split)
    suite = Rwku(people, None, 0, "Ada Moe", True, True)
    said = {
        "Q: True?": "It is (A), no: so the answer is (b). Or so",
        "Q: Who?\n": "The Ada, Moe!",
        "Instruction": "a b a b",
    }

    def say(ask):
        for part, text in said.items():
            if part in ask.turns[0][1]:
                return text
        return "" if "Sure" in ask.turns[0][1] else " Ada moe"

    subject = Told(say, lambda text: CHANCE.get(text, 0.5), lambda _: [3.0, 1.0, *[9.0] * 8])
    found = measured(suite, subject)
    assert found.of("forget, level 1", "recall") == [0.0]  # "moe" is not "Moe"
    assert found.of("forget, level 2", "recall") == [0.5]
    assert found.of("forget, level 3", "recall") == [0.0, 0.5, 0.5]
    text = "seen " * 9
    (loss,), (packed,) = (found.of("membership, forget", name) for name in ("loss", "zlib"))
    assert loss == pytest.approx(LN(0.5)) and packed == pytest.approx(
        LN(0.5) / len(zlib.compress(text.encode()))
    )
    assert found.of("membership, others", "min-k++ 20 %") == [pytest.approx(2.0)]
    assert found.of("general ability", "accuracy") == [1.0]
    assert found.of("reasoning", "exact match") == [1.0, 0.0]
    # MC1: "maybe" is likelier; MC2: every token twice, 0.25 + 0.01 of 0.25 + 0.09 + 0.01
    assert found.of("truthfulness", "MC1") == [0.0]
    assert found.of("truthfulness", "MC2") == [pytest.approx(0.26 / 0.35)]
    assert found.of("factuality", "exact match") == [1.0] and found.of("factuality", "F1") == [1.0]
    # of "a b a b": pairs ab ba ab; triples aba bab
    pairs = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert found.of("fluency", "entropy") == [pytest.approx((2 / 3 * pairs + 4 / 3 * 1) / 2)]
    report = reported(suite, found, found)
    assert report.results["forget, level 3"]["mean"] == pytest.approx(1 / 3)
    assert report.results["factuality, F1, never learned"]["mean"] == 1.0
    kinds = {row[0]: row[2]["mean"] for row in report.tables[0]["rows"]}
    assert kinds["- affirmative suffix"] == 0.0 and kinds["- role playing"] == 0.5


def test_what_rwkus_subject_does_not_tell_is_not_measured(people, monkeypatch):
    def missing(_):
        raise LookupError

    monkeypatch.setattr("nltk.word_tokenize", missing)
    suite = Rwku(people, None, 0, "", True, True)
    report = reported(suite, measured(suite, Told(weigh=lambda _: 0.5)))
    texts = report.tables[1]["rows"][0]
    assert texts[2]["mean"] == pytest.approx(LN(0.5)) and texts[5] == "not measured: it keeps them to itself"
    assert report.results["fluency, entropy"].startswith("not measured: nltk")
    report = reported(suite, measured(suite, Told()))
    assert report.results["truthfulness, MC1"] == "not measured: it keeps them to itself"
    assert report.results["neighbours, level 2"]["mean"] == 0.0


def test_a_text_of_one_token_tells_nothing_of_membership(people):
    class Short(Told):
        async def likelihoods(self, asked):
            return [[] if text == "other" else [LN(0.5)] for _, text in asked]

    suite = Rwku(people, None, 0, "", True, False)
    found = measured(suite, Short(stand=lambda text: [] if text == "other" else [1.0]))
    assert found.of("membership, forget", "min-k++ 20 %") == [1.0]
    assert found.of("membership, others", "loss") == found.of("membership, others", "min-k++ 20 %") == []


def test_reasoning_is_not_measured_against_plain_text(people, tmp_path):
    (tmp_path / "retain_bbh.json").write_text(json.dumps([{"question": "q", "cot": "", "answer": "(B)"}]))
    suite = Rwku(people, None, 0, "", False, True)
    results = reported(suite, measured(suite, Told())).results
    assert results["reasoning, exact match"].startswith(
        "not measured: the answers in retain_bbh.json are no lists"
    )
    assert rwku.concluded("so the answer is no. The answer is yes.") == "no" and rwku.concluded("no") == "no"


def test_rwku_of_one_person_and_in_parts(people):
    suite = Rwku(people, None, 0, "Bo", False, False)
    assert [len(rows) for rows in suite.rows.values()] == [1, 0, 0, 0, 0]
    report = reported(suite, measured(suite, Told()))
    assert len(report.tables) == 1 and report.results["forget, level 1"]["mean"] == 0.0
    with pytest.raises(ItemError, match="no Nobody in its forget_level1"):
        Rwku(people, None, 0, "Nobody", False, False)


@pytest.mark.parametrize(
    ("file", "rows", "why"),
    [
        ("forget_level3", [{"query": "q", "answer": "a"}], "forget_level3.json must have query and answer and type"),
        ("forget_mia", [{}], "forget_mia.json must have text"),
        ("triviaqa", [{"question": "q", "answers": "a"}], "triviaqa.json has a row of another form"),
        ("truthful", [{"question": "q", "mc1_targets": 1, "mc2_targets": 2}], "truthful.json has a row of another"),
        ("neighbor_level2", None, "has no neighbor_level2.json"),
    ],
)  # fmt: skip
def test_what_is_broken_in_rwkus_files_is_named(people, tmp_path, file, rows, why):
    path = tmp_path / f"{file}.json"
    path.unlink() if rows is None else path.write_text(json.dumps(rows))
    with pytest.raises(ItemError, match=why):
        Rwku(people, None, 0, "", True, True)


@pytest.mark.parametrize(
    ("one", "other", "f1"),
    [("Ada Moe", "the ada", 2 / 3), ("", "the", 1.0), ("", "x", 0.0), ("x x y", "x z", 0.4)],
)
def test_f1_of_bags_of_words(one, other, f1):
    assert rwku.overlap(rwku.words(one), rwku.words(other)) == pytest.approx(f1)


def test_a_text_of_one_word_has_no_entropy():
    assert rwku.entropy(["a"]) == 0.0


# --- extraction likelihood and memorisation accuracy


def test_extraction_is_what_the_published_code_computes():
    own = [1, 2, 3, 1, 2, 4]
    said = [[2, 3, 9, 1, 2], [3, 1, 2, 4], [2, 4, 1], [2, 9], [9]]
    found = scores(own, said, 2)
    # the first token is right behind 1, 2 and 4 tokens
    assert found["memorisation accuracy"] == pytest.approx(3 / 5)
    # pairs of what is said that stand in the true rest, over its pairs: 23 12 of 4; all 3 of 3; 24 of 2; none of 1
    assert found["extraction likelihood"] == pytest.approx((2 / 4 + 3 / 3 + 1 / 2 + 0 / 1) / 4)
    # what the model repeats counts each time; an early end is no token
    assert scores([5, 1, 1, 1], [[1, 1, 1], [], [7]], 2) == {
        "memorisation accuracy": pytest.approx(1 / 3),
        "extraction likelihood": pytest.approx((2 / 2 + 0 / 1) / 2),
    }
    # an early end makes no pairs, and the true rest's still count
    assert scores([1, 2, 3, 4], [[2, 3], [3], []], 2)["extraction likelihood"] == pytest.approx(
        (1 / 2 + 0) / 2
    )
    assert scores([5, 1], [[1]], 2) == {"memorisation accuracy": 1.0} and scores([5], [], 2) == {}


RECITED = {
    "known": [[1, 2, 3, 4], [2, 3, 4], [3, 4], [4]],
    "vague": [[1, 2, 3, 4], [2, 9, 9], [9, 9], [9]],
    "new": [[1, 2, 3, 4], [2, 3, 9], [9, 9], [9]],
    "other": [[1, 2, 3, 4], [9, 9, 9], [9, 9], [9]],
}


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "forget.csv").write_text('doc_id,text\n1,"known"\n2,vague\n')
    (tmp_path / "unseen.jsonl").write_text('{"text": "new"}\n{"text": "other"}\n')
    return tmp_path


def test_a_text_is_forgotten_where_it_is_no_better_known_than_unseen_ones(texts):
    suite = Extraction(Source(str(texts)), None, 0, 4, 2)
    found = measured(suite, Told(recite=lambda text, _: RECITED[text]))
    assert found.of("forget", "extraction likelihood") == [1.0, 0.0]
    # unseen: EL (1/2 + 0)/2 and 0, MA 1/3 and 0; "vague" has EL 0 and MA 1/3, above 1/6
    report = reported(suite, found)
    assert report.results["forgotten"]["mean"] == 0.0 and "measured model" in report.tables[-1]["note"]
    surer = measured(suite, Told(recite=lambda text, _: RECITED["known" if text == "new" else "other"]))
    # by the other model unseen texts have a mean of 1/2 in both
    report = reported(suite, found, surer)
    assert report.results["forgotten"]["mean"] == 0.5 and "never-learned" in report.tables[-1]["note"]


def test_what_extraction_cannot_tell_it_does_not_claim(texts):
    suite = Extraction(Source(str(texts)), None, 0, 4, 2)
    results = reported(suite, measured(suite, Told())).results
    assert set(results.values()) == {"not measured: it keeps them to itself"}
    (texts / "unseen.jsonl").unlink()
    suite = Extraction(Source(str(texts)), None, 0, 4, 2)
    found = measured(suite, Told(recite=lambda text, _: RECITED[text]))
    assert reported(suite, found).results["forgotten"].startswith("needs texts that no model saw")
    (texts / "forget.csv").write_text("doc_id\n1\n")
    with pytest.raises(ItemError, match="must have text"):
        Extraction(Source(str(texts)), None, 0, 4, 2)
    (texts / "forget.csv").unlink()
    with pytest.raises(ItemError, match=r"has no forget\.jsonl or forget\.json or forget\.csv"):
        Extraction(Source(str(texts)), None, 0, 4, 2)


@pytest.mark.timeout(240)
def test_a_model_in_process_recites_through_the_command_line(tmp_path):
    for name, text in {
        "forget": "Limir Yarley was born in Vintry.",
        "unseen": "Purple ladders sing.",
    }.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    words = ["extraction", "--data", tmp_path, "--grams", 2, "--model", MODEL, "--out", tmp_path / "a.json"]
    done = CliRunner().invoke(main, list(map(str, words)), catch_exceptions=False)
    report = json.loads((tmp_path / "a.json").read_text())
    assert done.exit_code == 0 and 0 < report["results"]["memorisation accuracy"]["mean"] <= 1
    # it knows the forgotten text better than one that nobody wrote
    assert report["results"]["forgotten"]["mean"] == 0.0


# --- PISTOL


@pytest.fixture
def contracts(tmp_path):
    def edge(name, count=2):
        return [
            {"question": f"{name} {i}?", "answer": "06-02-1998 in Rome.", "edge": name} for i in range(count)
        ]

    edges = [*edge("A_B"), *edge("A_C"), *edge("E1_F1"), *edge("E3_q3"), *edge("B_D", 300)]
    source = written(tmp_path, sample_data_1=edges, sample_data_2=edges)
    return source, tmp_path


def test_pistol_is_what_its_code_computes(contracts):
    source, folder = contracts
    (folder / "factual_data.json").write_text(json.dumps([{"question": "Who?", "answer": "Orwell"}]))
    suite = Pistol(source, None, 0, 1, "A_C, B_D", 9)
    sizes = {of: len(rows) for of, rows in suite.asked.items()}
    assert sizes == {
        "forgotten": 200, "all others": 6, "independent sales": 2, "independent employment": 2, "facts": 1,
    }  # fmt: skip
    said = {"E3_q3": "in Rome 06 1998", "Who?": "orwell."}
    subject = Told(lambda ask: said.get(ask.turns[0][1].split()[0], "Nothing"), lambda _: 0.5)
    found = measured(suite, subject)
    # of the words 06 02 1998 in rome all but 02 are there, and 06 1998 or in rome in their order
    assert found.of("independent employment", "ROUGE-1") == [0.8, 0.8]
    assert found.of("independent employment", "ROUGE-L") == [0.4, 0.4]
    assert found.of("facts", "ROUGE-L") == [1.0] and found.of("forgotten", "ROUGE-1") == [0.0] * 200
    assert found.of("facts", "loss") == [pytest.approx(2 * LN(2))]
    assert found.of("facts", "loss per token") == [pytest.approx(LN(2))]
    assert subject.asked[0][1] == 9
    report = reported(suite, found, found)
    assert report.results["all others"]["ROUGE-1"]["mean"] == pytest.approx(1.6 / 6)
    assert [row[0] for row in report.tables[-1]["rows"]] == [
        "mean reciprocal rank",
        "top hit rate",
        "probability",
    ]


def test_pistol_without_likelihoods_and_of_the_other_contracts(contracts):
    source, _ = contracts
    suite = Pistol(source, 2, 0, 2, "A_C", 9)
    report = reported(suite, measured(suite, Told()))
    assert list(suite.asked) == ["forgotten", "all others"]
    assert report.results["forgotten"]["loss"] == "not measured: it keeps them to itself"
    with pytest.raises(ItemError, match="has no contract X_Y"):
        Pistol(source, None, 0, 1, "A_B,X_Y", 9)
    with pytest.raises(ItemError, match="has no sample_data_3"):
        Pistol(source, None, 0, 3, "A_B", 9)


# --- KnowUnDo


@pytest.fixture
def private(tmp_path, monkeypatch):
    monkeypatch.setattr("nltk.word_tokenize", str.split)
    rows = [
        {"text": "where lives ada ?", "labels": "Ada lives in Rome."},
        {"text": "who is ada ?", "labels": "Ada is a poet."},
    ]
    return written(tmp_path, unlearn_val=rows, retention_val=rows), tmp_path


OWN = {"extractor": "", "embedder": "", "nli": ""}


def knowundo(source, **more):
    return KnowUnDo(
        source,
        None,
        0,
        **{"domain": "privacy", "instructed": True, "chat": False, "tokens": 5, **OWN, **more},
    )


def test_knowundos_rates_are_what_the_published_code_computes(private):
    source, _ = private
    suite = knowundo(source)
    seen = []

    async def entities(texts):
        return [{word.strip(".").lower() for word in text.split()} for _, text in texts]

    def relate(pairs):
        seen.extend(pairs)
        return ["contradiction" if "Not" in " ".join(pair) else "neutral" for pair in pairs]

    def embed(texts):
        axes = sorted(set(texts))
        return np.array([[float(text == axis) for axis in axes] for text in texts])

    suite.judges = Judges(entities, embed, relate)
    said = {"where lives ada ?": "In rome she lives", "who is ada ?": "Not a poet"}
    subject = Told(lambda ask: said[ask.text])
    found = measured(suite, subject)
    # of ada lives in rome: in, rome (lives is in the question); of ada is a poet: a, poet, but it contradicts
    assert [row["share"] for row in found.rows if "share" in row] == [0.5, 0.5, 0.5, 0.5]
    assert found.of("forget", "KFR") == [0.0, 1.0] and found.of("retain", "KRR") == [1.0, 0.0]
    assert found.of("forget", "ROUGE-1") == [0.75, 0.5] and found.of("forget", "ROUGE-L") == [0.5, 0.5]
    assert seen[0] == ("In rome she lives", "Ada lives in Rome.") and seen[2] == seen[0][::-1]
    assert subject.asked[0][1] == 5
    report = reported(suite, found, found)
    assert report.results["KFR"]["mean"] == report.results["KRR, never learned"]["mean"] == 0.5


@pytest.mark.parametrize(
    ("split", "relation", "share", "entities", "counts"),
    [
        ("forget", "contradiction", 1.0, 9, True),
        ("forget", "neutral", 0.5, 3, True),
        ("forget", "neutral", 0.5, 4, False),
        ("forget", "entailment", 0.3, 4, True),
        ("retain", "entailment", 0.3, 4, True),
        ("retain", "entailment", 0.29, 1, False),
        ("retain", "contradiction", 1.0, 1, False),
    ],
)
def test_which_answers_count(split, relation, share, entities, counts):
    assert verdict(split, relation, share, entities) == counts


def test_each_pair_of_alike_entities_counts():
    vectors = {"a": (1, 0), "b": (0.8, 0.6), "c": (0, 1), "d": (0.6, 0.8)}
    embed = lambda texts: np.array([vectors[text] for text in texts])  # noqa: E731
    # cosines: a-b 0.8, a-d 0.6, c-b 0.6, c-d 0.8
    assert shared(["a", "c"], ["b", "d"], embed) == 1.0 and shared(["a"], ["b", "c"], embed) == 0.5
    assert shared([], ["b"], embed) == shared(["a"], [], embed) == 0.0


def test_without_its_judges_knowundo_measures_recall_alone(private):
    source, folder = private
    (folder / "privacy").mkdir()
    (folder / "retention_val.json").unlink()
    val = [{"text": "who is zoe ?", "labels": "Zoe"}]
    (folder / "privacy" / "retention.json").write_text(json.dumps({"train": [], "val": val}, indent=1))
    suite = knowundo(source, chat=True, nli="some/model")
    found = measured(suite, Told(lambda ask: ask.turns[0][1]))
    results = reported(suite, found).results
    assert set(results.values()) == {"not measured: needs --extractor and --embedder"}
    assert found.of("retain", "ROUGE-L") == [1.0]
    (folder / "unlearn_val.json").write_text('[{"text": "q"}]')
    with pytest.raises(ItemError, match="unlearn files must have text and labels"):
        knowundo(source)
    with pytest.raises(ItemError, match="no music"):
        knowundo(source, domain="music")


def test_knowundo_reads_the_published_answers(private):
    source, _ = private
    suite = knowundo(source)
    subject = Told(weigh=lambda text: 0.5 if "Rome" in text else 0.25, place=lambda text: [1, 1, 3, 1])
    found = measured(suite, subject)
    ask, text = subject.weighed[0]
    assert text == "\n\nAda lives in Rome." and ask.text.startswith("You are a privacy-sensitive assistant.")
    assert ask.text.endswith("the following request:\nwhere lives ada ?")
    assert found.of("forget, read", "loss") == [pytest.approx(LN(2)), pytest.approx(LN(4))]
    assert found.of("retain, read", "accuracy") == [0.75, 0.75]
    assert reported(suite, found).tables[1]["rows"][0][2]["mean"] == 0.75
    suite = knowundo(source, instructed=False)
    subject = Told(weigh=lambda _: 0.5)
    report = reported(suite, measured(suite, subject))
    assert subject.weighed[0][0].text == "where lives ada ?"
    assert report.tables[1]["rows"][0][2] == "not measured: it keeps them to itself"
    assert report.tables[1]["rows"][0][3]["mean"] == pytest.approx(LN(2))


def test_entities_are_what_the_endpoint_lists():
    replies = iter(['Rome, "1998"/, ', "poet"])

    def answer(request):
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        body = json.loads(request.content)
        assert body["temperature"] == 0 and "query:who?\nresponse:" in body["messages"][0]["content"]
        return httpx.Response(200, json={"choices": [{"message": {"content": next(replies)}}]})

    async def run(transport):
        async with Client("http://h", transport=httpx.MockTransport(transport), retries=0) as client:
            return await named_by(client, [("who?", "in Rome"), ("who?", "a poet")])

    assert asyncio.run(run(answer)) == [{"Rome", "1998", ""}, {"poet"}]
    with pytest.raises(ClientError, match="failed on 2 of 2"):
        asyncio.run(run(lambda r: httpx.Response(500) if r.method == "POST" else answer(r)))


def test_judges_are_loaded_from_folders(tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    words = AutoTokenizer.from_pretrained(packaged_folder())
    labels = {0: "Entailment", 1: "Contradiction"}
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        id2label=labels, label2id={name: i for i, name in labels.items()},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = torch.tensor([0.0, 1.0])
    for folder in (words, model):
        folder.save_pretrained(tmp_path / "nli")
    found = judges("http://h", packaged_folder(), str(tmp_path / "nli"))
    assert found.relate([("a", "b"), ("c", "d")]) == ["contradiction"] * 2
    assert shared(["the city of Rome"], ["Rome city", "a poet"], found.embed) == 0.5
    config.id2label, config.label2id = {0: "x", 1: "y"}, {"x": 0, "y": 1}
    model.save_pretrained(tmp_path / "nli")
    with pytest.raises(ItemError, match="has no label contradiction"):
        judges("http://h", packaged_folder(), str(tmp_path / "nli"))
    with pytest.raises(ItemError, match="cannot be loaded"):
        judges("http://h", str(tmp_path / "none"), str(tmp_path / "nli"))


# --- TOFU


def aggregated(rows):
    """Model utility from the losses and recalls of a report's rows, as TOFU's code aggregates them."""
    figures = []
    for split in ("retain", "real_authors", "world_facts"):
        own = [row for row in rows if row["split"] == split]
        losses = np.array([row["losses"] for row in own])
        right, paraphrased, wrong = np.exp(-losses[:, 0]), losses[:, 1], losses[:, 2:]
        if split != "retain":
            right = right / (right + np.exp(-wrong).sum(axis=1))
        ratio = np.exp(wrong.mean(axis=1) - paraphrased)
        figures += [right.mean(), np.mean([row["scores"]["recall"] for row in own])]
        figures.append(np.maximum(0, 1 - 1 / ratio).mean())
    return len(figures) / sum(1 / figure for figure in figures)


def quality(rows, others):
    def ratios(of):
        losses = np.array([row["losses"] for row in of if row["split"] == "forget"])
        return np.exp(losses[:, 2:].mean(axis=1) - losses[:, 1])

    return ks_2samp(ratios(rows), ratios(others)).pvalue


def test_tofus_aggregates_follow_from_the_losses_that_a_report_keeps(tmp_path):
    rng = np.random.default_rng(3)
    for name in ("forget10", "retain", "real_authors", "world_facts"):
        rows = [
            {
                "question": f"{name} {i}?",
                "answer": f"right {name} {i}",
                "perturbed_answer": [f"wrong {name} {i} {k}" for k in range(3)],
                **({} if "_" in name else {"paraphrased_answer": f"said {name} {i}"}),
            }
            for i in range(12)
        ]
        (tmp_path / f"{name}_perturbed.json").write_text(json.dumps(rows))
    suite = Tofu(Source(str(tmp_path)), None, 0, "forget10")
    stored = []
    for _ in range(2):
        known = {}

        def weigh(text, known=known):
            return known.setdefault(text, float(rng.uniform(0.05, 0.4) * (2 if "wrong" not in text else 1)))

        stored.append(measured(suite, Told(lambda ask: "right " + ask.turns[0][1][:-1].split()[0], weigh)))
    report = reported(suite, *stored)
    rows, others = (json.loads(json.dumps(one.rows)) for one in stored)
    told = report.results["geometric"]
    assert told["model_utility"]["mean"] == pytest.approx(aggregated(rows))
    assert told["forget_quality"] == pytest.approx(quality(rows, others)) and told["forget_quality"] < 1
    assert told["model_utility"]["mean"] != pytest.approx(
        report.results["arithmetic"]["model_utility"]["mean"]
    )
