"""What a prompt is answered with under the guard, and without it for those who may see that.

No client can reach this: it is called in process, by a page of the console, for a key whose role allows it. An answer
without the guard has a decision record of its own, which says so, and is shown only when that is on its way to the log.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from guard import context as request_context
from guard.context import RequestContext
from guard.errors import BadRequest, GuardUnavailable, LetheError
from guard.types import Admission, Decision, Message, Prompt, Spoken
from server import bodies
from server.checks import Checker, describe

ROUTE = "/console/playground"
BYPASS = "bypass"


class Engine(Protocol):
    """What answers: see `guard.engine.asking.Asking`."""

    async def guarded(self, prompt: Prompt, max_tokens: int) -> Spoken: ...

    async def unguarded(self, prompt: Prompt, max_tokens: int) -> Spoken: ...


@dataclass(frozen=True)
class Question:
    """What to ask, as a chat message behind `system` or as `plain` text, for a tenant, on behalf of a key."""

    text: str
    system: str = ""
    plain: bool = False
    tenant: str | None = None
    max_tokens: int = 96
    key_id: str = ""

    def body(self, model: str) -> dict[str, Any]:
        if not self.text.strip():
            raise BadRequest("Type a prompt.", param="prompt")
        if self.plain:
            return {"model": model, "prompt": self.text}
        system = [{"role": "system", "content": self.system}] if self.system.strip() else []
        return {"model": model, "messages": [*system, {"role": "user", "content": self.text}]}


@dataclass(frozen=True)
class Played:
    """What came of a question: the verdict as the check tells it, the texts that evidence points into, the answers
    that were asked for with the ids of their decisions, and what was done to the guarded one. `style` is the reply's,
    where a reply stands in the answer's place."""

    verdict: Mapping[str, Any]
    messages: tuple[Message, ...]
    guarded: Spoken | None = None
    unguarded: Spoken | None = None
    decision_id: str | None = None
    unguarded_id: str | None = None
    style: str | None = None
    applied: tuple[str, ...] = ()
    edits: tuple[Mapping[str, Any], ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()


class Playground(Protocol):
    """How far a question goes is for the caller to decide, by the role of whoever asks."""

    async def judge(self, question: Question) -> Played:
        """The verdict alone; nothing is generated."""
        ...

    async def ask(self, question: Question, *, unguarded: bool) -> Played:
        """The verdict and the guarded answer, and the other one if that is asked for.

        Raises:
            BadRequest: the question cannot be rendered.
            GuardUnavailable: the guard cannot vouch for an answer, or the log cannot take the record.
        """
        ...


@dataclass(frozen=True)
class EnginePlayground:
    """`record` takes what the decision log does, and tells whether it was taken."""

    checker: Checker
    engine: Engine
    record: Callable[[RequestContext, int, float], bool]
    clock: Callable[[], float] = time.time

    async def judge(self, question: Question) -> Played:
        context, prompt = await self._rendered(question)
        admission = await self.checker.guard.admit(prompt, context)
        return Played(describe(admission.decision), context.messages)

    async def ask(self, question: Question, *, unguarded: bool) -> Played:
        context, prompt = await self._rendered(question)
        guarded = await self._guarded(context, prompt, question.max_tokens)
        admission = context.admissions[prompt.token_ids]
        raw = None
        if unguarded:
            raw = await self._unguarded(context, prompt, admission.decision.snapshot, question)
        reply = admission.plan.reply
        return Played(
            verdict=describe(admission.decision),
            messages=context.messages,
            guarded=guarded,
            unguarded=raw[0] if raw else None,
            decision_id=context.decision_id,
            unguarded_id=raw[1] if raw else None,
            style=reply.style if reply else None,
            applied=tuple(context.applied),
            edits=tuple(asdict(edit) for edit in context.edits),
            events=tuple(context.events),
        )

    async def _rendered(self, question: Question) -> tuple[RequestContext, Prompt]:
        body = question.body(self.checker.model)
        facts = bodies.facts(body, max_n=1)
        context = RequestContext(
            uuid.uuid4().hex,
            ROUTE,
            self.clock(),
            tenant=question.tenant,
            model=self.checker.model,
            messages=facts.messages,
        )
        return context, await self.checker.render(body, facts.messages)

    async def _guarded(self, context: RequestContext, prompt: Prompt, max_tokens: int) -> Spoken:
        """Under the request's context, as the gate would have it, and recorded as any request."""
        token, status = request_context.enter(context), 200
        try:
            return await self.engine.guarded(prompt, max_tokens)
        except LetheError as error:
            context.failure, status = error, error.status
            raise
        finally:
            request_context.leave(token)
            self.record(context, status, self.clock())

    async def _unguarded(
        self, beside: RequestContext, prompt: Prompt, snapshot: int, question: Question
    ) -> tuple[Spoken, str]:
        """The answer and the id of its decision: allowed, by a bypass that names the key and the guarded decision."""
        context = RequestContext(
            uuid.uuid4().hex,
            ROUTE,
            self.clock(),
            tenant=question.tenant,
            model=beside.model,
            messages=beside.messages,
        )
        context.admissions[prompt.token_ids] = Admission(Decision("allow", snapshot))
        context.events.append(
            {
                "event": BYPASS,
                "reason": "unguarded answer in the console",
                "key": question.key_id,
                "guarded": beside.decision_id,
            }
        )
        answer = await self.engine.unguarded(prompt, question.max_tokens)
        if not self.record(context, 200, self.clock()):
            raise GuardUnavailable(
                "The answer without the guard could not be recorded, so it is not shown; try again."
            )
        return answer, context.decision_id
