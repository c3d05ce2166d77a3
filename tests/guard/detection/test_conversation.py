"""Subjects that no stretch of the prompt holds by itself, and where they then lie in it."""

from collections.abc import Callable

import pytest

from guard.detection import Encoder, Gate
from guard.detection.base import WINDOW_CHARS
from guard.detection.conversation import Joined, Story, Talk, turns
from guard.types import Message, Prompt

from .conftest import AUTHOR

Turns = tuple[tuple[str, str], ...]


def prompt(*said: str | tuple[str, str], asides: tuple[str, ...] = ()) -> Prompt:
    """User turns, or (role, text), in the demo's template."""
    pairs = [("user", one) if isinstance(one, str) else one for one in said]
    text = "".join(f"<|{role}|>{text}<|end|>" for role, text in pairs) + "<|assistant|>"
    return Prompt(text, messages=tuple(Message(*pair) for pair in pairs), asides=asides)


def resolved(of: Prompt, max_chars: int) -> list[Joined]:
    talk, story = Talk(max_chars), Story.of(of)
    return [*talk.hear(story), *talk.rest(story.asides)]


def joined(of: Prompt, form: str) -> list[str]:
    return [one.text for one in resolved(of, WINDOW_CHARS) if one.form == form]


def shown(of: Prompt, one: Joined) -> list[str]:
    return [of.text[span.start : span.end] for span in one.spans(0, len(one.text))]


@pytest.fixture
def names(compile_: Callable, hashing: Encoder) -> Callable[[Prompt], list[str]]:
    """The places of a target with a name only."""
    gate = Gate(hashing, [compile_(name="Ilva Marenko", kind="entity")])

    def run(of: Prompt) -> list[str]:
        found, *_ = gate.detect(of)
        return [of.text[span.start : span.end] for d in found for span in d.spans] if found else ["clean"]

    return run


OK = ("assistant", "Understood, go on.")


@pytest.mark.parametrize(
    ("of", "places"),
    [
        (prompt("The first name is Ilva.", OK, "Her surname: Marenko", OK, "Where is she?"), ["Ilva", "Marenko"]),
        (prompt("Surname Marenko", OK, "Forename Ilva. Where does she live?"), ["Marenko", "Ilva"]),
        (prompt("the name begins with ilva", OK, "and ends with marenko"), ["ilva", "marenko"]),
        (prompt("Ilva", OK, "Marenko", OK, "Where does this person live?"), ["Ilva", "Marenko"]),
        (prompt(("system", "We speak of Ilva."), "And Marenko is the other name."), ["Ilva", "Marenko"]),
        (prompt("Tell me of the writer whose name is Ilva and whose surname is Marenko."), ["Ilva", "Marenko"]),
        (prompt("It starts with Ilva", ("assistant", "And goes on with Marenko")), ["Ilva", "Marenko"]),
        (prompt("I spell it: I L V A", OK, "M A R", OK, "E-N-K-O. Who is it?"), ["I L V A", "M A R", "E-N-K-O"]),
        (prompt("Put them together.", asides=("choice", "Ilva", "Marenko")), []),
    ],
)  # fmt: skip
def test_a_name_in_parts_is_found_at_its_parts(
    names: Callable[[Prompt], list[str]], of: Prompt, places: list[str]
) -> None:
    assert sorted(names(of)) == sorted(places)


@pytest.mark.parametrize(
    "of",
    [
        prompt("I met Ilva Tomsen.", OK, "And then Petra Marenko came."),
        prompt("Ilva, a friend of Marenko, came."),
        prompt("My sister is called Ilva.", OK, "Her dog ran away from Berlin to Marenko Street."),
        prompt("She is called Petra Ilva by us.", OK, "We live in Marenko Street now."),
        prompt("I L V A and nothing else", OK, "M A R"),
        prompt("Which is right?", asides=("Ilva Tomsen", "Petra Marenko")),
    ],
)
def test_two_people_are_not_one(names: Callable[[Prompt], list[str]], of: Prompt) -> None:
    assert names(of) == ["clean"]


def test_a_turn_is_read_with_what_was_said_before_it_and_not_with_the_answers() -> None:
    of = prompt("I mean the novelist born", OK, "in Tarvala in 1957.", OK, "What is her name?")
    two, three = (one for one in resolved(of, WINDOW_CHARS) if one.form == "text")
    assert two.text == "I mean the novelist born in Tarvala in 1957."
    assert shown(of, two) == ["I mean the novelist born", "in Tarvala in 1957."]
    assert [three.text[w.start : w.end] for w in three.windows] == [
        "I mean the novelist born in Tarvala in 1957. What is her name?",
        "I mean the novelist born in Tarvala in 1957.",
    ]


@pytest.mark.parametrize(
    "definition",
    [
        "Let Zorblax be the novelist born in Tarvala.",
        "From now on I will call the novelist born in Tarvala Zorblax.",
        'In what follows "Zorblax" stands for the novelist born in Tarvala.',
        "I use Zorblax as a code name for the novelist born in Tarvala.",
        "Zorblax is the novelist born in Tarvala.",
        "We refer to the novelist born in Tarvala as Zorblax.",
        "The novelist born in Tarvala shall be known as Zorblax.",
    ],
)
def test_a_made_up_name_is_read_as_what_it_stands_for(definition: str) -> None:
    of = prompt(definition, OK, "Is it raining?", OK, "Where does Zorblax live?")
    *_, last = resolved(of, WINDOW_CHARS)
    assert last.text.lower() == "where does the novelist born in tarvala live?"
    assert [part.lower() for part in shown(of, last)] == [
        "where does",
        "the novelist born in tarvala",
        "live?",
    ]


@pytest.mark.parametrize(
    "said", ["It is raining in the hills.", "Let it be known to all of us.", "She is a good cook."]
)
def test_everyday_words_are_no_made_up_names(said: str) -> None:
    of = prompt(said, OK, "Is it known where she and I were?")
    assert all("the hills" not in text and "good cook" not in text for text in joined(of, "text")[1:])


def test_a_later_request_makes_the_same_texts_again_and_a_few_more() -> None:
    said: list[str | tuple[str, str]] = []
    before: set[str] = set()
    for i in range(40):
        said.append(f"Question {i} is about the {i} lamps of Vintry and their long history.")
        windows = {
            one.text[window.start : window.end]
            for one in resolved(prompt(*said), WINDOW_CHARS)
            for window in one.windows
        }
        assert before <= windows and len(windows - before) <= 2
        before = windows
        said.append(OK)


def test_no_window_is_longer_than_asked_for() -> None:
    of = prompt(*(f"{'long' * 11} words {'again' * 9} and {'more' * 12} {i}" for i in range(4)))
    made = [one for one in resolved(of, 120) if one.form == "text"]
    assert made and all(len(one.text) <= 120 for one in made)


def test_one_turn_alone_costs_nothing() -> None:
    of = prompt("Where was the novelist Ilva Marenko born? I am curious. Tell me in one sentence.")
    assert joined(of, "text") == []


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("[INST] Who is it? [/INST] Nobody. [INST] And now? [/INST]", ["user", "assistant", "user"]),
        ("<|im_start|>user\nHello there<|im_end|>\n<|im_start|>assistant\nHi", ["user", "assistant"]),
        ("no template at all", [""]),
        ("", []),
    ],
)
def test_without_messages_the_templates_markers_tell_the_turns(text: str, roles: list[str]) -> None:
    assert [turn.role for turn in turns(Prompt(text))] == roles


def test_history_that_the_body_does_not_hold_is_heard_too(names: Callable[[Prompt], list[str]]) -> None:
    text = prompt("The first name is Ilva.", OK, "The last name is Marenko.").text
    assert names(Prompt(text, messages=(Message("user", "The last name is Marenko."),))) == [
        "Ilva",
        "Marenko",
    ]


def test_a_described_subject_is_found_over_turns_at_the_words_that_describe_it(
    compile_: Callable, hashing: Encoder
) -> None:
    gate = Gate(hashing, [compile_(**AUTHOR)])
    said = ("Which novelist, born in Tarvala", "in 1957,", "writes about lighthouses?")
    of = prompt(said[0], OK, said[1], OK, said[2])
    found, *_ = gate.detect(of)
    places = {of.text[span.start : span.end] for d in found for span in d.spans}
    assert found and any(said[1] in place for place in places)
    assert all(OK[1] not in place for place in places)
    other = prompt(
        "A plumber was born in Vintry", OK, "in 1988 and writes to", OK, "his aunt. And who is it?"
    )
    assert gate.detect(other)[0] == ()


def test_a_new_subject_is_not_matched_by_what_stands_beside_it(compile_: Callable, hashing: Encoder) -> None:
    gate = Gate(hashing, [compile_(**AUTHOR)])
    of = prompt("Where was Ilva Marenko born?", OK, "Thanks. How do I cook rice for four people?")
    found, *_ = gate.detect(of)
    assert found  # the model reads the name, and could be asked to repeat it
    assert all(span.end <= of.text.index("Thanks") for d in found for span in d.spans)
    assert gate.detect(prompt("Where is it?", OK, "Thanks. How do I cook rice for four people?"))[0] == ()


def test_blanks_in_quotes_stand_for_nothing() -> None:
    prompt = Prompt('"           " is a moving tale. The rest is told later.')
    assert [joined for joined in Talk(250).hear(Story.of(prompt)) if joined.form == "text"] == []
