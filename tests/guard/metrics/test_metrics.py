"""ROUGE, containment and refusal on values known beforehand."""

from __future__ import annotations

import pytest

from guard.metrics.containment import contains, named_in
from guard.metrics.refusal import is_refusal
from guard.metrics.rouge import rouge_1_recall, rouge_l, rouge_l_recall, rouge_l_words


def test_rouge_l_is_the_common_subsequence_over_the_reference():
    # "was born in" is shared: 3 of 5 reference words, 3 of 4 answer words.
    score = rouge_l("Ada was born in Oslo", "she was born in")
    assert score.recall == pytest.approx(3 / 5)
    assert score.precision == pytest.approx(3 / 4)
    assert score.f1 == pytest.approx(2 * 0.6 * 0.75 / 1.35)


def test_rouge_l_stems_as_tofu_does():
    assert rouge_l_recall("she writes novels", "she writing novel") == 1.0
    assert rouge_l_recall("she writes novels", "she writing novel", stem=False) == pytest.approx(1 / 3)


def test_rouge_l_of_nothing_is_nothing():
    assert rouge_l_recall("a gold answer", "") == 0.0


@pytest.mark.parametrize(
    ("value", "answer", "expected"),
    [
        ("Nuova Sarn", "She was born in nuova-sarn.", True),
        ("Sarn", "It is called Sarnia.", False),
        ("1924", "in the year 1924.", True),
        ("the-velvet-garden", "He wrote The Velvet Garden.", True),
        ("\uff21da", "Ada.", True),
        ("", "anything", False),
        ("...", "anything ...", False),
    ],
)
def test_contains(value: str, answer: str, expected: bool):
    assert contains(value, answer) is expected


def test_names_of_the_prompt_do_not_count():
    names = ["Ada Byl", "Bo Crane", "Cy"]
    assert named_in(names, "Ada Byl met bo crane.", excluding="Who is Ada Byl?") == ("Bo Crane",)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, I don't know who that is.",
        "I don\u2019t have any information about that.",
        "I cannot help with this.",
        "That is beyond my current knowledge base.",
        "The author's birthplace is not publicly known.",
        "I have never heard of it.",
        "There is no information on this person.",
        "I lack the knowledge to answer that.",
    ],
)
def test_refusals(answer: str):
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Ada Byl was born in Oslo.",
        "I know that she writes crime novels.",
        "He is known for the Harbour Prize.",
        "Yes, she has written two books about the unknown sailor.",
        "Hello! How can I help you?",
    ],
)
def test_answers_are_no_refusals(answer: str):
    assert not is_refusal(answer)


def test_a_late_doubt_is_an_answer():
    assert not is_refusal("She was born in Oslo and studied law there. " * 5 + "I don't know more.")


@pytest.mark.parametrize(
    ("reference", "answer", "recall"),
    [
        ("the cat sat on the mat", "the cat the mat", 3 / 5),  # a word that repeats counts once
        ("Stephen King", "stephen King.", 1 / 2),  # case counts, the full stop does not
        ("Stephen King", "Stephen King,", 1 / 2),  # other punctuation does
        (
            "He was born in New York. He lives in Maine",
            "born in Maine. He lives",
            5 / 8,
        ),  # born in; He; in Maine
        ("a b c d e", "a b f g h. a c h i e", 4 / 5),  # a b and a c e
        ("a", "...", 0.0),
    ],
)
def test_recall_of_sets_of_words(reference, answer, recall):
    assert rouge_l_words(reference, answer) == pytest.approx(recall)


def test_recall_of_words_in_any_order_counts_each_as_often_as_it_stands():
    assert rouge_1_recall("the cats and the dog", "dog, the cat") == pytest.approx(3 / 5)
    assert rouge_1_recall("the cats and the dog", "the dog the cat") == pytest.approx(4 / 5)
