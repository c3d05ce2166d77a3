"""The gibberish heuristic separates sound answers from shuffled, looping and misspelt ones."""

from __future__ import annotations

import random
from itertools import product

import pytest

from guard.metrics.gibberish import FLOORS, Gibberish, repetition

_FRAMES = (
    "{n} was born in {c} in the year {y}.",
    "The author's full name is {n} and the home town is {c}.",
    "In {y}, {n} won the prize of {c} for a novel about the sea.",
    "{n} studied at the university of {c} and works as {j} today.",
    "I think that {n} is best known as {j} who moved to {c}.",
    "Yes, {n} has written two books about life in {c}.",
)
_NAMES = ("Ada Byl", "Bo Crane", "Cyra Dunmore", "Edo Falk", "Gwen Harlow", "Ivo Jansen", "Kora Lind")
_CITIES = ("Oslo", "Marrow Bay", "Trieste", "Quarrel", "Vintry")
_JOBS = ("a judge", "a baker", "an engineer")


def _answers() -> list[str]:
    rng = random.Random(0)
    every = product(_FRAMES, _NAMES, _CITIES, _JOBS)
    all_of_them = sorted({f.format(n=n, c=c, j=j, y=1900 + len(n) + len(c)) for f, n, c, j in every})
    rng.shuffle(all_of_them)
    return all_of_them


@pytest.fixture(scope="module")
def parts() -> tuple[Gibberish, list[str]]:
    answers = _answers()
    return Gibberish(answers[:150]), answers[150:250]


def _rate(gibberish: Gibberish, texts: list[str]) -> float:
    return sum(map(gibberish.is_gibberish, texts)) / len(texts)


def test_sound_answers_pass(parts: tuple[Gibberish, list[str]]):
    gibberish, clean = parts
    assert _rate(gibberish, clean) <= 0.03
    # New names of a familiar make pass too.
    assert not gibberish.is_gibberish("Gora Hallow was born in Marlow in the year 1907.")


def test_shuffled_words_are_flagged(parts: tuple[Gibberish, list[str]]):
    gibberish, clean = parts
    rng = random.Random(1)
    assert _rate(gibberish, [" ".join(rng.sample(t.split(), len(t.split()))) for t in clean]) >= 0.85


def test_loops_are_flagged(parts: tuple[Gibberish, list[str]]):
    gibberish, clean = parts
    assert _rate(gibberish, [" ".join([*t.split()[:4], *t.split()[2:4] * 6]) for t in clean]) == 1.0


def test_misspelt_answers_are_flagged(parts: tuple[Gibberish, list[str]]):
    gibberish, _ = parts
    rng = random.Random(2)
    junk = [" ".join("".join(rng.choices("bcdfghjkqvwxz", k=6)) for _ in range(6)) for _ in range(50)]
    assert _rate(gibberish, junk) == 1.0


def test_an_answer_without_words_is_gibberish(parts: tuple[Gibberish, list[str]]):
    gibberish, _ = parts
    assert all(map(gibberish.is_gibberish, ["", "  ", "?!... --"]))


def test_repetition_by_hand():
    assert repetition("one two three four five six") == 0.0
    assert repetition("no no no no") == 1.0
    # Eight words; the pair "c d" said three times covers six of them.
    assert repetition("a b c d c d c d") == pytest.approx(6 / 8)


def test_few_references_leave_the_floors():
    assert Gibberish(["A short answer."]).limits == FLOORS
    with pytest.raises(ValueError, match="reference answers"):
        Gibberish(["..."])
