"""The pipeline of one request: detect, decide, plan. The engine client calls `admit` before it runs anything."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

from guard import interventions
from guard.context import Judgement, RequestContext
from guard.crypto import Secrets
from guard.decide import decide
from guard.detection.base import CompiledTarget
from guard.detection.literals import Found, Hit
from guard.detection.tools import Tool
from guard.errors import GuardUnavailable, LetheError, Reason
from guard.interventions.guard_prompt import last_user_start
from guard.meaning import Meaning
from guard.snapshot import Gate, Snapshot
from guard.speech import Extent, Speech
from guard.types import (
    Admission,
    Chosen,
    Decision,
    Detection,
    Edit,
    Insertion,
    Match,
    Plan,
    Prompt,
    Reply,
    Sighting,
    Span,
    Watch,
)

log = logging.getLogger("lethe.guard")

FAIR_TOKENS = 2_000
_CHARS_PER_TOKEN = 4
Detected = tuple[tuple[Detection, ...], dict[str, float], tuple[Span, ...]]
_LEAVE_OUT = "Answer without saying anything about {}, and without that name.\n"
NOTHING: Detected = ((), {}, ())
_REASONS = {TimeoutError: "timeout", OverflowError: "too many requests"}
_KINDS: dict[type[Exception], Reason] = {TimeoutError: "timeout", OverflowError: "queue"}


@dataclass
class Guard:
    """Judges prompts on the snapshot that is current when they arrive.

    `snapshot` returns the current one, `executor` keeps detection off the event loop. `deadline_s` bounds the
    judgement of a prompt of up to FAIR_TOKENS tokens, in proportion that of a longer one; where every target that binds
    a request holds it, the bound is `hold_s`. What answers say is judged by `answers`, so that no prompt waits behind
    it, and within `hold_s`: their text waits for its judgement anyway, and so does the model for whoever reads it.
    At most `limit` prompts are judged or wait at once; one more counts as failed detection. `refuse_unread` refuses
    prompts that hold what looks like code and could not be read, wherever a target is enforced. `extent` says how
    much of an answer is judged by its meaning at once. The engine may begin with prompts of up to `ahead_tokens` before
    their verdict.
    `bypasses` counts requests let through because detection failed and every target allows that.
    """

    snapshot: Callable[[], Snapshot]
    secrets: Secrets
    executor: Executor
    deadline_s: float
    hold_s: float = 60.0
    limit: int = 256
    refuse_unread: bool = False
    extent: Extent = field(default_factory=Extent)
    answers: Executor | None = None
    ahead_tokens: int = 0
    bypasses: int = 0
    clock: Callable[[], float] = time.time
    _judging: int = 0

    @property
    def judging(self) -> int:
        """Prompts that are judged now or wait for it."""
        return self._judging

    async def admit(self, prompt: Prompt, context: RequestContext | None) -> Admission:
        """The decision on `prompt` with the plan that carries it out; the context is told of the judgement.

        Raises:
            GuardUnavailable: the prompt could not be judged in time or at all, and a target forbids to answer.
        """
        began_at, started, events = self.clock(), time.perf_counter(), len(context.events) if context else 0
        admission: Admission | None = None
        failure: Reason | None = None
        try:
            admission = await self._admit(prompt, context)
            return admission
        except Exception as error:
            failure = getattr(error, "reason", "detection")
            raise
        finally:
            if context is not None and (admission or failure):
                bypassed = any(event["event"] == "bypass" for event in context.events[events:])
                decision = admission.decision if admission else None
                seconds = time.perf_counter() - started
                context.judgements.append(Judgement(began_at, seconds, decision, failure, bypassed))

    async def _admit(self, prompt: Prompt, context: RequestContext | None) -> Admission:
        snapshot = self.snapshot()
        started = time.perf_counter()
        detections, timings, unread = await self._detect(snapshot, prompt, context)
        demanding = unread and self.refuse_unread
        decision = decide(
            detections,
            snapshot.targets,
            prompt,
            snapshot=snapshot.version,
            timings_ms=timings,
            unread=unread,
            demanding=[t.spec for t in snapshot.binding(*_whose(context))] if demanding else (),
        )
        admission = self._plan(decision, prompt, _watches(snapshot, context))
        total = {**timings, "total": (time.perf_counter() - started) * 1000}
        return replace(admission, decision=replace(admission.decision, timings_ms=total))

    def ahead(self, prompt: Prompt, context: RequestContext | None) -> bool:
        """Whether the engine may begin with `prompt` before the verdict on it: not where that would cost whoever is
        matched too much, where it says what is going to match, or where a gate has to observe the run."""
        if len(prompt.token_ids) > self.ahead_tokens:
            return False
        try:
            snapshot = self.snapshot()
        except LetheError:  # which the verdict is going to say
            return False
        if not snapshot.armed or _watches(snapshot, context):
            return False
        return not any(snapshot.gate.literals.said_in(text) for text in (prompt.text, *prompt.asides))

    async def tools(self, tools: Sequence[Tool], context: RequestContext) -> list[tuple[Match, ...]]:
        """For each tool of a request the enforced targets of kind `tool` that it matches.

        Raises:
            GuardUnavailable: the tools could not be judged, and a target forbids to answer.
        """
        snapshot = self.snapshot()
        kinds = {target_id for target_id, target in snapshot.targets.items() if target.spec.kind == "tool"}
        found: list[tuple[Match, ...]] = []
        for tool in tools:
            detections, *_ = await self._detect(snapshot, tool.prompt, context) if kinds else NOTHING
            own = [d for d in tool.matched(detections) if d.target_id in kinds]
            decision = decide(own, snapshot.targets, tool.prompt, snapshot=snapshot.version)
            found.append(tuple(replace(m, spans=(), evidence=()) for m in decision.matches if not m.shadow))
        return found

    async def _detect(self, snapshot: Snapshot, prompt: Prompt, context: RequestContext | None) -> Detected:
        if not snapshot.armed:
            return NOTHING
        if self._judging >= self.limit:
            return self._undetected(snapshot, context, OverflowError())
        tenant, model = _whose(context)
        allowed = self.deadline_s * max(1.0, _tokens(prompt) / FAIR_TOKENS)
        if snapshot.holds(tenant, model):
            allowed = max(allowed, self.hold_s)
        until = time.monotonic() + allowed  # whoever still waits for a thread then is not judged any more
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(
            self.executor, lambda: snapshot.gate.detect(prompt, tenant=tenant, model=model, until=until)
        )
        self._judging += 1
        try:
            return await asyncio.wait_for(job, allowed)
        except Exception as error:  # whatever a detector throws must fail closed
            return self._undetected(snapshot, context, error)
        finally:
            self._judging -= 1

    def _undetected(self, snapshot: Snapshot, context: RequestContext | None, error: Exception) -> Detected:
        """Fail closed, unless every target in scope says otherwise; every bypass is counted and logged."""
        reason = _REASONS.get(type(error), type(error).__name__)
        if any(t.spec.policy.on_error == "closed" for t in snapshot.binding(*_whose(context))):
            log.error("detection failed (%s); the request is refused", reason)
            kind = _KINDS.get(type(error), "detection")
            raise GuardUnavailable("The request could not be checked; try again.", reason=kind) from None
        self.bypasses += 1
        log.critical("detection failed (%s); the request passes unchecked by policy", reason)
        if context is not None:
            context.events.append({"event": "bypass", "reason": reason})
        return NOTHING

    def sighted(self, prompt: Prompt, before: Admission, found: Sequence[Sighting]) -> Admission:
        """The decision on a prompt that was let through `before`, now that its activation gates have fired.

        A gate's score is half at its limit and nears 1 above it. Its spans are the tokens of the prompt that showed
        the target. A target that is not there any more is not enforced: what its gate has seen says nothing.
        """
        snapshot = self.snapshot()
        detections = []
        for watch in before.plan.watches:
            seen = [s for s in found if s.table == watch.table]
            if seen and watch.target_id in snapshot.targets:
                excess = max(s.excess for s in seen)
                tokens = {p for s in seen for p in s.positions if p < len(prompt.offsets)}
                spans = tuple(prompt.offsets[p] for p in sorted(tokens))
                detections.append(Detection(watch.target_id, "activation", excess / (1 + excess), 0.5, spans))
        decision = decide(
            detections,
            snapshot.targets,
            prompt,
            snapshot=snapshot.version,
            timings_ms=before.decision.timings_ms,
        )
        seen_before = before.decision
        matches = (*seen_before.matches, *decision.matches)
        return self._plan(replace(decision, matches=matches, unread=seen_before.unread), prompt)

    def speech(
        self, prompt: Prompt, context: RequestContext | None, admission: Admission | None = None
    ) -> Speech:
        """One answer to `prompt` on its way out, judged by the snapshot that is current at each of its chunks.

        A name that the prompt says itself is no secret to whoever wrote it. An answer that it holds may be repeated
        where the target's `policy.context` is `answer`. What is said is judged by its meaning too (guard.meaning), for
        the targets that the prompt matched as something that is said of them.
        """
        tenant, model = _whose(context)
        said: frozenset[tuple[str, bool]] | None = None

        def look(text: str, begun: int, ended: int) -> Found:
            snapshot = self.snapshot()
            if not snapshot.armed:
                return Found(len(text))
            literals = snapshot.gate.literals

            def forbids(target: CompiledTarget, named: bool) -> bool:
                nonlocal said
                spec = target.spec
                if spec.mode != "enforce" or not target.scope.covers(tenant, model):
                    return False
                if not (named or spec.policy.context == "answer"):
                    return True
                if said is None:  # almost never needed: only where an answer says something forbidden
                    said = literals.said_in(prompt.text)
                return (target.target_id, named) not in said

            return literals.look(text, begun, forbids, ended=ended)

        matches = admission.decision.matches if admission else ()
        about = frozenset(match.target_id for match in matches if not match.shadow)
        return Speech(look, Meaning(self.snapshot, self._meant, prompt, context, about), self.extent)

    async def _meant(
        self, snapshot: Snapshot, gate: Gate, said: Sequence[Prompt], context: RequestContext | None
    ) -> list[tuple[Detection, ...]]:
        """What reaches its threshold by `gate` in each of the texts; late or failed judgements as in prompts."""
        tenant, model = _whose(context)
        until = time.monotonic() + self.hold_s

        def judge() -> list[tuple[Detection, ...]]:
            return [gate.detect(one, tenant=tenant, model=model, until=until)[0] for one in said]

        try:
            job = asyncio.get_running_loop().run_in_executor(self.answers or self.executor, judge)
            return await asyncio.wait_for(job, self.hold_s)
        except Exception as error:  # whatever a detector throws must fail closed
            return [self._undetected(snapshot, context, error)[0]] * len(said)

    async def still(self, context: RequestContext, texts: Sequence[str]) -> bool:
        """Whether what the request of `context` was answered with may be read now: its messages match no target that
        they did not match then, and nothing in `texts` is forbidden.

        Raises:
            GuardUnavailable: it could not be judged.
        """
        before = [admission.decision for admission in context.admissions.values()]
        if before and all(decision.snapshot == self.snapshot().version for decision in before):
            return True
        prompt = Prompt("\n".join(m.text for m in context.messages), messages=context.messages)
        now = await self.admit(prompt, context)
        then = {match.target_id for decision in before for match in decision.matches if not match.shadow}
        if any(not match.shadow and match.target_id not in then for match in now.decision.matches):
            return False
        for text in texts:
            speech = self.speech(prompt, context, now)
            await speech.say(text, ended=True)
            if speech.hit is not None:
                return False
        return True

    def after(self, hit: Hit) -> tuple[str, int]:
        """What the target's policy does about an answer that said `hit`, and how often."""
        target = self.snapshot().targets.get(hit.target_id)
        return (target.spec.policy.output, target.spec.policy.max_tries) if target else ("cut", 0)

    def again(self, prompt: Prompt, hit: Hit, before: Admission) -> Admission | None:
        """The verdict under which an answer that said `hit` goes on behind `prompt`, which holds what has left of it;
        None where it is to end.

        With `regenerate` the target's own methods act, on the question; with `reprompt` the model is asked to leave
        the subject out (Schick et al., "Self-Diagnosis and Self-Debiasing", arXiv 2103.00453, in words).
        """
        snapshot = self.snapshot()
        target = snapshot.targets.get(hit.target_id)
        if target is None:
            return None
        asked = last_user_start(prompt)
        users = [m.text.strip() for m in prompt.messages if m.role == "user" and m.text.strip()]
        question = Span(asked, asked + len(users[-1]) if users else len(prompt.text))
        earlier = [
            Detection(m.target_id, m.detector, m.score, m.threshold, m.spans)
            for m in before.decision.matches
            if m.target_id != hit.target_id and m.target_id in snapshot.targets
        ]
        found = Detection(hit.target_id, "output", 1.0, 1.0, (question,))
        decision = decide([*earlier, found], snapshot.targets, prompt, snapshot=snapshot.version)
        if target.spec.policy.output == "reprompt" and decision.reply.style == "natural":
            own = [match for match in decision.matches if match.target_id == hit.target_id]
            kept = [c for c in decision.chosen if own[0] not in c.matches]
            asks = Chosen("guard_prompt", {"text": _LEAVE_OUT.format(target.spec.name)}, tuple(own))
            decision = replace(decision, action="intervene", chosen=(*kept, asks))
        admission = self._plan(replace(decision, timings_ms=before.decision.timings_ms), prompt)
        return admission if admission.plan.reply is None else None

    def reply_after(self, hit: Hit) -> Reply:
        """What to say in the place of an answer that says nothing but what is forbidden."""
        target = self.snapshot().targets.get(hit.target_id)
        reply = target.spec.reply if target else None
        return Reply(reply.style, reply.text or Reply().text) if reply else Reply()

    def _plan(self, decision: Decision, prompt: Prompt, watches: tuple[Watch, ...] = ()) -> Admission:
        """Ask each chosen method for its plan. A method that cannot act on this prompt makes it a refusal."""
        if decision.action == "allow":
            return Admission(decision, Plan(watches=watches))
        insertions: tuple[Insertion, ...] = ()
        edits: tuple[Edit, ...] = ()
        for chosen in decision.chosen:
            plan = interventions.load(chosen.method).plan(chosen, prompt, lambda t: self._seed(t, prompt))
            if not (plan.insertions or plan.edits):
                return Admission(replace(decision, action="refuse", chosen=()), Plan(reply=decision.reply))
            insertions, edits = insertions + plan.insertions, edits + plan.edits
        if decision.action == "refuse":
            return Admission(decision, Plan(reply=decision.reply))
        return Admission(decision, Plan(insertions, edits, likelihoods=self._tells(decision, edits)))

    def _tells(self, decision: Decision, edits: Sequence[Edit]) -> bool:
        """Whether all matched targets allow to tell likelihoods, and these are the edited model's: the engine tells
        them as they are before the logits are edited."""
        targets = self.snapshot().targets
        specs = [
            targets[m.target_id].spec for m in decision.matches if not m.shadow and m.target_id in targets
        ]
        allowed = bool(specs) and all(spec.policy.logprobs == "edited" for spec in specs)
        return allowed and all(edit.site != "logits" for edit in edits)

    def _seed(self, target_id: str, prompt: Prompt) -> str:
        """16 hex digits: averaging samples does not remove noise that depends on target and prompt alone."""
        return self.secrets.digest("noise", target_id, ",".join(map(str, prompt.token_ids)))[:16]


def _whose(context: RequestContext | None) -> tuple[str | None, str | None]:
    """The tenant and the model of a request."""
    return (context.tenant, context.model) if context else (None, None)


def _tokens(prompt: Prompt) -> int:
    """The tokens of the prompt, and about as many as what is judged beside it would have."""
    uncounted = prompt.asides if prompt.token_ids else (prompt.text, *prompt.asides)
    return len(prompt.token_ids) + sum(map(len, uncounted)) // _CHARS_PER_TOKEN


def _watches(snapshot: Snapshot, context: RequestContext | None) -> tuple[Watch, ...]:
    """The activation gates of the targets that bind this request."""
    tenant, model = (context.tenant, context.model) if context else (None, None)
    return tuple(
        watch
        for watch in snapshot.watches
        if snapshot.targets[watch.target_id].spec.scope.frozen().covers(tenant, model)
    )
