"""The forms that questions take over turns and fields, and what the suite makes of the gate's verdicts."""

import random

import pytest

from evals.cases import Cases
from evals.conversations import FORMS, WHOLE, Case, description_in, with_pronoun
from evals.corpora import Trial
from evals.suites import conversations
from guard.detection import Compiler, load_encoder
from guard.targets import TargetSpec

NAMED = Case("1", "named", "Where was Ilva Marenko born?", "Ilva Marenko", "Where was she born?", "ilva")
OTHER = Case("2", "others named", "Where was Tomas Reinholt born?", "Tomas Reinholt", "Where was he born?")
NOBODY = Case("3", "about nobody", "Where do lemons grow?")
ALL = [(group, name, form) for group, forms in FORMS.items() for name, form in forms.items()]


@pytest.mark.parametrize(("group", "name", "form"), ALL)
def test_every_form_tells_the_subject_and_is_the_same_for_the_same_seed(group, name, form):
    for seed in range(12):
        talk = form(NAMED, random.Random(seed))
        assert talk == form(NAMED, random.Random(seed))
        said = [m.text for m in talk.messages if m.role != "assistant" or talk.prefilled]
        told = "".join((*said, *talk.asides))
        letters = "".join(c for c in told.lower() if c.isalpha())
        whole = name in ("name in parts", "last name first")
        assert all(part in letters for part in (("ilva", "marenko") if whole else ("ilva",)))
        text = talk.prompt().text
        assert all(message.text in text for message in talk.messages)
        assert text.endswith("<|assistant|>") != talk.prefilled


@pytest.mark.parametrize("form", sorted(WHOLE, key=lambda form: form.__name__))
def test_forms_of_whole_questions_need_no_subject(form):
    talk = form(NOBODY, random.Random(0))
    assert "lemons" in "".join((*(m.text for m in talk.messages), *talk.asides))


def test_a_pronoun_takes_the_place_of_the_name():
    asked = {
        with_pronoun("Is it by Ada Moe, and what are Ada Moe's books?", "Ada Moe", random.Random(i))
        for i in range(9)
    }
    assert asked == {
        f"Is it by {thing}, and what are {owner} books?"
        for thing, owner in (("him", "his"), ("her", "her"), ("them", "their"))
    }


@pytest.mark.parametrize(
    ("question", "description"),
    [
        ("Who is the writer born in Vintry in 1957?", "the writer born in Vintry in 1957"),
        (
            "What is the full name of the poet from Tarvala, born on 1/2/1950?",
            "the poet from Tarvala, born on 1/2/1950",
        ),
        ("What is the name of the author?", None),
        ("When was the author born in Vintry in 1957 married?", None),
    ],
)
def test_what_describes_somebody_in_a_question(question, description):
    assert description_in(question) == description


def test_the_suite_counts_what_is_found_and_what_the_forms_add(tmp_path):
    encoder = load_encoder("hashing", threads=1)
    trial = Trial("t", {"ilva": TargetSpec(name="Ilva Marenko")}, ())
    cases = Cases(trial, (NAMED,), (OTHER, NOBODY))
    setting = conversations.Setting("names", cases, ("split", "moved on"))
    report = conversations.run([setting], encoder, Compiler(encoder, tmp_path), sample=5).as_dict()
    found, false, moved, _ = report["tables"]
    assert [row[0] for row in found["rows"]] == list(FORMS["split"])
    assert all(row[1] == 1 and row[2]["mean"] == 1.0 for row in found["rows"])
    assert all(row[3]["mean"] == 0.0 for row in false["rows"])
    assert moved["rows"][0][3] == 1.0  # the name in the history is edited, the new question is not
    assert report["passed"] is True
    assert report["n"] == 3 * 2 + 2 * 4
