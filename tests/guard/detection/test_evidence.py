from collections.abc import Callable

import numpy as np
import pytest

from guard.detection.background import background
from guard.detection.evidence import NEAR, named, nats, probability, read, terms, weigh
from guard.targets import TargetSpec

from .conftest import AUTHOR


def told(text: str, *others: object, near: float = 0.0, **spec: object) -> float:
    of = terms(TargetSpec.model_validate({**AUTHOR, **spec}), others)  # type: ignore[arg-type]
    return float(weigh(of, [read(text)], np.array([near]))[0])


def test_rare_words_of_the_target_speak_for_it_and_what_everybody_writes_does_not() -> None:
    assert told("was Tarvala nice") > 3.0
    assert told("what is the book about") == 0.0


def test_the_words_of_one_name_are_one_fact() -> None:
    assert told("is the salt ledger long") == pytest.approx(told("is the ledger long"), abs=0.01)
    both = told("is the salt ledger set in tarvala")
    assert both == pytest.approx(told("is the salt ledger long") + told("was Tarvala nice"), abs=0.01)


def test_a_town_and_its_country_are_one_fact() -> None:
    spec = {"answers": ("She grew up in Ostrava Lane, Quorvia.",)}
    assert told("is Quorvia large", **spec) > 3.0
    assert told("is ostrava lane in quorvia", **spec) == pytest.approx(
        told("is quorvia large", **spec), abs=0.01
    )


def test_ordinary_words_say_little_however_many_there_are() -> None:
    description = (
        "She paints lighthouses with granite pigments, harvested moss, birch tar, oyster lime and charcoal."
    )
    few = told("granite pigments", description=description)
    many = told("harvested moss birch tar oyster lime charcoal granite pigments", description=description)
    assert 0.0 < few < many < few + 2.0


def test_somebody_elses_name_speaks_against_the_target() -> None:
    alone = told("Where in Tarvala was she born?")
    assert told("Where in Tarvala was Bosko Trand born?") == pytest.approx(alone - 2 * np.log(10), abs=0.01)
    assert told("Where in Tarvala was Ilva Marenko born?") > alone
    assert told("When in Monday or May was Tarvala?") == pytest.approx(told("was Tarvala?"), abs=0.01)


def test_the_first_word_of_a_sentence_is_no_name_for_its_capital() -> None:
    assert named("However, she met Bosko Trand in 1957. Quietly.") == {"bosko", "trand", "1957"}
    assert named("Ask whether Trand writes.") == {"trand"}


def test_what_many_targets_share_tells_none_of_them(compile_: Callable) -> None:
    others = [
        compile_(f"other-{i}", name=f"Bosko {'abcdefghij'[i]}rand", examples=[f"Was {i} seen in Tarvala?"])
        for i in range(10)
    ]
    assert told("was Tarvala nice", *others) == 0.0 < told("was Tarvala nice")


def test_what_many_targets_come_to_share_tells_none_of_them(
    compile_: Callable, detectors_of: Callable
) -> None:
    target = compile_("first", **{**AUTHOR, "examples": ["Was Vintrel or Tarvala her home?"]})
    others = [
        compile_(f"later-{i}", name=f"Bosko {'abcdefghij'[i]}rand", examples=["Is Vintrel near Tarvala?"])
        for i in range(10)
    ]
    asked = "Was Vintrel or Tarvala her home town?"
    assert "classifier" in detectors_of(asked, target)["first"]
    assert "classifier" not in detectors_of(asked, target, *others).get("first", set())


def test_probabilities_and_nats_are_the_same_scale() -> None:
    for shown in (0.01, 0.5, 0.9):
        assert float(probability(np.array(nats(shown)))) == pytest.approx(shown)
    assert nats(0.5) == pytest.approx(np.log(1_000))


def test_nearness_counts_in_full_only_for_an_equal_text() -> None:
    assert told("what is it", near=1.0) - told("what is it") == NEAR


def test_a_question_that_says_nothing_of_the_target_is_not_matched_about_somebody_else(
    compile_: Callable, detectors_of: Callable
) -> None:
    target = compile_("author", name="Ilva Marenko", examples=["Which prize did the ferry poet decline?"])
    assert "semantic" in detectors_of("Which prize did the ferry poet decline?", target)["author"]
    assert detectors_of("Which prize did the ferry poet Bosko Trand decline?", target) == {}


def test_hardly_any_background_prompt_holds_evidence_for_a_target() -> None:
    of = terms(TargetSpec.model_validate(AUTHOR), [])
    scores = weigh(of, map(read, background()), np.zeros(len(background())))
    assert (scores > np.log(1_000)).mean() < 0.001


def test_capitals_tell_names_only_where_not_everything_is_in_them() -> None:
    assert named("What does Tomas Reinholt write?") == {"tomas", "reinholt"}
    assert named("WHAT DOES TOMAS REINHOLT WRITE IN 1985?") == {"1985"}
    assert "nasa" in named("What does the NASA do?")
