"""Detect, decide, plan: what the engine client is told to do, and what happens when detection fails."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest

from guard.context import RequestContext
from guard.crypto import Secrets
from guard.detection.base import Form
from guard.detection.literals import Hit, Literals
from guard.detection.tools import Tool
from guard.errors import GuardUnavailable
from guard.pipeline import Guard
from guard.snapshot import Snapshot
from guard.targets import TargetSpec
from guard.types import (
    Admission,
    Decision,
    Detection,
    Evidence,
    Match,
    Message,
    Prompt,
    Reply,
    Rung,
    Scope,
    Sighting,
    Span,
    Watch,
)

TEXT = "Who is Jane Doe?"
PROMPT = Prompt(TEXT, tuple(range(4)), (Span(0, 3), Span(3, 6), Span(6, 11), Span(11, 16)))
HIT = Detection("jane", "lexical", 1.0, 0.5, (Span(7, 15),))


@dataclass(frozen=True)
class Target:
    spec: TargetSpec
    ladder: tuple[Rung, ...]
    version: int = 1
    compiled: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(spoken=None))


@dataclass
class Gate:
    detections: tuple[Detection, ...] = ()
    delay: float = 0.0
    error: Exception | None = None
    unread: tuple[Span, ...] = ()
    seen: list = field(default_factory=list)

    def detect(self, prompt, *, tenant=None, model=None, until=None):
        self.seen.append((tenant, model))
        time.sleep(self.delay)
        if self.error:
            raise self.error
        return self.detections, {"lexical": 0.1}, self.unread


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def guard(executor):
    def make(gate, method="refusal", **spec):
        targets = {"jane": Target(TargetSpec(name="Jane Doe", **spec), (Rung(method),))}
        snapshot = Snapshot(3, gate, targets)
        return Guard(lambda: snapshot, Secrets(b"k" * 32), executor, deadline_s=0.2)

    return make


async def test_a_clean_prompt_is_allowed_with_timings(guard):
    admission = await guard(Gate()).admit(PROMPT, None)
    assert not admission.matched and admission.decision.snapshot == 3
    assert set(admission.decision.timings_ms) == {"lexical", "total"}


async def test_a_refused_prompt_gets_the_targets_reply(guard):
    admission = await guard(Gate((HIT,)), reply={"text": "Who?"}).admit(PROMPT, None)
    assert admission.decision.action == "refuse" and admission.plan.reply.text == "Who?"


async def test_corruption_hits_the_tokens_of_the_name_with_a_seed_of_prompt_and_target(guard):
    admission = await guard(Gate((HIT,)), "embedding_corruption").admit(PROMPT, None)
    (edit,) = admission.plan.edits
    assert edit.positions == (2, 3) and len(edit.seed) == 16
    again = await guard(Gate((HIT,)), "embedding_corruption").admit(PROMPT, None)
    assert again.plan.edits == admission.plan.edits
    other = await guard(Gate((HIT,)), "embedding_corruption").admit(
        Prompt(TEXT, (9, 8, 7, 6), PROMPT.offsets), None
    )
    assert other.plan.edits[0].seed != edit.seed


async def test_a_guard_prompt_stands_before_the_question_and_names_what_was_named(guard):
    admission = await guard(Gate((HIT,)), "guard_prompt").admit(PROMPT, None)
    (insertion,) = admission.plan.insertions
    assert insertion.at == 0 and "Jane Doe" in insertion.text


async def test_tenant_and_model_reach_the_detectors(guard):
    gate = Gate()
    await guard(gate).admit(PROMPT, RequestContext("d", "/", 0.0, tenant="acme", model="m"))
    assert gate.seen == [("acme", "m")]


@pytest.mark.parametrize("gate", [Gate(error=RuntimeError("boom")), Gate(delay=1.0)])
async def test_failed_or_late_detection_fails_closed(guard, gate):
    with pytest.raises(GuardUnavailable):
        await guard(gate).admit(PROMPT, None)


async def test_what_answers_say_waits_for_its_judgement_and_no_prompt_waits_behind_it(guard):
    """Beside many streams on a small machine, judging what they say takes longer than a prompt may."""
    with ThreadPoolExecutor(1) as answers:
        judged = replace(guard(Gate()), answers=answers, hold_s=30.0)
        speaking = asyncio.create_task(judged._meant(judged.snapshot(), Gate(delay=1.0), [PROMPT], None))
        await asyncio.sleep(0.1)
        assert not (await judged.admit(PROMPT, None)).matched
        assert not speaking.done()
        assert await speaking == [()]
        impatient = replace(judged, hold_s=0.2)
        with pytest.raises(GuardUnavailable):
            await impatient._meant(judged.snapshot(), Gate(delay=1.0), [PROMPT], None)


@pytest.mark.parametrize(
    ("gate", "spec", "limit", "failure", "bypassed"),
    [
        (Gate((HIT,)), {}, 9, None, False),
        (Gate(error=RuntimeError("boom")), {}, 9, "detection", False),
        (Gate(delay=1.0), {}, 9, "timeout", False),
        (Gate(), {}, 0, "queue", False),
        (Gate(error=RuntimeError("boom")), {"policy": {"on_error": "open"}}, 9, None, True),
    ],
)
async def test_the_context_is_told_of_each_judgement(guard, gate, spec, limit, failure, bypassed):
    made, context = guard(gate, **spec), RequestContext("d", "/", 0.0)
    made.limit, made.clock = limit, lambda: 50.0
    with nullcontext() if failure is None else pytest.raises(GuardUnavailable):
        admission = await made.admit(PROMPT, context)
    (judged,) = context.judgements
    assert (judged.began_at, judged.failure, judged.bypassed) == (50.0, failure, bypassed)
    assert (judged.decision is None) == (failure is not None) and 0 <= judged.seconds < 0.9
    if failure is None:
        assert judged.decision == admission.decision


async def test_who_leaves_while_judged_was_not_judged(guard):
    context = RequestContext("d", "/", 0.0)
    task = asyncio.create_task(guard(Gate(delay=0.1)).admit(PROMPT, context))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    assert context.judgements == []


async def test_more_prompts_than_may_wait_are_refused_at_once(guard):
    made = guard(Gate(delay=0.05))
    made.limit = 2
    results = await asyncio.gather(*(made.admit(PROMPT, None) for _ in range(3)), return_exceptions=True)
    assert [type(r) for r in results] == [Admission, Admission, GuardUnavailable]
    assert isinstance(await made.admit(PROMPT, None), Admission)


async def test_the_deadline_reaches_the_detectors(guard):
    class Late(Gate):
        def detect(self, prompt, *, until, **scope):
            assert 0 < until - time.monotonic() <= 0.2
            return super().detect(prompt)

    assert not (await guard(Late()).admit(PROMPT, None)).matched


def beside(guard, gate, *specs, **options):
    """A guard with one target for each of `specs`."""
    made = guard(gate)
    targets = {str(i): Target(TargetSpec(name="Jane Doe", **spec), ()) for i, spec in enumerate(specs)}
    return replace(made, snapshot=lambda: Snapshot(3, gate, targets), **options)


HOLD = {"policy": {"oversize": "hold"}}


class Telling(Gate):
    """Tells how many seconds it was given."""

    def detect(self, prompt, *, until, **scope):
        self.seen.append(until - time.monotonic())
        return super().detect(prompt)


@pytest.mark.parametrize(
    ("prompt", "times"),
    [
        (Prompt(TEXT, tuple(range(2_000))), 1),
        (Prompt(TEXT, tuple(range(8_000))), 4),
        (Prompt(TEXT, tuple(range(2_000)), asides=("x" * 8_000,)), 2),
        (Prompt("x" * 24_000), 3),
    ],
)
async def test_a_long_prompt_gets_time_in_proportion(guard, prompt, times):
    gate = Telling()
    await beside(guard, gate, {}).admit(prompt, None)
    assert gate.seen[0] == pytest.approx(0.2 * times, abs=0.05)


@pytest.mark.parametrize(
    ("specs", "held"),
    [
        ([HOLD, HOLD], True),
        ([HOLD, {}], False),
        ([HOLD, {"mode": "shadow"}], True),
        ([HOLD, {"scope": {"tenants": ["acme"]}}], True),
        ([HOLD, {"scope": {"tenants": ["other"]}}], False),
        ([{**HOLD, "mode": "shadow"}], False),
    ],
)
async def test_a_late_verdict_is_waited_for_where_every_enforced_target_in_scope_holds(guard, specs, held):
    gate = Telling()
    context = RequestContext("d", "/", 0.0, tenant="other")
    await beside(guard, gate, *specs, hold_s=30).admit(PROMPT, context)
    assert gate.seen[0] == pytest.approx(30 if held else 0.2, abs=0.05)


async def test_a_held_prompt_is_answered_when_it_is_judged_and_refused_when_it_never_is(guard):
    assert not (await beside(guard, Gate(delay=0.4), HOLD).admit(PROMPT, None)).matched
    with pytest.raises(GuardUnavailable):
        await beside(guard, Gate(delay=1.0), HOLD, hold_s=0.3).admit(PROMPT, None)


async def test_targets_that_only_watch_refuse_nothing_when_detection_fails(guard):
    made = beside(guard, Gate(error=RuntimeError("boom")), {"mode": "shadow"})
    assert not (await made.admit(PROMPT, None)).matched


async def test_a_bypass_by_policy_is_counted_and_shown(guard):
    made = guard(Gate(error=RuntimeError("boom")), policy={"on_error": "open"})
    context = RequestContext("d", "/", 0.0)
    assert not (await made.admit(PROMPT, context)).matched
    assert made.bypasses == 1 and context.events == [{"event": "bypass", "reason": "RuntimeError"}]


UNREAD = (Span(4, 9),)


async def test_what_cannot_be_read_is_reported_and_passes_unless_the_guard_refuses_it(guard):
    made = guard(Gate(unread=UNREAD), reply={"text": "Who?"})
    admission = await made.admit(PROMPT, None)
    assert (admission.matched, admission.decision.unread) == (False, (Evidence(None, 4, 9),))
    strict = replace(made, refuse_unread=True)
    admission = await strict.admit(PROMPT, None)
    assert admission.decision.action == "refuse" and admission.plan.reply.text == "Who?"
    assert not (await replace(guard(Gate()), refuse_unread=True).admit(PROMPT, None)).matched


@pytest.mark.parametrize("spec", [{"mode": "shadow"}, {"scope": {"tenants": ["acme"]}}])
async def test_what_cannot_be_read_is_not_refused_where_no_target_is_enforced(guard, spec):
    strict = replace(guard(Gate(unread=UNREAD), **spec), refuse_unread=True)
    assert not (await strict.admit(PROMPT, RequestContext("d", "/", 0.0, tenant="other"))).matched


async def test_a_gate_that_fires_forgets_nothing_of_what_could_not_be_read(guard):
    made = watching(guard, gate=Gate(unread=UNREAD))
    before = await made.admit(PROMPT, None)
    after = made.sighted(PROMPT, before, (Sighting("ab" * 32, 3.0, (2,)),))
    assert before.decision.unread and after.decision.unread == before.decision.unread


WATCH = Watch("jane", "sae_clamp", 1, "ab" * 32)


def watching(guard, method="refusal", gate=None, **spec):
    """A guard whose target has a gate, and what it let through."""
    made = guard(gate or Gate(), method, **spec)
    snapshot = replace(made.snapshot(), watches=(WATCH,))
    return replace(made, snapshot=lambda: snapshot)


async def test_gates_watch_what_nothing_matched_and_only_whom_their_target_binds(guard):
    assert (await watching(guard).admit(PROMPT, None)).plan.watches == (WATCH,)
    scoped = watching(guard, scope={"tenants": ["acme"]})
    for tenant, watches in (("acme", (WATCH,)), ("other", ())):
        context = RequestContext("d", "/", 0.0, tenant=tenant)
        assert (await scoped.admit(PROMPT, context)).plan.watches == watches
    matched = replace(guard(Gate((HIT,))), snapshot=lambda: replace(scoped.snapshot(), gate=Gate((HIT,))))
    assert (await matched.admit(PROMPT, RequestContext("d", "/", 0.0, tenant="acme"))).plan.watches == ()


def may_begin(made, text="Who wrote that?", tokens=4, asides=(), **context):
    """Whether the engine may begin with a prompt before its verdict."""
    made.snapshot().gate.literals = Literals(
        [Compiled("jane", made.snapshot().targets["jane"].spec, Scope(), (Form("jane doe", 1.0),))]
    )
    prompt = Prompt(text, tuple(range(tokens)), asides=asides)
    return made.ahead(prompt, RequestContext("d", "/", 0.0, **context))


def test_the_engine_may_begin_with_prompts_up_to_a_length(guard):
    made = replace(guard(Gate()), ahead_tokens=8)
    assert may_begin(made, tokens=8) and not may_begin(made, tokens=9)
    assert not may_begin(guard(Gate()), tokens=1)


def test_what_says_a_name_is_not_begun(guard):
    made = replace(guard(Gate()), ahead_tokens=8)
    assert not may_begin(made, "Who is JANE  Doe?") and not may_begin(made, asides=("jane doe",))


def test_nothing_is_begun_that_a_gate_observes_or_that_nothing_judges(guard):
    made = replace(watching(guard, scope={"tenants": ["acme"]}), ahead_tokens=8)
    assert may_begin(made, tenant="other") and not may_begin(made, tenant="acme")
    unarmed = replace(made.snapshot(), targets={})
    assert not replace(made, snapshot=lambda: unarmed).ahead(PROMPT, None)


def test_without_a_snapshot_nothing_is_begun(guard):
    def stale():
        raise GuardUnavailable("The store is away.", reason="store")

    assert not replace(guard(Gate()), snapshot=stale, ahead_tokens=8).ahead(PROMPT, None)


async def test_a_gate_that_fires_matches_its_target_at_the_tokens_that_showed_it(guard):
    made = watching(guard, "embedding_corruption")
    before = await made.admit(PROMPT, None)
    after = made.sighted(PROMPT, before, (Sighting("ab" * 32, 3.0, (2, 3, 9)),))
    (match,) = after.decision.matches
    assert (match.target_id, match.detector, match.score, match.threshold) == (
        "jane",
        "activation",
        0.75,
        0.5,
    )
    assert after.plan.edits[0].positions == (2, 3) and after.plan.watches == ()


async def test_what_a_gate_saw_of_a_target_that_has_gone_says_nothing(guard):
    made = watching(guard)
    before = await made.admit(PROMPT, None)
    gone = replace(made, snapshot=lambda: Snapshot(4, Gate(), {}))
    after = gone.sighted(PROMPT, before, (Sighting("ab" * 32, 3.0, (2,)),))
    assert after.decision.action == "allow" and after.plan.watches == ()


TOOL = Tool("launch_rocket", "Starts a rocket.")
CONTEXT = RequestContext("d", "/", 0.0, tenant="acme")


def found(detector="lexical", start=0):
    return Detection("jane", detector, 0.9, 0.5, (Span(start, start + 4),))


async def test_a_tool_matches_a_target_of_kind_tool_by_name_or_meaning(guard):
    for detection in (found(), found("semantic", len(TOOL.prompt.text) - 5)):
        ((match,),) = await guard(Gate((detection,)), kind="tool").tools([TOOL], CONTEXT)
        assert match.target_id == "jane" and match.spans == ()


async def test_a_tool_is_not_matched_by_what_its_description_says_of_another(guard):
    at = TOOL.prompt.text.index("Starts")
    assert await guard(Gate((found(start=at),)), kind="tool").tools([TOOL, TOOL], CONTEXT) == [(), ()]


@pytest.mark.parametrize("spec", [{"kind": "subject"}, {"kind": "tool", "mode": "shadow"}])
async def test_other_targets_and_shadows_take_no_tool_out(guard, spec):
    assert await guard(Gate((found(),)), **spec).tools([TOOL], CONTEXT) == [()]


async def test_without_targets_of_kind_tool_no_tool_is_judged(guard):
    gate = Gate((found(),))
    await guard(gate).tools([TOOL], CONTEXT)
    assert gate.seen == []


async def test_tools_that_cannot_be_judged_fail_closed(guard):
    with pytest.raises(GuardUnavailable):
        await guard(Gate(error=RuntimeError("boom")), kind="tool").tools([TOOL], CONTEXT)


@dataclass(frozen=True)
class Compiled:
    target_id: str
    spec: TargetSpec
    scope: Scope
    forms: tuple[Form, ...]


async def speaking(guard, prompt=PROMPT, tenant=None, **spec):
    """What leaves of an answer that gives name and fact of Jane Doe away, and the hit."""
    made = guard(Gate(), answers=["was born in Vintry"], **spec)
    (target,) = made.snapshot().targets.values()
    of = Compiled("jane", target.spec, target.spec.scope.frozen(), (Form("jane doe", 1.0),))
    snapshot = made.snapshot()
    snapshot.gate.literals = Literals([of])
    context = RequestContext("d", "/", 0.0, tenant=tenant)
    speech = made.speech(prompt, context)
    return await speech.say("I think Jane Doe was born in Vintry.", ended=True), speech.hit


ANOTHER = Prompt("Who wrote that?")


async def test_a_name_that_the_prompt_does_not_say_is_not_said(guard):
    out, hit = await speaking(guard, ANOTHER)
    assert (out, hit.named) == ("I think ", True)


async def test_a_name_that_the_prompt_says_may_be_repeated_but_what_is_known_of_it_not(guard):
    out, hit = await speaking(guard)
    assert (out, hit.named) == ("I think Jane Doe ", False)


async def test_what_the_client_supplies_is_repeated_by_policy_only(guard):
    supplied = Prompt("It says that Jane Doe was born in Vintry. Where was she born?")
    assert (await speaking(guard, supplied))[1] is not None
    assert (await speaking(guard, supplied, policy={"context": "answer"}))[1] is None
    assert (await speaking(guard, PROMPT, policy={"context": "answer"}))[1] is not None


async def test_answers_are_not_cut_for_targets_that_only_watch_or_bind_others(guard):
    assert (await speaking(guard, ANOTHER, mode="shadow"))[1] is None
    assert (await speaking(guard, ANOTHER, scope={"tenants": ["acme"]}))[1] is None
    assert (await speaking(guard, ANOTHER, tenant="acme", scope={"tenants": ["acme"]}))[1] is not None


async def test_a_target_that_comes_while_an_answer_is_said_still_takes_effect(guard):
    made = guard(Gate())
    before, after = Snapshot(1, Gate(), {}), made.snapshot()
    spec = after.targets["jane"].spec
    after.gate.literals = Literals([Compiled("jane", spec, spec.scope.frozen(), (Form("jane doe", 1.0),))])
    current = [before]
    speech = replace(made, snapshot=lambda: current[0]).speech(ANOTHER, None)
    assert await speech.say("By Jane Doe, ") == "By Jane Doe, "
    current[0] = after
    assert await speech.say("yes, Jane Doe.", ended=True) == "yes, " and speech.hit is not None


async def test_the_reply_is_the_targets(guard):
    hit = Hit("jane", 0, 1, True)
    assert guard(Gate(), reply={"text": "Who?"}).reply_after(hit).text == "Who?"
    assert guard(Gate()).reply_after(replace(hit, target_id="gone")) == Reply()


ASKED = Prompt(
    "user: Who sings? model: I think that ",
    tuple(range(6)),
    (Span(0, 6), Span(6, 10), Span(10, 16), Span(16, 23), Span(23, 30), Span(30, 37)),
    messages=(Message("user", "Who sings?"),),
)
SAID = Hit("jane", 0, 1, True)


def test_an_answer_is_given_again_with_the_targets_methods_on_the_question(guard):
    made = guard(Gate(), "embedding_corruption", policy={"output": "regenerate", "max_tries": 3})
    assert made.after(SAID) == ("regenerate", 3)
    before = Admission(Decision("allow", 3))
    admission = made.again(ASKED, SAID, before)
    assert admission.plan.edits[0].positions == (1, 2)
    assert [m.detector for m in admission.decision.matches] == ["output"]


def test_an_answer_is_given_again_without_the_subject(guard):
    made = guard(Gate(), "embedding_corruption", policy={"output": "reprompt"})
    admission = made.again(ASKED, SAID, Admission(Decision("allow", 3)))
    (insertion,) = admission.plan.insertions
    assert insertion.at == 6 and "Jane Doe" in insertion.text and not admission.plan.edits
    assert admission.decision.action == "intervene"


def test_what_an_earlier_match_asked_for_still_acts(guard):
    made = guard(Gate(), "embedding_corruption", policy={"output": "regenerate"})
    bo = replace(made.snapshot().targets["jane"], spec=TargetSpec(name="Bo"), ladder=(Rung("guard_prompt"),))
    snapshot = Snapshot(3, Gate(), {**made.snapshot().targets, "bo": bo})
    before = Admission(Decision("intervene", 3, (Match("bo", 1, 0.9, 0.5, "lexical", (Span(0, 4),)),)))
    admission = replace(made, snapshot=lambda: snapshot).again(ASKED, SAID, before)
    assert {c.method for c in admission.decision.chosen} == {"embedding_corruption", "guard_prompt"}


@pytest.mark.parametrize("spec", [{"method": "refusal"}, {"reply": {"style": "content_filter"}}])
def test_a_target_that_refuses_ends_the_answer(guard, spec):
    made = guard(Gate(), **{"policy": {"output": "regenerate"}, **spec})
    assert made.again(ASKED, SAID, Admission(Decision("allow", 3))) is None
    assert made.again(ASKED, replace(SAID, target_id="gone"), Admission(Decision("allow", 3))) is None
    assert made.after(replace(SAID, target_id="gone")) == ("cut", 0) and guard(Gate()).after(SAID)[0] == "cut"


async def test_a_stored_answer_is_read_as_long_as_no_later_target_forbids_it(guard):
    made = guard(Gate((HIT,)), answers=["was born in Vintry"])
    (target,) = made.snapshot().targets.values()
    snapshot = made.snapshot()
    of = Compiled("jane", target.spec, target.spec.scope.frozen(), (Form("jane doe", 1.0),))
    snapshot.gate.literals = Literals([of])
    clean, same = (Admission(Decision("allow", v)) for v in (2, 3))
    early = RequestContext("d", "/", 0.0, messages=(Message("user", "Who sings?"),), admissions={(1,): clean})
    assert not await made.still(early, ())  # its messages match now
    snapshot.gate.detections = ()
    assert await made.still(early, ("A singer.",))
    assert not await made.still(early, ("A singer.", "Jane Doe sings."))
    assert not await made.still(early, ("She was born in Vintry.",))
    assert await made.still(replace(early, admissions={(1,): same}), ("Jane Doe sings.",))
    then = Admission(Decision("intervene", 2, (Match("jane", 1, 1.0, 0.5, "lexical"),)))
    snapshot.gate.detections = (HIT,)
    named = replace(early, messages=(Message("user", TEXT),), admissions={(1,): then})
    assert await made.still(named, ("I do not know Jane Doe.",))
    assert not await made.still(named, ("Jane Doe was born in Vintry.",))


@pytest.mark.parametrize(
    ("method", "logprobs", "told"),
    [
        ("embedding_corruption", "edited", True),
        ("embedding_corruption", "withhold", False),
        ("guard_prompt", "edited", True),
        ("refusal", "edited", False),
    ],
)
async def test_likelihoods_are_told_by_policy_where_they_are_the_edited_models(guard, method, logprobs, told):
    spec = {"policy": {"logprobs": logprobs}, "answers": ["was born in Vintry"]}
    admission = await guard(Gate((HIT,)), method, **spec).admit(PROMPT, None)
    assert admission.plan.likelihoods is told


async def test_likelihoods_from_before_the_logits_are_edited_are_not_told(guard):
    made = guard(Gate((HIT,)), "embedding_corruption", policy={"logprobs": "edited"})
    admission = await made.admit(PROMPT, None)
    (edit,) = admission.plan.edits
    for site, told in (("embedding", True), ("logits", False)):
        assert made._tells(admission.decision, (replace(edit, site=site),)) is told
