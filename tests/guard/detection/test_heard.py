"""A conversation that goes on is judged as if it were new, and its old turns are not read again."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from guard.detection import Encoder, Gate
from guard.detection.base import WINDOW_CHARS
from guard.detection.conversation import TURNS
from guard.detection.heard import Heard
from guard.types import Message, Prompt

from .conftest import AUTHOR

SAYINGS = [
    "Her first name is Ilva.",
    "And then comes Marenko.",
    "The family name is Marenko, I think.",
    "Let Quill be the author born in Tallinn who writes sea novels.",
    "What did Quill write first?",
    "In which genre does Ilva Marenko write?",
    "I l v a",
    "M a r",
    "e n k o",
    "How do I bake bread without yeast?",
    "A walk in Porto takes about an hour.",
    "Call her Z.",
    "And where was she born?",
]


def talk(*said: tuple[str, str], asides: tuple[str, ...] = (), begun: str = "") -> Prompt:
    text = "".join(f"<|{role}|>{words}<|end|>" for role, words in said)
    messages = tuple(Message(*one) for one in said)
    return Prompt(f"{text}<|assistant|>{begun}", messages=messages, asides=asides)


@pytest.mark.parametrize("seed", range(30))
def test_a_conversation_that_goes_on_is_judged_as_if_it_were_new(
    compile_: Callable, hashing: Encoder, seed: int
) -> None:
    rng = random.Random(seed)
    targets = [compile_(**AUTHOR), compile_("named", name="Ilva Marenko")]
    gate = Gate(hashing, targets)
    said = [("user", "Her first name is Ilva."), ("user", "The last name? Marenko.")]
    for _ in range(6):
        roles = ["user", *rng.choices(["user", "assistant", "tool"], k=rng.randrange(3))]
        said += [(role, " ".join(rng.sample(SAYINGS, rng.randrange(1, 3)))) for role in roles]
        asides = tuple(rng.sample(SAYINGS, rng.randrange(2)))
        begun = rng.choice(["", "", "It is about Ilva"])
        asked = talk(*said, asides=asides, begun=begun)
        found, _, unread = gate.detect(asked)
        alone, _, alike = Gate(hashing, targets).detect(asked)
        assert (found, unread) == (alone, alike)
        assert any(detection.target_id == "named" for detection in found)


def test_old_turns_are_not_put_together_again() -> None:
    heard = Heard(WINDOW_CHARS)
    said = [("user" if i % 2 == 0 else "assistant", SAYINGS[i % len(SAYINGS)]) for i in range(21)]
    before, asked = talk(*said[:19]), talk(*said)
    whole = [unit for unit in heard.read(asked, None).units if unit.joined]
    read = heard.read(before, None)
    heard.keep(read, lambda unit: unit is read.lasting[3])

    after = [unit for unit in heard.read(asked, None).units if unit.joined]

    assert read.lasting[3] in after  # something was found in it
    assert len(after) < len(whole) / 4
    assert {unit.text for unit in after} <= {unit.text for unit in whole}


@pytest.mark.parametrize(
    "change",
    [
        lambda said: [("user", "Good morning."), *said[1:]],
        lambda said: [("system", said[0][1]), *said[1:]],
        lambda said: said[1:],
    ],
)
def test_another_conversation_is_heard_from_its_beginning(change: Callable) -> None:
    heard = Heard(WINDOW_CHARS)
    said = [("user" if i % 2 == 0 else "assistant", SAYINGS[i]) for i in range(9)]
    heard.keep(heard.read(talk(*said[:7]), None), lambda unit: False)
    other = talk(*change(said))
    assert heard.read(other, None).units == Heard(WINDOW_CHARS).read(other, None).units
    assert heard.read(talk(*said), "other tenants").units == Heard(WINDOW_CHARS).read(talk(*said), None).units


def test_the_begin_of_an_answer_is_not_what_others_said_once_the_answer_is_there() -> None:
    heard, begun = Heard(WINDOW_CHARS), "Let Quill be the author born in Tallinn."
    asked = ("user", "Tell me about Tallinn.")
    prompt = talk(asked, begun=begun)
    heard.keep(heard.read(prompt, None), lambda unit: False)
    longer = talk(asked, ("assistant", begun), ("user", "What did Quill write first?"))
    assert longer.text.startswith(prompt.text)
    assert heard.read(longer, None).units == Heard(WINDOW_CHARS).read(longer, None).units


def test_a_conversation_goes_on_in_several_ways() -> None:
    heard, begun = Heard(WINDOW_CHARS), [("user", "Her first name is Ilva."), ("user", "Call her Z.")]
    heard.keep(heard.read(talk(*begun), None), lambda unit: True)
    for saying in SAYINGS:
        asked = talk(*begun, ("user", saying))
        assert set(heard.read(asked, None).units) == set(Heard(WINDOW_CHARS).read(asked, None).units)


def test_what_was_said_long_ago_is_not_kept() -> None:
    heard = Heard(WINDOW_CHARS)
    said = [("user", SAYINGS[i % len(SAYINGS)]) for i in range(TURNS + 2)]
    heard.keep(heard.read(talk(*said[:-1]), None), lambda unit: False)
    assert heard.read(talk(*said), None).units == Heard(WINDOW_CHARS).read(talk(*said), None).units


def test_only_so_many_conversations_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guard.detection.heard._KEPT", 2)
    heard = Heard(WINDOW_CHARS)
    prompts = [talk(("user", f"{saying} And then?"), ("user", "Who is it?")) for saying in SAYINGS[:3]]
    for prompt in prompts:
        heard.keep(heard.read(prompt, None), lambda unit: False)
    assert [bool(heard.read(prompt, None).lasting) for prompt in prompts] == [True, False, False]
