"""The guard is the engine client: every route of vLLM's server passes through `generate` or `encode`.

What is judged is the rendered prompt, after chat templates, tools and turns: what the model will really read.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from guard.context import RequestContext, current
from guard.detection.literals import Hit
from guard.engine import rewriting
from guard.engine.ahead import Ahead
from guard.engine.answers import Disguise, folded
from guard.engine.calls import CUT, Call, Verdict, metered, note, note_usage, remember_beams, salted
from guard.engine.edits import KEY, Order, fingerprint, to_wire
from guard.engine.failures import NotLive, on_the_wire
from guard.engine.lora import Adapters, adapter_of
from guard.engine.queues import Queues
from guard.engine.reading import encode, insert, read
from guard.engine.records import Reports
from guard.engine.speaking import Speaking, without_forbidden
from guard.errors import BadRequest, GuardUnavailable, LetheError, content_filter
from guard.speech import Speech, note_hits
from guard.types import Admission, AppliedEdit, Edit, Plan, Prompt, Reply, Sighting

log = logging.getLogger("lethe.engine")
T = TypeVar("T")


class Admitter(Protocol):
    """Whoever judges prompts."""

    async def admit(self, prompt: Prompt, context: RequestContext | None) -> Admission: ...

    def ahead(self, prompt: Prompt, context: RequestContext | None) -> bool:
        """Whether the engine may begin with the prompt as it came before the verdict on it."""
        ...

    def sighted(self, prompt: Prompt, before: Admission, found: Sequence[Sighting]) -> Admission:
        """The verdict on a prompt that was let through `before`, now that gates have fired."""
        ...

    def speech(self, prompt: Prompt, context: RequestContext | None, admission: Admission) -> Speech:
        """One answer to the prompt, admitted so, on its way out."""
        ...

    def after(self, hit: Hit) -> tuple[str, int]:
        """What to do about an answer that said something forbidden, and how often."""
        ...

    def again(self, prompt: Prompt, hit: Hit, before: Admission) -> Admission | None:
        """The verdict under which the answer goes on behind `prompt`, None: it ends."""
        ...

    def reply_after(self, hit: Hit) -> Reply:
        """What to say in the place of an answer that said something forbidden."""
        ...


class Resighted(Exception):
    """A gate has fired on a request; `admission` is the verdict on it now."""

    def __init__(self, admission: Admission) -> None:
        super().__init__()
        self.admission = admission


class GuardedAsyncLLM(AsyncLLM):
    """vLLM's engine client with a verdict before every prompt. `guard` is set once by the launcher; `origin` tells it
    from other clients of the same engine."""

    guard: Admitter | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.salts = rewriting.Salts()
        self.queues = Queues()
        self.origin = uuid.uuid4().hex
        self.reports = Reports(lambda: self.collective_rpc("lethe_drain", args=(self.origin,)))
        self.adapters = Adapters.of(self)

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As `AsyncLLM.generate` for prompts that may be answered; others are edited, or answered without it.

        Raises:
            BadRequest: the prompt cannot be read.
            GuardUnavailable: it could not be judged, or an edit was not confirmed; nothing was yielded.
        """
        context = current()
        try:
            call = self._call(prompt, sampling_params, request_id, options, context)
            async with Ahead(partial(self._untouched, call)) as ahead:
                if call.can_begin:
                    ahead.begin(partial(self._guard().ahead, call.read, context))
                verdict = await self._verdict(call)
                if _changes(verdict.admission):
                    await ahead.drop()
                async with aclosing(metered(call, self._deltas(call, verdict, ahead))) as deltas:
                    async for output in folded(deltas, sampling_params.output_kind):
                        remember_beams(call, verdict, output)
                        note_usage(call, output, sampling_params.output_kind)
                        yield output
        except LetheError as error:
            raise _failed(error, context) from error

    async def encode(
        self, prompt: Any, pooling_params: PoolingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[PoolingRequestOutput, None]:
        """As `AsyncLLM.encode` for prompts that may be answered.

        Raises:
            BadRequest: the prompt cannot be read, or it matches a target (code `content_filter`): vectors and
                scores of a matched text would tell what the model knows of it.
            GuardUnavailable: the prompt could not be judged.
        """
        context = current()
        try:
            read_prompt = self._read(prompt, context)
            if (await self._judge(read_prompt, context)).matched:
                raise content_filter()
            if context is not None and context.spend is not None:
                context.spend(len(read_prompt.token_ids))
            salt = self.salts.clean(prompt.get("cache_salt"), context.tenant if context else None)
            answer = super().encode(salted(prompt, salt), pooling_params, request_id, **options)
            async with aclosing(answer) as outputs:
                async for output in outputs:
                    yield output
        except LetheError as error:
            raise _failed(error, context) from error

    async def score(
        self, read_prompt: Prompt, admission: Admission, continuation: Sequence[int]
    ) -> tuple[float, ...] | None:
        """Natural logarithms of the likelihoods of the tokens of `continuation` behind a prompt, with exactly the
        edits of its `admission`; None where the answer would not come from the model.

        Raises:
            BadRequest: prompt and continuation do not fit the model's context.
            GuardUnavailable: an edit was not confirmed.
        """
        if len(read_prompt.token_ids) + len(continuation) >= self.model_config.max_model_len:
            raise BadRequest(
                "messages and continuation do not fit the model's context.", param="continuation"
            )
        given = {"type": "token", "prompt_token_ids": list(read_prompt.token_ids)}
        params = SamplingParams(
            temperature=0.0,
            max_tokens=len(continuation),
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        disguise = Disguise.of("", read_prompt.token_ids, params, self.get_tokenizer())
        call = Call(given, read_prompt, params, "", {}, disguise, None, False)
        if admission.matched and self._reply_to(call, admission) is not None:
            return None
        prompt, edits = self._edited_prompt(given, read_prompt, admission.plan)
        request_id = f"lethe-score-{uuid.uuid4().hex}"
        prompt = salted(prompt, f"@{request_id}")
        order = Order(self._ticket(), prompt["cache_salt"], edits, forced=tuple(continuation))
        async with aclosing(self._ordered(order, prompt, params, request_id, {})) as outputs:
            async for output in outputs:
                if output.finished:
                    if edits:
                        await self._vouched(self.reports.confirm(order.ticket, 0))
                    return await self._vouched(self.reports.scores(order.ticket))
        raise GuardUnavailable("The likelihoods did not come; try again.")

    async def check_health(self) -> None:
        await super().check_health()
        if self.guard is None:
            raise NotLive

    async def canary(
        self, token_ids: list[int], params: SamplingParams, edits: tuple[Edit, ...] = ()
    ) -> tuple[RequestOutput, tuple[AppliedEdit, ...]]:
        """A request of the server's own: not judged, its likelihoods not withheld, its edits confirmed. The launcher
        proves edits by it, and the console shows what the model says without the guard.

        Raises:
            GuardUnavailable: the edits could not be vouched for.
        """
        request_id = f"lethe-canary-{uuid.uuid4().hex}"
        prompt = salted({"type": "token", "prompt_token_ids": token_ids}, f"@{request_id}")
        applied: list[AppliedEdit] = []
        async with aclosing(
            self._edited(prompt, rewriting.as_stream(params), request_id, {}, edits, applied)
        ) as deltas:
            outputs = [output async for output in folded(deltas, RequestOutputKind.FINAL_ONLY)]
        return outputs[-1], tuple(applied)

    def _read(self, prompt: Any, context: RequestContext | None, asides: tuple[str, ...] = ()) -> Prompt:
        ids = rewriting.token_ids(prompt)
        said = (context.messages, context.asides) if context else ((), ())
        return read(ids, self.get_tokenizer(), messages=said[0], asides=(*said[1], *asides))

    def _call(
        self,
        prompt: Any,
        params: SamplingParams,
        request_id: str,
        options: dict[str, Any],
        context: RequestContext | None,
    ) -> Call:
        known = self._read(prompt, context, rewriting.asides(params))
        disguise = Disguise.of(request_id, known.token_ids, params, self.get_tokenizer())
        beam = rewriting.beam_step(params)
        return Call(prompt, known, rewriting.as_stream(params), request_id, options, disguise, context, beam)

    async def _verdict(self, call: Call) -> Verdict:
        """A beam inherits the verdict on the prompt that it began with; everything else is judged."""
        ids = call.read.token_ids
        if call.beam and call.context and ids in call.context.beams:
            return Verdict(*call.context.beams[ids])
        return Verdict(await self._judge(call.read, call.context), len(ids))

    async def _judge(self, prompt: Prompt, context: RequestContext | None) -> Admission:
        if context is not None and (known := context.admissions.get(prompt.token_ids)):
            return known
        guard = self._guard()
        try:
            admission = await guard.admit(prompt, context)
        except LetheError:
            raise
        except Exception as error:
            log.exception("a prompt could not be judged")
            raise GuardUnavailable(
                "The request could not be checked; try again.", reason="detection"
            ) from error
        if context is not None:
            context.admissions[prompt.token_ids] = admission
        return admission

    async def _deltas(
        self, call: Call, verdict: Verdict, ahead: Ahead
    ) -> AsyncGenerator[RequestOutput, None]:
        """The model's own answer, the edited model's, or a reply instead of it. Nothing forbidden is in it."""
        admission = verdict.admission
        if admission.matched and (reply := self._reply_to(call, admission)) is not None:
            yield self._instead(call, verdict, reply)
            return
        guard = self._guard()
        listen = partial(guard.speech, call.read, call.context, admission)
        speaking = Speaking(call, listen, partial(self._act, call), guard.reply_after, self.get_tokenizer())
        answer: AsyncGenerator[RequestOutput, None] | None = self._answered(call, admission, ahead)
        try:
            while answer is not None:
                async with aclosing(answer) as outputs:
                    async for output in outputs:
                        if call.beam:
                            prior = call.read.token_ids[verdict.judged :]
                            yield await without_forbidden(output, prior, listen(), self.get_tokenizer())
                            continue
                        shown = await speaking.take(output)
                        if shown is not None:
                            yield shown
                        if speaking.paused or (speaking.hits and speaking.over):
                            break
                answer = None
                if speaking.paused:
                    answer, admission = self._otherwise(call, admission, speaking)
                    if answer is None:
                        yield speaking.give_up()
        except Resighted as fired:
            if speaking.last is not None:  # part of the answer has left: it ends there
                note(call.context, fired.admission, ())
                yield speaking.end()
            else:
                resighted = replace(verdict, admission=fired.admission)
                async with aclosing(self._deltas(call, resighted, ahead)) as again:
                    async for output in again:
                        yield output
        finally:
            note_hits(call.context, speaking.hits)

    def _act(self, call: Call, hit: Hit, number: int) -> str:
        """What to do about the `number`-th hit in the answer to a call."""
        policy, most = self._guard().after(hit)
        return policy if number <= most and call.can_go_on else CUT

    def _otherwise(
        self, call: Call, before: Admission, speaking: Speaking
    ) -> tuple[AsyncGenerator[RequestOutput, None] | None, Admission]:
        """The rest of an answer that was paused, and the verdict that it is given under; None: there is no way."""
        guard, hit, said = self._guard(), speaking.paused, speaking.said
        assert hit is not None
        prompt = call.read
        read_on = read(
            (*prompt.token_ids, *said), self.get_tokenizer(), messages=prompt.messages, asides=prompt.asides
        )
        admission = guard.again(read_on, hit, before)
        if admission is None:
            return None, before
        follow = call.behind(read_on, len(said), len(speaking.hits))
        if self._reply_to(follow, admission) is not None:
            return None, before
        if call.context is not None:
            call.context.admissions[prompt.token_ids] = admission
        speaking.resume(guard.speech(prompt, call.context, admission))
        return self._intervened(follow, admission), admission

    def _answered(
        self, call: Call, admission: Admission, ahead: Ahead
    ) -> AsyncGenerator[RequestOutput, None]:
        """What the model says, with the edits or gates that the admission asks for."""
        if admission.plan.watches:
            return self._observed(call, admission)
        if admission.matched:
            return self._intervened(call, admission)
        return ahead.outputs()

    def _untouched(self, call: Call) -> AsyncGenerator[RequestOutput, None]:
        prompt = salted(call.prompt, call.salt(self.salts))
        return self._run(prompt, copy(call.params), call.request_id, call.options)

    def _guard(self) -> Admitter:
        if self.guard is None:
            raise GuardUnavailable("The guard is not attached yet; try again.", reason="engine")
        return self.guard

    def _reply_to(self, call: Call, admission: Admission) -> Reply | None:
        """The reply to give without the engine, also where no planned method can act: a request runs with one
        adapter, so ours cannot act on one that asks for its own."""
        plan, decision = admission.plan, admission.decision
        acts = plan.edits or plan.insertions
        if call.options.get("lora_request") is not None and adapter_of(plan.edits) is not None:
            acts = ()
        if plan.reply is None and decision.action == "intervene" and acts and call.prompt["type"] == "token":
            longer = sum(len(encode(i.text, self.get_tokenizer())) for i in plan.insertions)
            if len(call.read.token_ids) + longer < self.model_config.max_model_len:
                return None
        return plan.reply or decision.reply

    def _instead(self, call: Call, verdict: Verdict, reply: Reply) -> RequestOutput:
        ids = encode(reply.text, self.get_tokenizer())
        withheld = reply.style == "content_filter" or (call.context and call.context.must_parse)
        reason = "content_filter" if withheld else "stop"
        note(call.context, verdict.admission, ())
        if call.beam:  # one token of the reply for each step, then the end of the sequence
            done = len(call.read.token_ids) - verdict.judged
            ids = [*ids, self.get_tokenizer().eos_token_id][done : done + 1]
            return call.disguise.reply("", ids, call.params.n, "length")
        return call.disguise.reply(reply.text, ids, call.params.n, reason)

    async def _observed(self, call: Call, admission: Admission) -> AsyncGenerator[RequestOutput, None]:
        """The model's own answer for as long as no gate fires. What it says then never leaves.

        Raises:
            Resighted: a gate has fired; the request is given up.
        """
        params = copy(call.params)
        params.skip_reading_prefix_cache = True  # gates see what is computed, and only that
        order = Order(self._ticket(), "", watches=admission.plan.watches)
        prompt = salted(call.prompt, call.salt(self.salts))
        async with aclosing(self._ordered(order, prompt, params, call.request_id, call.options)) as outputs:
            async for output in outputs:
                if found := await self._vouched(self.reports.sightings(order.ticket)):
                    raise Resighted(self._resighted(call, admission, found))
                yield output

    def _resighted(self, call: Call, before: Admission, found: tuple[Sighting, ...]) -> Admission:
        """The verdict on a request in which gates have fired, which from now on is the one on its prompt."""
        admission = self._guard().sighted(call.read, before, found)
        if call.context is not None:
            call.context.admissions[call.read.token_ids] = admission
        return admission

    def _edited_prompt(
        self, prompt: dict[str, Any], read_prompt: Prompt, plan: Plan
    ) -> tuple[dict[str, Any], tuple[Edit, ...]]:
        """The prompt as the edited model reads it, without a salt, and the edits at their places in it."""
        inserted = insert(read_prompt, plan.insertions, self.get_tokenizer())
        edits = tuple(replace(e, positions=inserted.shift(e.positions)) for e in plan.edits)
        prompt = {**prompt, "prompt_token_ids": inserted.token_ids}
        prompt.pop("prompt", None)
        return prompt, edits

    async def _intervened(self, call: Call, admission: Admission) -> AsyncGenerator[RequestOutput, None]:
        """The edited model's answer, in disguise."""
        if rewriting.dictated(call.params):
            admission = replace(admission, plan=replace(admission.plan, likelihoods=False))
            if call.context is not None:
                call.context.admissions[call.read.token_ids] = admission
        prompt, edits = self._edited_prompt(call.prompt, call.read, admission.plan)
        prompt = salted(prompt, call.salt(self.salts, fingerprint(edits)))
        applied: list[AppliedEdit] = []
        tells = admission.plan.likelihoods
        params = rewriting.withholding(call.params, likelihoods=tells)
        # the engine may still be forgetting an untouched run of the same call
        request_id = f"{call.request_id}-edited"
        async with aclosing(
            self._edited(prompt, params, request_id, call.options, edits, applied)
        ) as outputs:
            first = True
            async for output in outputs:
                if first:
                    note(call.context, admission, applied)
                yield call.disguise.put_on(output, first=first, likelihoods=tells)
                first = False

    async def _edited(
        self,
        prompt: dict[str, Any],
        params: SamplingParams,
        request_id: str,
        options: dict[str, Any],
        edits: tuple[Edit, ...],
        applied: list[AppliedEdit],
    ) -> AsyncGenerator[RequestOutput, None]:
        """Run with `edits`; no sample gives an output before its edits are confirmed into `applied`."""
        if not edits:
            async with aclosing(self._run(prompt, params, request_id, options)) as outputs:
                async for output in outputs:
                    yield output
            return
        order = Order(self._ticket(), prompt.get("cache_salt") or "", edits)
        confirmed: set[int] = set()
        async with aclosing(self._ordered(order, prompt, params, request_id, options)) as outputs:
            async for output in outputs:
                for sample in {o.index for o in output.outputs} - confirmed:
                    done = await self._vouched(self.reports.confirm(order.ticket, sample))
                    if not confirmed:
                        applied.extend(done)
                    confirmed.add(sample)
                if any(edit.onward for edit in edits):
                    for sample in {o.index for o in output.outputs if o.finished()}:
                        await self._vouched(self.reports.confirm_end(order.ticket, sample))
                yield output

    async def _ordered(
        self,
        order: Order,
        prompt: dict[str, Any],
        params: SamplingParams,
        request_id: str,
        options: dict[str, Any],
    ) -> AsyncGenerator[RequestOutput, None]:
        """Run as `order` tells the workers, with what its edits need; records of it are kept meanwhile."""
        params.extra_args = {**(params.extra_args or {}), KEY: to_wire(order)}
        with self.reports.expecting(order.ticket, order.edits, params.n):
            async with (
                self.queues.passed(order.edits, params.n),
                self.adapters.option(order.edits) as option,
                aclosing(self._run(prompt, params, request_id, {**options, **option})) as outputs,
            ):
                async for output in outputs:
                    yield output

    def _ticket(self) -> str:
        """A name for one more run, under which only this client asks for records."""
        return f"{self.origin}.{uuid.uuid4().hex}"

    async def _vouched(self, confirmation: Awaitable[T]) -> T:
        try:
            return await confirmation
        except GuardUnavailable:
            # Its blocks stay in the cache; nobody may read them again, least of all the retry.
            self.salts.renew()
            raise

    async def _add_request(self, request: Any, *rest: Any) -> None:
        """As `AsyncLLM` does with requests of many samples: who leaves while a request is handed over leaves nothing
        behind."""
        try:
            await super()._add_request(request, *rest)
        except BaseException:
            await self.abort(request.request_id, internal=True)
            raise

    def _run(
        self, prompt: dict[str, Any], params: SamplingParams, request_id: str, options: dict[str, Any]
    ) -> AsyncGenerator[RequestOutput, None]:
        """The engine itself. The only way to it."""
        return super().generate(prompt, params, request_id, **options)


def _changes(admission: Admission) -> bool:
    """Whether a request admitted so runs otherwise than it came, or not at all."""
    return admission.matched or bool(admission.plan.watches)


def _failed(error: LetheError, context: RequestContext | None) -> LetheError:
    """Note the failure where the gate looks for it, and give it a class that vLLM's handlers know."""
    if context is not None:
        context.failure = error
    return on_the_wire(error)
