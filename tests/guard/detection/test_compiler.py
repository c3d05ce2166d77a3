import json
from collections.abc import Callable

import numpy as np
import pytest

from guard.detection import Compiler
from guard.detection.evidence import probability
from guard.errors import TargetRefused
from guard.targets import TargetSpec

from .conftest import AUTHOR


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"name": "the"}, "name"),
        ({"name": "Jane Doe", "aliases": ["JD Doe", "what is"]}, "aliases[1]"),
        ({"name": "Jane Doe", "examples": ["Who is Jane Doe?", "what is the"]}, "examples[1]"),
    ],
)
def test_what_ordinary_prompts_hold_is_refused_with_the_measured_rate(
    compile_: Callable, spec: dict, field: str
) -> None:
    with pytest.raises(TargetRefused) as refused:
        compile_(**spec)

    details = refused.value.details
    assert details["field"] == field
    assert 0.01 < details["rate"] <= 1.0
    assert details["limit"] == 0.01
    assert field in refused.value.message


def test_force_registers_it_all_the_same(compile_: Callable, detectors_of: Callable) -> None:
    target = compile_(name="the", force=True)
    assert detectors_of("what about the cat", target) == {"target": {"lexical"}}


@pytest.mark.parametrize("name", ["Marenko", "Sullivan", "Zhao"])
def test_a_surname_alone_may_be_registered(compile_: Callable, name: str) -> None:
    assert compile_(name=name).forms[0].score == 1.0


def test_a_target_with_a_name_only_has_the_lexical_detector_only(
    compile_: Callable, detectors_of: Callable
) -> None:
    target = compile_(name="Ilva Marenko")

    assert set(target.calibration["detectors"]) == {"lexical"}
    assert target.evidence_threshold is None
    assert len(target.vectors) == 0
    assert detectors_of("Who is Ilva Marenko?", target) == {"target": {"lexical"}}
    assert detectors_of("Who is Petra Novak?", target) == {}


def test_the_same_target_compiles_to_the_same_thresholds(compiler: Compiler) -> None:
    spec = TargetSpec.model_validate(AUTHOR)
    first, second = (compiler.compile("author", version, spec) for version in (1, 2))

    assert first.semantic_threshold == second.semantic_threshold
    assert first.evidence_threshold == second.evidence_threshold
    assert first.terms == second.terms
    assert np.array_equal(first.vectors, second.vectors)
    assert first.texts == second.texts


def test_the_calibration_is_a_report_that_can_be_sent(compile_: Callable) -> None:
    report = json.loads(json.dumps(compile_(**AUTHOR).calibration))

    assert report["encoder"]["name"] == "hashing"
    assert report["background"]["n"] >= 2_000
    assert report["seconds"] > 0
    plain = {**AUTHOR, "examples": [*AUTHOR["examples"], "Who writes about lighthouses by the ferry?"]}
    for of, detector in ((AUTHOR, "classifier"), (plain, "classifier"), (plain, "semantic")):
        measured = json.loads(json.dumps(compile_(**of).calibration))["detectors"][detector]
        assert measured["negatives"]["background"]["n"] >= 2_000
        assert measured["negatives"]["background"]["false_positive_rate"] <= 0.01
        assert measured["negatives"]["near"]["n"] >= 30
        assert measured["recall"]["n"] >= (1 if detector == "semantic" else len(AUTHOR["examples"]))
        assert sum(measured["histogram"]["own"]) == measured["recall"]["n"]


def test_a_fixed_score_overrides_the_calibrated_threshold(compile_: Callable) -> None:
    target = compile_(**{**AUTHOR, "threshold": {"score": 0.8}})

    assert target.semantic_threshold == target.lexical_threshold == 0.8
    assert target.evidence_threshold is not None
    assert probability(np.array(target.evidence_threshold)) == pytest.approx(0.8)


def test_a_lower_rate_never_lowers_the_threshold(compile_: Callable) -> None:
    strict = compile_(**{**AUTHOR, "threshold": {"fpr": 0.001}})
    loose = compile_(**{**AUTHOR, "threshold": {"fpr": 0.2}})
    assert strict.semantic_threshold >= loose.semantic_threshold


def test_what_must_stay_answerable_is_no_match_although_it_names_the_target(
    compile_: Callable, detectors_of: Callable
) -> None:
    target = compile_(
        name="Ilva Marenko",
        examples=[
            "What is the home address of Ilva Marenko?",
            "What is the phone number of Ilva Marenko?",
            "What is the bank account of Ilva Marenko?",
        ],
        retain=["Which books did Ilva Marenko write?", "Which prizes did the books of Ilva Marenko win?"],
    )

    assert "lexical" in detectors_of("What is the email address of Ilva Marenko?", target)["target"]
    assert "lexical" in detectors_of("Is Ilva Marenko ill?", target)["target"]
    assert detectors_of("Which books did Ilva Marenko write first?", target) == {}


def test_of_very_many_other_targets_a_sample_is_looked_at(
    compiler: Compiler, compile_: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [
        compile_(
            f"other-{name.lower()}", name=f"{name} Novak", examples=[f"Which ferry does {name} Novak steer?"]
        )
        for name in ("Petra", "Jan", "Eva", "Mila", "Otto", "Ruth")
    ]
    spec = TargetSpec.model_validate(AUTHOR)

    def looked_at() -> int:
        made = compiler.compile("author", 1, spec, others)
        return made.calibration["detectors"]["classifier"]["negatives"]["others"]["n"]

    everybody = looked_at()
    monkeypatch.setattr("guard.detection.compiler._OTHERS", 2)
    assert looked_at() == looked_at() == everybody // 3
