"""Which windows the encoder is asked for: those that could match, and no others."""

import random
from collections.abc import Callable

import pytest

from guard.detection import Encoder, Gate, Reading
from guard.detection.classifier import Classifier
from guard.detection.semantic import Semantic
from guard.types import Prompt

from .conftest import AUTHOR
from .test_gate import CHEMISTRY, Counting

ORDINARY = "How long do I boil an egg, and which of these recipes needs fewer eggs? " * 20
COMMON = {"name": "Tomas Reinholt", "examples": ["What is your favourite food?", "Do you like music?"]}


def _every_window(detector: object, reading: Reading, *rest: object) -> list[int]:
    return list(range(len(reading.windows)))


@pytest.mark.parametrize("of", [{}, AUTHOR])
def test_clean_text_is_not_embedded_where_no_target_is_met_by_meaning_alone(
    compile_: Callable, hashing: Encoder, of: dict
) -> None:
    encoder = Counting(hashing)
    assert Gate(encoder, [compile_(**{"name": "Ilva Marenko", **of})]).detect(Prompt(ORDINARY))[0] == ()
    assert encoder.asked == 0


def test_text_is_embedded_where_some_target_is_met_by_meaning_alone(
    compile_: Callable, hashing: Encoder
) -> None:
    encoder = Counting(hashing)
    Gate(encoder, [compile_(**AUTHOR), compile_("subject", **CHEMISTRY)]).detect(Prompt(ORDINARY))
    assert encoder.asked > 0


def test_an_example_of_ordinary_words_is_found_however_it_is_written(
    compile_: Callable, detectors_of: Callable
) -> None:
    target = compile_(force=True, **COMMON)
    for text in (
        "What is your favourite food?",
        "what is YOUR favourite food",
        f"Hello! {COMMON['examples'][0]}",
    ):
        assert "semantic" in detectors_of(text, target)["target"]
    assert detectors_of("What is your favourite drink?", target) == {}


@pytest.mark.parametrize("seed", range(8))
def test_windows_that_are_left_out_could_not_have_matched(
    compile_: Callable, hashing: Encoder, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Texts of the targets' own words and of ordinary ones, in any order and mixture."""
    rng = random.Random(seed)
    targets = [compile_("a", **AUTHOR), compile_("b", force=True, **COMMON)]
    own = " ".join((AUTHOR["description"], *AUTHOR["examples"], *COMMON["examples"])).split()
    prompts = [
        Prompt(" ".join(rng.choice(own if rng.random() < share else ORDINARY.split()) for _ in range(60)))
        for share in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
        for _ in range(6)
    ]
    prompts += [
        Prompt(f"{ORDINARY[:200]} {text} {ORDINARY[:300]}") for target in targets for text in target.texts
    ]
    found = [_shown(Gate(hashing, targets), prompt) for prompt in prompts]

    for detector in (Classifier, Semantic):
        monkeypatch.setattr(detector, "_asked", _every_window)

    assert [_shown(Gate(hashing, targets), prompt) for prompt in prompts] == found
    assert {detector for one in found for _, detector, *_ in one} == {"lexical", "classifier", "semantic"}


def _shown(gate: Gate, prompt: Prompt) -> list[tuple]:
    """What is found; products of more rows at once round otherwise."""
    return [(d.target_id, d.detector, round(d.score, 4), d.spans) for d in gate.detect(prompt)[0]]
