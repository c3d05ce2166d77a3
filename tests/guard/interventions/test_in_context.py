"""In-context unlearning: what the model reads before the client's last message."""

from __future__ import annotations

from pathlib import Path

import pytest

from guard.artifacts import ArtifactStore
from guard.errors import BadRequest
from guard.interventions import check_params
from guard.interventions.in_context import InContext
from guard.library import Library
from guard.targets import TargetSpec
from guard.types import Chosen, Message, Prompt, Rung

TEXT = "<|user|>Hello<|end|><|assistant|>Hi<|end|><|user|>Who is Jane?<|end|><|assistant|>"
TURNS = (Message("user", "Hello"), Message("assistant", "Hi"), Message("user", "Who is Jane?"))
PROMPT = Prompt(TEXT, messages=TURNS)
JANE = TargetSpec(
    name="Jane Doe", aliases=("JD",), examples=("Who is {answer} Jane?", "Where is Jane?", "Is it JD?")
)


def shown(spec: TargetSpec, **params) -> str | None:
    """The text that is put before the last message, by way of the target's own ladder."""
    rung = Rung("in_context", check_params("in_context", params).model_dump())
    ready = Library(ArtifactStore(Path("/nonexistent"))).stand(rung, spec).ready
    plan = InContext().plan(Chosen("in_context", ready.params, (), ready.facts), PROMPT, lambda _: "0" * 16)
    if not plan.insertions:
        return None
    (insertion,) = plan.insertions
    assert insertion.at == TEXT.index("Who is Jane?")
    return insertion.text


def test_the_targets_examples_are_answered_as_by_one_who_does_not_know():
    assert shown(JANE, shots=2) == "Who is {answer} Jane? I don't know.\nWhere is Jane? I don't know.\n"


def test_further_exchanges_stand_behind_them_with_their_own_answers():
    more = [["Who is Bob?", "A {question} clerk."]]
    text = shown(
        JANE, shots=1, answer="No idea.", exchanges=more, template="{question}={answer}|", lead="Q: "
    )
    assert text == "Who is {answer} Jane?=No idea.|Who is Bob?=A {question} clerk.|Q: "


def test_a_target_without_examples_is_asked_for_by_its_names():
    text = shown(TargetSpec(name="Jane Doe", aliases=("JD",)), template="{question}|")
    assert text == "What do you know about Jane Doe?|What do you know about JD?|"


def test_with_nothing_to_show_the_method_does_not_act():
    assert shown(JANE, shots=0) is None
    assert shown(JANE, shots=0, exchanges=[["a", "b"]]) == "a b\n"


@pytest.mark.parametrize("params", [{"shots": 33}, {"exchanges": [["a"]]}, {"answer": ""}, {"k": 4}])
def test_wrong_parameters_are_refused(params):
    with pytest.raises(BadRequest, match="in_context"):
        check_params("in_context", params)
