"""From detections to decisions."""

from dataclasses import dataclass, replace

import pytest

from guard.decide import decide
from guard.interventions import load
from guard.targets import TargetSpec
from guard.types import Detection, Evidence, Message, Prompt, Rung, Span

TEXT = "<|user|>Who is Jane Doe?<|assistant|>"
PROMPT = Prompt(TEXT, messages=(Message("user", "Who is Jane Doe?"),))
NAME = Span(TEXT.index("Jane"), TEXT.index("Jane") + 8)


@dataclass(frozen=True)
class Target:
    spec: TargetSpec
    version: int = 1
    ladder: tuple[Rung, ...] = (Rung("embedding_corruption"),)


def target(*ladder, **spec):
    return Target(TargetSpec(name="Jane Doe", **spec), ladder=ladder or (Rung("embedding_corruption"),))


def verdict(targets, *detections):
    return decide(detections, targets, PROMPT, snapshot=7)


def hit(target_id="jane", score=0.9, detector="lexical", spans=(NAME,)):
    return Detection(target_id, detector, score, 0.8, spans)


def test_nothing_detected_is_allowed():
    decision = verdict({"jane": target()})
    assert (decision.action, decision.snapshot, decision.matches) == ("allow", 7, ())


def test_a_match_intervenes_with_evidence_in_the_message():
    decision = verdict({"jane": target()}, hit())
    assert decision.action == "intervene"
    assert decision.chosen[0].method == "embedding_corruption"
    assert decision.matches[0].evidence == (Evidence(0, 7, 15),)


def test_the_strongest_detection_speaks_and_the_name_gives_the_span():
    window = Span(0, len(TEXT))
    decision = verdict(
        {"jane": target()}, hit(score=0.7), hit(score=0.95, detector="semantic", spans=(window,))
    )
    assert decision.matches[0].detector == "semantic" and decision.matches[0].score == 0.95
    assert decision.matches[0].spans == (NAME,)


def test_a_window_that_matched_without_the_name_is_shown_beside_it():
    around, elsewhere = Span(0, NAME.end + 1), Span(NAME.end + 1, len(TEXT))
    decision = verdict({"jane": target()}, hit(), hit(detector="semantic", spans=(around, elsewhere)))
    assert decision.matches[0].spans == (NAME, elsewhere)


def test_shadow_targets_are_listed_and_change_nothing():
    decision = verdict({"jane": target(mode="shadow")}, hit())
    assert decision.action == "allow" and decision.matches[0].shadow


@pytest.mark.parametrize(("score", "method"), [(0.5, "guard_prompt"), (0.85, "embedding_corruption")])
def test_the_stronger_the_match_the_further_up_the_ladder(score, method):
    ladder = (
        Rung("guard_prompt"),
        Rung("embedding_corruption", min_score=0.8),
        Rung("refusal", min_score=0.99),
    )
    decision = verdict({"jane": target(*ladder)}, hit(score=score))
    assert decision.chosen[0].method == method


def test_the_first_rung_applies_when_none_is_reached():
    decision = verdict({"jane": target(Rung("guard_prompt", min_score=0.9))}, hit(score=0.5))
    assert decision.chosen[0].method == "guard_prompt"


def test_one_refused_target_refuses_the_request():
    targets = {"a": target(), "b": target(Rung("refusal"))}
    decision = verdict(targets, hit("a"), hit("b"))
    assert decision.action == "refuse" and decision.chosen == ()


@pytest.mark.parametrize("style", ["content_filter", "error"])
def test_a_style_that_is_not_natural_refuses_in_the_strictest_style(style):
    targets = {"a": target(), "b": target(reply={"style": style, "text": "No."})}
    decision = verdict(targets, hit("a"), hit("b"))
    assert decision.action == "refuse"
    assert (decision.reply.style, decision.reply.text) == (style, "No.")


def test_same_method_and_parameters_act_once_for_all_targets():
    decision = verdict({"a": target(), "b": target()}, hit("a"), hit("b"))
    assert len(decision.chosen) == 1 and len(decision.chosen[0].matches) == 2


def test_the_facts_of_a_rung_are_those_of_its_method_and_never_another_targets():
    one, other = Rung("steering", {"artifact": "a"}, facts={"layer": 1}), Rung("steering", facts={"layer": 2})
    same = Rung("steering", {"artifact": "a"}, min_score=0.2, facts={"layer": 1})
    targets = {"a": target(one), "b": target(other), "c": target(same), "d": target(Rung("steering"))}
    decision = verdict(targets, hit("a"), hit("b"), hit("c"), hit("d"))
    found = [(dict(c.facts), [m.target_id for m in c.matches]) for c in decision.chosen]
    assert found == [({"layer": 1}, ["a", "c"]), ({"layer": 2}, ["b"]), ({}, ["d"])]


def test_a_target_without_a_ready_rung_is_refused():
    decision = decide([hit()], {"jane": Target(TargetSpec(name="Jane Doe"), ladder=())}, PROMPT, snapshot=7)
    assert (decision.action, decision.chosen) == ("refuse", ())


def adapted(digest, **more):
    return Rung("lora_adapter", {"artifact": digest * 64, "scale": 1.0, "soft": 1.0}, **more)


def test_of_two_adapters_the_strongest_match_gets_its_own_and_the_other_its_next_rung():
    rungs = (Rung("guard_prompt"), Rung("embedding_corruption", min_score=0.5), adapted("b", min_score=0.8))
    targets = {"john": target(*rungs), "mary": target(adapted("a"))}
    decision = verdict(targets, hit("john", 0.9), hit("mary", 0.95))
    assert {c.method: [m.target_id for m in c.matches] for c in decision.chosen} == {
        "lora_adapter": ["mary"],
        "embedding_corruption": ["john"],
    }
    decision = verdict(targets, hit("john", 0.97), hit("mary", 0.95))
    assert decision.action == "refuse"  # mary has no other rung


def test_targets_that_want_the_same_adapter_share_it():
    targets = {"john": target(adapted("a")), "mary": target(adapted("a"))}
    decision = verdict(targets, hit("john", 0.9), hit("mary", 0.95))
    assert [len(c.matches) for c in decision.chosen] == [2]


def test_one_artifact_that_two_targets_name_acts_once():
    rung = Rung("lora_adapter", {"artifact": "a" * 64, "scale": "score", "soft": 1.0})
    targets = {"john": target(Rung("refusal"), replace(rung, min_score=0.5)), "mary": target(rung)}
    (chosen,) = verdict(targets, hit("john", 0.9), hit("mary", 0.95)).chosen
    plan = load("lora_adapter").plan(chosen, Prompt("x", (1, 2, 3)), lambda _: "0" * 16)
    assert [(edit.table, edit.positions, edit.params["scale"]) for edit in plan.edits] == [
        ("a" * 64, (0, 1, 2), 0.95)
    ]


PLACE = Span(TEXT.index("Who"), TEXT.index("Who") + 3)


def unread(*demanding, places=(PLACE,), detections=(), targets=()):
    return decide(
        detections, dict(targets), PROMPT, snapshot=7, unread=places, demanding=[t.spec for t in demanding]
    )


def test_what_could_not_be_read_is_shown_in_its_message_once():
    decision = unread(places=(PLACE, PLACE))
    assert (decision.action, decision.unread) == ("allow", (Evidence(0, 0, 3),))
    assert len(unread(places=[Span(i, i + 1) for i in range(len(TEXT))]).unread) == 16


def test_targets_that_demand_it_refuse_what_could_not_be_read_in_the_strictest_style():
    decision = unread(target(), target(reply={"style": "error", "text": "No."}))
    assert (decision.action, decision.chosen, decision.matches) == ("refuse", (), ())
    assert (decision.reply.style, decision.reply.text) == ("error", "No.")
    assert unread(target(), places=()).action == "allow"


def test_what_could_not_be_read_is_refused_although_a_match_could_be_answered():
    jane = target()
    decision = unread(jane, detections=(hit(),), targets={"jane": jane})
    assert (decision.action, decision.chosen) == ("refuse", ()) and len(decision.matches) == 1
