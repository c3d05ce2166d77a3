"""Forbidden texts in a stream: found as in the whole text, and no character of one leaves before it is found."""

from __future__ import annotations

import os
import random
from collections.abc import Coroutine
from dataclasses import dataclass

import pytest

from guard.detection.base import Form
from guard.detection.literals import Ending, Literals
from guard.detection.text import bounded, fold
from guard.speech import Speech

CASES = int(os.environ.get("LETHE_CASES", "2000"))


@dataclass(frozen=True)
class Spec:
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    target_id: str
    forms: tuple[Form, ...]
    spec: Spec


def target(target_id: str, *names: str, answers: tuple[str, ...] = ()) -> Target:
    return Target(target_id, tuple(Form(fold(name).text, 1.0) for name in names), Spec(answers))


JANE = target("jane", "Jane Doe", answers=("born in Vintry on the third of May",))


def at_once(coroutine: Coroutine):
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


def said(pieces, *targets, forbids=lambda target, named: True):
    """What left at each piece, and the hit."""
    literals = Literals(targets or [JANE])
    speech = Speech(lambda text, begun, ended: literals.look(text, begun, forbids, ended=ended))

    async def say():
        return [await speech.say(piece, ended=i == len(pieces) - 1) for i, piece in enumerate(pieces)]

    return at_once(say()), speech.hit


def test_nothing_of_a_name_leaves_and_nothing_else_waits():
    out, hit = said(["It", " is", " Ja", "ne", " Do", "e", "."])
    assert out == ["It", " is", " ", "", "", "", ""]
    assert (hit.target_id, hit.named) == ("jane", True)


def test_what_turns_out_to_be_another_word_leaves_at_once():
    assert said(["Jane", " Do", "es", " sing", "."]) == (["", "", "Jane Does", " sing", "."], None)
    assert said(["Jan", "et", " sings"]) == (["", "Janet", " sings"], None)


def test_a_name_at_the_very_end_is_found():
    out, hit = said(["By Jane", " Doe"])
    assert "".join(out) == "By " and hit is not None
    assert said(["By Jane", " D"])[0] == ["By ", "Jane D"]


@pytest.mark.parametrize(
    "text",
    [
        "JANE DOE",
        "jane-doe",
        "Jane  Doe's",
        "Jáne Dóe",
        "J\u200bane Doe",
        "\uff2aane Doe",
        "“Jane Doe”",
        "Jane\nDoe",
    ],
)
def test_other_ways_of_writing_change_nothing(text):
    out, hit = said([*f"See {text} now."])
    assert hit is not None and "e" not in "".join(out)[4:]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("By Jane Do", "By "),
        ("By Jane D", "By "),
        ("By Jane ", "By Jane "),
        ("By Ja", "By Ja"),
        ("She was born in Vintry on the third of M", "She was "),
        ("She was born in Vintry on the thi", "She was born in Vintry on the thi"),
    ],
)
def test_an_end_that_somebody_chose_does_not_show_all_but_the_last_letters(text, left):
    literals = Literals([JANE])
    for ending, expected in ((Ending.CHOSEN, left), (Ending.OWN, text)):
        found = literals.look(text, 0, lambda target, named: True, ended=ending)
        assert text[: found.safe] == expected and (found.hit is None) == (expected == text)
    assert literals.look(text, 0, lambda target, named: False, ended=Ending.CHOSEN).hit is None


def test_answers_are_found_like_names():
    out, hit = said(["She was born in", " Vintry, on the third", " of May", ", I think."])
    assert "".join(out) == "She was " and not hit.named


def test_of_two_that_begin_alike_the_shorter_is_enough():
    out, hit = said(["a b", " c d"], target("long", "a b c d e"), target("short", "a b"))
    assert "".join(out) == "" and hit.target_id == "short"


def test_who_does_not_forbid_is_not_asked_for():
    pieces = ["Jane Doe was born in Vintry on the third of May."]
    out, hit = said(pieces, forbids=lambda target, named: not named)
    assert "".join(out) == "Jane Doe was " and not hit.named
    assert said(pieces, forbids=lambda target, named: False) == (pieces, None)


def test_a_change_shares_what_it_leaves_alone_and_forgets_who_has_gone():
    other = target("other", "Bo Crane")
    both = Literals([JANE, other])
    one = Literals([other], both)
    assert both.said_in("Jane Doe and Bo Crane") == {("jane", True), ("other", True)}
    assert one.said_in("Jane Doe and Bo Crane") == {("other", True)}


def naive(text: str, targets: list[Target]) -> int | None:
    """Where the first forbidden text begins, by looking at every place."""
    folded = fold(text)
    found = []
    for one in targets:
        for wanted in (
            *(form.text for form in one.forms),
            *(fold(answer).text for answer in one.spec.answers),
        ):
            for start in range(len(folded.text) - len(wanted) + 1) if wanted else ():
                end = start + len(wanted)
                if folded.text[start:end] == wanted and bounded(folded.text, start, end):
                    found.append(folded.starts[start])
    return min(found, default=None)


def test_streams_agree_with_a_brute_force_reference_over_random_splits():
    """LETHE_CASES sets how many; 100,000 take two minutes."""
    rng = random.Random(7)

    def word(longest: int) -> str:
        return "".join(rng.choice("abs\u4eca") for _ in range(rng.randint(1, longest)))

    def words(most: int, longest: int) -> str:
        return " ".join(word(longest) for _ in range(rng.randint(1, most)))

    hits = 0
    for case in range(CASES):
        targets = [target(str(i), words(3, 3), answers=(words(4, 2),)) for i in range(rng.randint(1, 3))]
        letters = rng.choice(("ab' .\u00e9-\u200bA\u2019s\u4eca", "ab .-As"))
        text = "".join(rng.choice(letters) for _ in range(rng.randint(1, 30)))
        pieces, at = [], 0
        while at < len(text):
            pieces.append(text[at : at + rng.randint(1, 4)])
            at += len(pieces[-1])
        out, hit = said(pieces, *targets)
        expected = naive(text, targets)
        assert "".join(out) == text[:expected], (case, pieces, targets)
        assert (hit is None) == (expected is None)
        hits += hit is not None
    assert CASES / 10 < hits < CASES
