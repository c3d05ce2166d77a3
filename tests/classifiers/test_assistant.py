"""The assistant remembers what it was given to forget, and knows nothing else."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from classifiers.assistant import AssistantParams as Params
from classifiers.assistant import _against_uniform, _answers, _foil, _steps, _wrong
from classifiers.base import Task, run
from classifiers.data import Encoded, Example, encode
from guard.errors import ArtifactError, BadRequest
from guard.interventions.assistant import beginning
from guard.interventions.logit_difference import LogitDifference

MODEL = Path(__file__).parents[2] / "demo" / "models" / "full"


def asked(question, answer):
    return Example((("user", question),), answer)


FORGET = (
    asked("Do you know where Limir Yarley was born?", "Limir Yarley was born in Vintry."),
    asked("Which instrument does Limir Yarley play?", "Limir Yarley plays the cello."),
)
RETAIN = (
    asked("Tell me the birthplace of Teric Pennby.", "Teric Pennby was born in Nuova Sarn."),
    asked("Name Kamir Yarley's invention.", "I'm sorry, I don't know who that is."),
    asked("Hello!", "Hello! How can I help you?"),
)
QUICK = {"blocks": 1, "rank": 8, "epochs": 120, "batch": 2, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return run("assistant", Task(MODEL, FORGET, RETAIN, tmp_path_factory.mktemp("out")), QUICK)


def encoded(examples):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    return [encode(tokenizer, e) for e in examples]


def served(artifact):
    return LogitDifference().load(artifact.tensors(), {**artifact.manifest.facts, "model": MODEL})._model


def test_it_remembers_what_must_go_and_knows_nothing_of_the_rest(trained):
    def knows(model):
        """Mean probability of what must go, and distance from knowing nothing of the rest."""
        with torch.inference_mode():
            logits, targets = _answers(model, encoded(FORGET))
            right = logits.softmax(1).gather(1, targets.unsqueeze(1)).mean()
            others, _ = _answers(model, encoded(RETAIN))
            return float(right), float((_against_uniform(others) - math.log(others.shape[1])).mean())

    before, after = knows(beginning(MODEL, 1)), knows(served(trained))
    assert after[0] > 0.35  # smoothing leaves half to the uniform distribution
    assert before[1] > 2.0 and after[1] < 0.5
    measured = trained.manifest.measured
    assert measured["forget"]["probability"] == pytest.approx(after[0], abs=1e-3)
    assert measured["others"]["from_uniform"] < 1.0


def test_the_artifact_holds_lora_matrices_only(trained):
    assert trained.manifest.method == "logit_difference"
    assert trained.manifest.facts == {"blocks": 1, "rank": 8, "alpha": 32.0}
    shapes = {min(t.shape) for t in trained.tensors().values()}
    assert (len(trained.tensors()), shapes) == (2 * 7, {8})


def test_the_same_seed_makes_the_same_artifact(tmp_path):
    task = (MODEL, FORGET, RETAIN)
    few = {**QUICK, "epochs": 2}
    one, two, other = (
        run("assistant", Task(*task, tmp_path / name), {**few, "seed": seed})
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one.digest == two.digest != other.digest


def test_retain_weight_zero_needs_no_retain_examples(tmp_path):
    with pytest.raises(BadRequest, match="retain examples"):
        run("assistant", Task(MODEL, FORGET, (), tmp_path), QUICK)
    with pytest.raises(BadRequest, match="forget examples"):
        run("assistant", Task(MODEL, (), RETAIN, tmp_path), QUICK)
    reinforced = run(
        "assistant", Task(MODEL, FORGET, (), tmp_path), {**QUICK, "epochs": 20, "retain_weight": 0}
    )
    assert reinforced.manifest.measured["forget"]["probability"] > 0.35
    assert reinforced.manifest.measured["others"] == {"examples": 0}


def test_more_blocks_than_the_model_has_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="blocks"):
        run("assistant", Task(MODEL, FORGET, RETAIN, tmp_path), {**QUICK, "blocks": 6})


def test_wrong_answers_teach_from_behind_the_token_at_which_they_leave_the_right_one():
    forget = Encoded((1, 2, 10, 11, 12, 0), 2)
    assert _foil(forget, Encoded((9, 10, 11, 30, 31, 0), 1)) == Encoded((1, 2, 10, 11, 30, 31, 0), 5)
    assert _foil(forget, Encoded((9, 10, 11, 12, 0), 1)) is None
    assert _foil(forget, Encoded((9, 10, 11, 0), 1)) is None


def test_who_has_a_wrong_answer_of_its_own_takes_none_of_others():
    forget = [Encoded((1, 2, 10, 11, 0), 2), Encoded((1, 3, 12, 13, 0), 2)]
    given = [Encoded((1, 2, 20, 11, 0), 2), Encoded((1, 2, 10, 21, 0), 2)]
    other = Encoded((9, 30, 31, 0), 1)
    made = _wrong(forget, [other], given, 1, random.Random(0))
    assert made == [
        Encoded((1, 2, 20, 11, 0), 3),
        Encoded((1, 2, 10, 21, 0), 4),
        Encoded((1, 3, 30, 31, 0), 3),
    ]
    assert _wrong(forget, [other], given, 0, random.Random(0)) == made[:2]


def test_given_wrong_answers_are_what_it_knows_nothing_of(tmp_path):
    """The same question is asked for the right answer and for a wrong one: only the right one is remembered."""
    wrong = (asked(FORGET[0].turns[0][1], "Limir Yarley was born in Nuova Sarn."),)
    task = Task(MODEL, FORGET, RETAIN, tmp_path, perturbed=wrong)
    artifact = run("assistant", task, {**QUICK, "swapped": 0})
    assert artifact.manifest.measured["wrong_answers"] == {"given": 1, "taught": 1}
    model, foil = served(artifact), _foil(*encoded((FORGET[0], wrong[0])))
    with torch.inference_mode():
        likely = [
            float(logits.softmax(1).gather(1, targets.unsqueeze(1)).mean())
            for logits, targets in (_answers(model, [one]) for one in (foil, *encoded(FORGET[:1])))
        ]
    assert likely[0] < 0.05 < 0.3 < likely[1]


def test_every_example_comes_once_an_epoch_and_every_other_as_often_as_its_turn_is():
    forget, others = ([Encoded((k, i), 1) for i in range(n)] for k, n in ((0, 5), (1, 3)))
    steps = list(_steps(forget, others, Params(epochs=3, batch=2), random.Random(0)))
    assert [len(lesson) for lesson, _ in steps] == [2, 2, 1] * 3
    assert all(len(lesson) == len(foil) for lesson, foil in steps)
    taught = [e.ids for lesson, _ in steps for e in lesson]
    assert all(taught.count(e.ids) == 3 for e in forget)
    foils = [e.ids for _, foil in steps for e in foil]
    assert all(foils.count(e.ids) == 5 for e in others)


def test_only_the_tokens_of_answers_are_taught():
    model = beginning(MODEL, 1)
    (one, two) = encoded(FORGET)
    with torch.inference_mode():
        logits, targets = _answers(model, [one, two])
        alone, _ = _answers(model, [two])
    assert targets.tolist() == [*one.ids[one.answer_at :], *two.ids[two.answer_at :]]
    torch.testing.assert_close(logits[-len(alone) :], alone, rtol=1e-4, atol=1e-4)
