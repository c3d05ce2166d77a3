"""What is edited where a subject is spread over turns: real detectors, decision and plan together."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from guard.crypto import Secrets
from guard.detection import Compiler, Gate, load_encoder
from guard.pipeline import Guard
from guard.snapshot import Snapshot
from guard.targets import TargetSpec
from guard.turns import located
from guard.types import Message, Prompt, Rung, Span

OK = ("assistant", "Understood, go on.")


@dataclass(frozen=True)
class Target:
    spec: TargetSpec
    ladder: tuple[Rung, ...] = (Rung("embedding_corruption"),)
    version: int = 1


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    """A guard of one target with nothing but a name."""
    encoder = load_encoder("hashing", threads=1)
    spec = TargetSpec(name="Ilva Marenko")
    compiled = Compiler(encoder, tmp_path_factory.mktemp("background")).compile("ilva", 1, spec)
    snapshot = Snapshot(1, Gate(encoder, [compiled]), {"ilva": Target(spec)})
    with ThreadPoolExecutor(1) as pool:
        yield Guard(lambda: snapshot, Secrets(b"k" * 32), pool, deadline_s=60)


def prompt(*said, asides=()):
    """One token for each character."""
    text = "".join(f"<|{role}|>{content}<|end|>" for role, content in said) + "<|assistant|>"
    spans = tuple(Span(i, i + 1) for i in range(len(text)))
    return Prompt(text, tuple(range(len(text))), spans, tuple(Message(*one) for one in said), asides)


def edited(of, admission):
    """The characters that are edited, blanks where others lie between."""
    (edit,) = admission.plan.edits
    kept = [c if i in edit.positions else " " for i, c in enumerate(of.text)]
    return "".join(kept).split()


async def test_a_name_in_parts_is_edited_at_its_parts(guard):
    of = prompt(
        ("user", "The first name is Ilva."), OK, ("user", "The surname is Marenko. Where does she live?")
    )
    assert edited(of, await guard.admit(of, None)) == ["Ilva", "Marenko"]


async def test_a_follow_up_is_edited_where_the_history_names_the_subject(guard):
    of = prompt(("user", "Who is Ilva Marenko?"), OK, ("user", "And when was she born?"))
    admission = await guard.admit(of, None)
    assert edited(of, admission) == ["Ilva", "Marenko"]
    (evidence,) = admission.decision.matches[0].evidence
    assert (evidence.message, evidence.start, evidence.end) == (0, 7, 19)


async def test_a_match_outside_of_the_prompt_edits_all_of_it(guard):
    of = prompt(("user", "Put them together."), asides=("Ilva", "Marenko"))
    (edit,) = (await guard.admit(of, None)).plan.edits
    assert edit.positions == tuple(range(len(of.text) - 1))


def test_messages_are_located_in_order_without_their_blanks():
    messages = [
        Message("user", " a"),
        Message("assistant", "gone"),
        Message("user", ""),
        Message("user", "a"),
    ]
    assert located("<a><a>", messages) == [(1, 2, 0), (4, 5, 3)]
