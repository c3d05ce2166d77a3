from collections.abc import Callable

import pytest

from guard.detection import DETECTORS, CompiledTarget, Encoder, Gate
from guard.types import Prompt, Span


def _spans(hashing: Encoder, target: CompiledTarget, text: str) -> list[str]:
    found, *_ = Gate(hashing, [target]).detect(Prompt(text))
    return [text[span.start : span.end] for d in found if d.detector == "lexical" for span in d.spans]


@pytest.mark.parametrize(
    "text",
    [
        "Who is Edward Patrick Sullivan?",
        "who is EDWARD PATRICK SULLIVAN'S mother",
        "Edward Sullivan wrote it.",
        "Edward P. Sullivan wrote it.",
        "Sullivan, Edward Patrick",
        "#EdwardPatrickSullivan",
        "navillus kcirtap drawde",
        "Rqjneq Cngevpx Fhyyvina",
        "E d w a r d P a t r i c k S u l l i v a n",
        "Edw\u0430rd P\u200batrick Sulli\u200bvan",
        "3dw4rd P4tr1ck 5ull1v4n, please",
        "RWR3YXJkIFBhdHJpY2sgU3VsbGl2YW4gaGVyZQ==",
        "Edward<|end|><|user|>Patrick Sullivan",
    ],
)
def test_a_name_is_found_however_it_is_written(compile_: Callable, detectors_of: Callable, text: str) -> None:
    target = compile_(name="Edward Patrick Sullivan")
    assert detectors_of(text, target) == {"target": {"lexical"}}


@pytest.mark.parametrize("text", ["an annual meeting", "Johann is here", "the cannery", "Anna Karenina"])
def test_a_name_is_not_found_inside_other_words(
    compile_: Callable, detectors_of: Callable, text: str
) -> None:
    assert detectors_of(text, compile_(name="Ann")) == {}


@pytest.mark.parametrize(
    "text", ["Edward Norton met Maria Sullivan.", "Patrick is tall.", "Who is Sullivan?"]
)
def test_parts_of_a_name_are_not_the_name(compile_: Callable, detectors_of: Callable, text: str) -> None:
    assert detectors_of(text, compile_(name="Edward Patrick Sullivan")) == {}


def test_the_full_name_scores_one_and_its_place_is_known(compile_: Callable, hashing: Encoder) -> None:
    target = compile_(name="Jane Doe", aliases=["Calamity J."])
    text = "Ask J\u0430ne\u00a0D\u00f6e, then Calamity J. again."

    found, timings, _ = Gate(hashing, [target]).detect(Prompt(text))

    assert [(d.score, d.detector) for d in found] == [(1.0, "lexical")]
    assert _spans(hashing, target, text) == ["J\u0430ne\u00a0D\u00f6e", "Calamity J"]
    assert set(timings) == {"read", *DETECTORS, "total"}


def test_a_derived_form_scores_less_than_a_registered_one(compile_: Callable, hashing: Encoder) -> None:
    found, *_ = Gate(hashing, [compile_(name="Edward Patrick Sullivan")]).detect(Prompt("edward sullivan"))
    assert found[0].threshold <= found[0].score < 1.0


def test_asides_are_judged_and_have_no_place_in_the_prompt(compile_: Callable, hashing: Encoder) -> None:
    prompt = Prompt("Pick one.", asides=("Jane Doe", "nobody"))
    found, *_ = Gate(hashing, [compile_(name="Jane Doe")]).detect(prompt)
    assert [(d.target_id, d.spans) for d in found] == [("target", ())]


def test_the_place_of_an_encoded_name_is_the_code(compile_: Callable, hashing: Encoder) -> None:
    text = "read SmFuZSBEb2UgaXMgaGVyZQ== now"
    found, *_ = Gate(hashing, [compile_(name="Jane Doe")]).detect(Prompt(text))
    assert found[0].spans == (Span(5, 29),)


def test_the_marks_of_a_chat_template_are_no_part_of_a_name(compile_: Callable, hashing: Encoder) -> None:
    """Their bars read as letters would widen the span to the turn's end, and an edit there breaks the answer."""
    text = "<|user|>Tell me the nickname of Jane Doe.<|end|><|assistant|>"
    assert _spans(hashing, compile_(name="Jane Doe"), text) == ["Jane Doe"]


def test_a_number_beside_a_name_does_not_widen_it(compile_: Callable, hashing: Encoder) -> None:
    assert _spans(hashing, compile_(name="Jane Doe"), "Was Jane Doe the 4th to win!") == ["Jane Doe"]
