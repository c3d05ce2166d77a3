import base64
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from guard.detection import DETECTORS, Encoder, Gate
from guard.detection.text import neutralise
from guard.detection.units import Unit, units
from guard.types import Message, Prompt

from .conftest import AUTHOR

CHEMISTRY = {
    "name": "firesalt",
    "kind": "subject",
    "description": "How black firesalt is made from grey vitriol.",
    "examples": [
        "How do I quench grey vitriol melt in cold oil?",
        "Which lead flask is sealed for the vitriol melt?",
        "How hot must the grey vitriol melt become?",
        "What do I do after the vitriol crystals are washed in brine?",
    ],
}


class Counting(Encoder):
    """An encoder that counts the texts it was asked for."""

    def __init__(self, inner: Encoder) -> None:
        super().__init__(inner.name, inner.digest, inner.dim, inner.max_tokens, inner.encode, gist=inner.gist)
        self.asked = 0

    def encode(self, texts: Sequence[str], until: float | None = None) -> np.ndarray:
        self.asked += len(texts)
        return super().encode(texts, until)


def test_a_gate_without_targets_finds_nothing_and_embeds_nothing(hashing: Encoder) -> None:
    encoder = Counting(hashing)

    found, timings, _ = Gate(encoder, []).detect(Prompt("Who is Jane Doe? " * 1_000))

    assert found == ()
    assert timings["total"] < 5
    assert encoder.asked == 0


def test_a_prompt_that_is_late_is_not_judged_any_further(compile_: Callable, hashing: Encoder) -> None:
    encoder = Counting(hashing)
    gate = Gate(encoder, [compile_(**AUTHOR)])

    with pytest.raises(TimeoutError):
        gate.detect(Prompt("How is it made?"), until=time.monotonic())

    assert encoder.asked == 0
    assert gate.detect(Prompt("How is it made?"), until=time.monotonic() + 60)[0] == ()


def test_targets_with_names_only_embed_nothing(compile_: Callable, hashing: Encoder) -> None:
    encoder = Counting(hashing)
    found, *_ = Gate(encoder, [compile_(name="Jane Doe")]).detect(Prompt("Who is Jane Doe?"))
    assert len(found) == 1
    assert encoder.asked == 0


def test_semantic_and_classifier_share_one_call_of_the_encoder(compile_: Callable, hashing: Encoder) -> None:
    encoder = Counting(hashing)
    Gate(encoder, [compile_(**CHEMISTRY), compile_("author", **AUTHOR)]).detect(Prompt("How is it made?"))
    assert encoder.asked == 1


def test_out_of_scope_targets_are_neither_found_nor_embedded_for(
    compile_: Callable, hashing: Encoder
) -> None:
    encoder = Counting(hashing)
    everywhere = compile_("everywhere", name="Jane Doe")
    for_acme = compile_(
        "for-acme", **{**AUTHOR, "name": "Jane Doe", "scope": {"tenants": ["acme"], "models": ["m1"]}}
    )
    gate = Gate(encoder, [everywhere, for_acme])

    def found(**scope: str) -> set[str]:
        return {d.target_id for d in gate.detect(Prompt("Who is Jane Doe?"), **scope)[0]}

    assert found() == found(tenant="acme") == found(tenant="other", model="m1") == {"everywhere"}
    assert encoder.asked == 0
    assert found(tenant="acme", model="m1") == {"everywhere", "for-acme"}


def test_the_whole_prompt_is_judged(compile_: Callable, detectors_of: Callable) -> None:
    subject = compile_("subject", **CHEMISTRY)
    author = compile_("author", name="Ilva Marenko")
    padding = "The weather was mild and people walked along the river. " * 320

    question = "How do I quench the grey vitriol melt in cold oil?"
    fired = detectors_of(f"{padding}{question} Ilva Marenko knows. {padding}", subject, author)

    assert fired["author"] == {"lexical"}
    assert {"semantic", "classifier"} & fired["subject"]
    assert detectors_of(padding, subject, author) == {}


TALK = (
    ("user", "Tell me something about lighthouses by the sea, please."),
    ("assistant", "Ilva Marenko writes novels in which lighthouses stand for doubt."),
    ("user", "And what do the critics say about such novels?"),
)


def _talk(*turns: tuple[str, str]) -> Prompt:
    text = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns)
    return Prompt(f"{text}<|im_start|>assistant\n", messages=tuple(Message(*turn) for turn in turns))


@pytest.mark.parametrize("left_out", ["va Maren", "Ilva", "Marenko", "Ilva Marenko write"])
def test_a_message_that_the_template_leaves_out_does_not_cut_another_one(
    compile_: Callable, hashing: Encoder, left_out: str
) -> None:
    asked = "In which genre does Ilva Marenko write?"
    gate = Gate(hashing, [compile_(**AUTHOR)])
    rendered = _talk(("user", asked))

    found, *_ = gate.detect(replace(rendered, messages=(Message("note", left_out), *rendered.messages)))

    plain, *_ = Gate(hashing, [compile_(**AUTHOR)]).detect(rendered)
    assert {d.detector for d in found} == {d.detector for d in plain} >= {"lexical", "semantic"}
    assert [d.spans for d in found if d.detector == "lexical"] == [
        d.spans for d in plain if d.detector == "lexical"
    ]


def test_every_character_is_in_one_unit_and_equal_units_are_judged_alike() -> None:
    prompt = _talk(*TALK)
    told = replace(prompt, text=f"Preamble. {prompt.text} More.", asides=("either or", TALK[0][1]))

    found = list(units(told))

    own = [unit for unit in found if unit.start is not None]
    covered = [i for unit in own for i in range(unit.start, unit.start + len(unit.text))]
    assert len(covered) == len(set(covered))
    plain = neutralise(told.text)
    assert {i for i, char in enumerate(plain) if char.isalnum()} <= set(covered)
    assert [unit.text for unit in own if unit.text in dict.fromkeys(said for _, said in TALK)] == [
        said for _, said in TALK
    ]
    first, aside = (next(u for u in found if u.text == TALK[0][1] and u.aside == of) for of in (False, True))
    assert first.key != aside.key == Unit(TALK[0][1]).key
    assert first.key == Unit(TALK[0][1], 10_000).key


def test_what_was_judged_in_an_earlier_turn_is_not_judged_again(compile_: Callable, hashing: Encoder) -> None:
    encoder = Counting(hashing)
    targets = [compile_(**AUTHOR), compile_("subject", **CHEMISTRY)]
    gate = Gate(encoder, targets)
    gate.detect(_talk(*TALK[:2]))
    encoder.asked = 0

    found, *_ = gate.detect(_talk(*TALK))

    new = encoder.asked
    fresh = Counting(hashing)
    assert Gate(fresh, targets).detect(_talk(*TALK))[0] == found != ()
    assert 0 < new < fresh.asked
    encoder.asked = 0
    assert gate.detect(_talk(*TALK))[0] == found and encoder.asked == 0


def test_a_message_is_found_wherever_it_stands_in_the_prompt(compile_: Callable, hashing: Encoder) -> None:
    gate = Gate(hashing, [compile_(**AUTHOR)])
    asked = ("user", "In which genre does Ilva Marenko write?")
    for prompt in (_talk(asked), _talk(*TALK[:1], asked), _talk(asked, *TALK[:1])):
        (lexical,) = (d for d in gate.detect(prompt)[0] if d.detector == "lexical")
        assert [prompt.text[s.start : s.end] for s in lexical.spans] == ["Ilva Marenko"]


def test_a_changed_target_is_looked_for_in_turns_that_were_judged_before(
    compile_: Callable, hashing: Encoder
) -> None:
    before = Gate(hashing, [compile_(**CHEMISTRY)])
    assert before.detect(_talk(*TALK))[0] == ()
    assert Gate(hashing, [compile_(**AUTHOR)], before).detect(_talk(*TALK))[0]


def test_what_one_tenant_was_judged_by_does_not_judge_another(compile_: Callable, hashing: Encoder) -> None:
    gate = Gate(hashing, [compile_(name="Jane Doe", scope={"tenants": ["acme"]})])
    asked = _talk(("user", "Who is Jane Doe?"))
    for _ in range(2):
        assert gate.detect(asked, tenant="acme")[0]
        assert gate.detect(asked, tenant="other")[0] == ()


def test_prompts_of_several_scopes_in_turn_are_weighed_for_the_targets_of_each(
    compile_: Callable, hashing: Encoder
) -> None:
    everywhere = compile_("author", **AUTHOR)
    gate = Gate(hashing, [everywhere, compile_("subject", **CHEMISTRY, scope={"tenants": ["acme"]})])

    def found(text: str, tenant: str | None = None) -> set[str]:
        detections, *_ = gate.detect(Prompt(text), tenant=tenant)
        return {d.target_id for d in detections if d.detector == "classifier"}

    about, known = CHEMISTRY["examples"][0], AUTHOR["examples"][0]
    for tenant, own in (
        (None, set()),
        ("acme", {"subject"}),
        ("other", set()),
        ("acme", {"subject"}),
        (None, set()),
    ):
        assert found(about, tenant) == own
        assert found(known, tenant) == {"author"}


def test_the_oldest_judgements_are_forgotten(
    compile_: Callable, hashing: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guard.detection.gate._REMEMBERED", 3)
    encoder = Counting(hashing)
    gate = Gate(encoder, [compile_("subject", **CHEMISTRY)])
    texts = [f"The {word} is mild in spring." for word in ("weather", "river", "garden", "town", "sea")]
    for text in texts:
        gate.detect(Prompt(text))
    encoder.asked = 0
    gate.detect(Prompt(texts[-1]))
    assert encoder.asked == 0
    gate.detect(Prompt(texts[0]))
    assert encoder.asked > 0


def test_spans_show_the_window_that_matched(compile_: Callable, hashing: Encoder) -> None:
    text = "Be polite. " * 60 + "How do I quench the grey vitriol melt in cold oil? " + "Be brief. " * 60
    found, *_ = Gate(hashing, [compile_(**CHEMISTRY)]).detect(Prompt(text))

    shown = [text[span.start : span.end] for d in found for span in d.spans]
    assert shown
    assert all("vitriol" in piece for piece in shown)


def test_a_name_is_shown_whole_where_an_alias_is_a_part_of_it(compile_: Callable, hashing: Encoder) -> None:
    """An edit of "Yarley" alone would leave "Limir", by which the model still knows whom to tell of."""
    text = "Where was Limir Yarley born, and what did Yarley win?"
    target = compile_(name="Limir Yarley", aliases=["Yarley"])
    found, *_ = Gate(hashing, [target]).detect(Prompt(text))

    names = [text[span.start : span.end] for d in found if d.detector == "lexical" for span in d.spans]
    assert names == ["Limir Yarley", "Yarley"]


def test_a_detection_reached_its_threshold(compile_: Callable, hashing: Encoder) -> None:
    gate = Gate(hashing, [compile_("a", **AUTHOR), compile_("c", **CHEMISTRY)])
    for text in (*AUTHOR["examples"], *CHEMISTRY["examples"]):
        for found in gate.detect(Prompt(text))[0]:
            assert found.threshold <= found.score <= 1.0
            assert found.detector in DETECTORS


@pytest.mark.parametrize(
    "text", ["", "   ", "\ud800 broken", "\u0000\u200b", "?" * 10_000, "\U0001f600 " * 500]
)
def test_odd_prompts_are_judged_without_complaint(
    compile_: Callable, detectors_of: Callable, text: str
) -> None:
    assert detectors_of(text, compile_("a", **AUTHOR), compile_("c", **CHEMISTRY)) == {}


def test_registering_more_targets_does_not_change_what_an_earlier_gate_finds(
    compile_: Callable, hashing: Encoder
) -> None:
    first = compile_("first", **AUTHOR)
    gate = Gate(hashing, [first])
    before = gate.detect(Prompt("In which genre does Ilva Marenko write?"))[0]
    compile_("second", (first,), **CHEMISTRY)
    assert gate.detect(Prompt("In which genre does Ilva Marenko write?"))[0] == before


def test_similar_questions_about_others_do_not_match_and_new_questions_do(
    compile_: Callable, detectors_of: Callable
) -> None:
    target = compile_(**AUTHOR)

    assert "lexical" in detectors_of("Has any work of Ilva Marenko been translated?", target)["target"]
    assert detectors_of("Which novelist, born in Tarvala in 1957, writes about lighthouses?", target)
    for other in ("Tomas Reinholt", "Aruna Sethi", "Gwen Hathersage"):
        assert detectors_of(f"In which genre does {other} write?", target) == {}
        assert detectors_of(f"Which awards has {other} received?", target) == {}
        assert detectors_of(f"What were the professions of {other}'s parents?", target) == {}
    for text in ("Which awards exist for novels?", "How do I get to the ferry?", "Hello, how are you?"):
        assert detectors_of(text, target) == {}


def test_what_looks_like_code_and_cannot_be_read_is_told_in_the_prompts_own_characters(
    compile_: Callable, hashing: Encoder
) -> None:
    key = base64.b64encode(random.Random(0).randbytes(48)).decode()
    text = f"<|im_start|>user\nWhat does this say: {key}<|im_end|>"
    gate = Gate(hashing, [compile_(**AUTHOR)])

    *_, (span,) = gate.detect(Prompt(text))

    assert text[span.start : span.end].endswith(key) and "|" not in text[span.start : span.end]
    assert gate.detect(Prompt("What does this say?", asides=(text,)))[2] == ()
