import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from guard.detection import Compiler, Encoder
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


PEOPLE = (
    "Petra Dvorin",
    "Jan Kestle",
    "Eva Marrow",
    "Mila Tansky",
    "Otto Brell",
    "Ruth Oslem",
    "Ana Vire",
    "Leo Quist",
)


def asked_of(name: str) -> dict:
    return {
        "name": name,
        "examples": [
            f"In which genre does {name} write?",
            f"Which awards has {name} received?",
            f"Who taught {name} to write?",
            f"What is the first book of {name} about?",
        ],
    }


@pytest.fixture(scope="module")
def experienced(hashing: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    """A compiler that has calibrated a few targets."""
    made = Compiler(hashing, tmp_path_factory.mktemp("background"))
    made.prepare()
    for name in PEOPLE:
        made.compile(name, 1, TargetSpec.model_validate(asked_of(name)))
    return made


def test_a_pooled_target_finds_its_questions_and_nobody_else_s(
    experienced: Compiler, detectors_of: Callable
) -> None:
    spec = TargetSpec.model_validate(asked_of("Ilva Marenko"))
    target = experienced.compile("ilva", 1, spec, pooled=True)
    calibrated = experienced.compile("ilva", 1, spec)

    assert target.calibration["pooled"] is True and target.calibration["targets"] == len(PEOPLE)
    assert target.calibration["detectors"]["classifier"]["negatives"]["near"]["of"] > 30 * len(PEOPLE)
    assert "pooled" not in calibrated.calibration
    assert detectors_of("Which awards has Marenko received?", target) == detectors_of(
        "Which awards has Marenko received?", calibrated
    )
    assert "classifier" in detectors_of("Which awards has Marenko received?", target)["ilva"]
    assert detectors_of("Which awards has Sandor Pelle received?", target) == {}
    assert np.array_equal(target.vectors, calibrated.vectors) and target.texts == calibrated.texts
    typical = np.concatenate([one.ceilings for one in experienced._pool._measured[3, False]])
    assert target.ceilings.min() >= np.float32(np.median(typical)) > 0.3


def test_pooling_embeds_the_registered_texts_alone(
    experienced: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    encode = experienced._encoder.encode
    monkeypatch.setattr(experienced._encoder, "encode", lambda texts: (asked.extend(texts), encode(texts))[1])
    spec = TargetSpec.model_validate({**asked_of("Ilva Marenko"), "retain": ["Is Ilva Marenko well?"]})
    experienced.compile("ilva", 1, spec, pooled=True)
    assert sorted(asked) == sorted([*spec.examples, *spec.retain])


def test_without_enough_targets_like_it_a_target_is_calibrated_at_once(experienced: Compiler) -> None:
    spec = TargetSpec.model_validate({**asked_of("Ilva Marenko"), "description": AUTHOR["description"]})
    longer = spec.model_copy(update={"examples": spec.examples + tuple(AUTHOR["examples"])})
    assert "pooled" not in experienced.compile("ilva", 1, longer, pooled=True).calibration


def test_pooling_refuses_what_ordinary_prompts_hold_and_honours_a_fixed_score(experienced: Compiler) -> None:
    with pytest.raises(TargetRefused):
        experienced.compile("the", 1, TargetSpec.model_validate({**asked_of("the")}), pooled=True)
    fixed = TargetSpec.model_validate({**asked_of("Ilva Marenko"), "threshold": {"score": 0.8}})
    target = experienced.compile("ilva", 1, fixed, pooled=True)
    assert target.evidence_threshold is not None
    assert probability(np.array(target.evidence_threshold)) == pytest.approx(0.8)


def test_what_must_stay_answerable_stays_so_under_pooled_thresholds(
    experienced: Compiler, detectors_of: Callable
) -> None:
    spec = TargetSpec.model_validate(
        {
            "name": "Ilva Marenko",
            "examples": [
                "What is the home address of Ilva Marenko?",
                "What is the phone number of Ilva Marenko?",
                "What is the bank account of Ilva Marenko?",
                "What is the email address of Ilva Marenko?",
            ],
            "retain": [
                "Which books did Ilva Marenko write?",
                "Which prizes did the books of Ilva Marenko win?",
            ],
        }
    )
    target = experienced.compile("ilva", 1, spec, pooled=True)
    assert target.calibration["pooled"] is True
    assert "lexical" in detectors_of("What is the street address of Ilva Marenko?", target)["ilva"]
    assert detectors_of("Which books did Ilva Marenko write first?", target) == {}


def test_the_first_prompts_find_every_table_made(tmp_path: Path) -> None:
    """Of many first prompts at once each would make them all, and none would be judged in time."""
    script = f"""
import sys
from guard.detection import Compiler, Gate, load_encoder
from guard.targets import TargetSpec
from guard.types import Prompt

def made():
    return {{
        (name, key): value.cache_info().currsize
        for name, module in list(sys.modules.items()) if name.startswith("guard.detection")
        for key, value in vars(module).items()
        if hasattr(value, "cache_info") and value.cache_parameters()["maxsize"] is None
    }}

encoder = load_encoder("hashing", threads=1)
compiler = Compiler(encoder, __import__("pathlib").Path({str(tmp_path)!r}))
compiler.prepare()
before = made()
assert before["guard.detection.segments", "_known"] and before["guard.detection.ciphers", "limits"]
target = compiler.compile("a", 1, TargetSpec(name="Ilva Marenko", examples=["Where was Ilva Marenko born?"]))
gate = Gate(encoder, [target])
for text in ("Where was she born?", "whowroteitandwhen", "SWx2YSBNYXJlbmtv", "Jurer jnf Vyin Znerxb obea?", "!lleh",
             "s h e w r i t e s"):
    gate.detect(Prompt(text))
assert made() == before, set(made().items()) ^ set(before.items())
"""
    subprocess.run([sys.executable, "-c", script], check=True)
