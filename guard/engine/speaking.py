"""An answer on its way out: deltas of the engine wait with their tokens and likelihoods until their text may leave."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from operator import is_
from types import SimpleNamespace
from typing import Any

from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from guard.context import RequestContext
from guard.detection.literals import CONTEXT, Ending, Hit
from guard.engine.answers import cut, unfinished
from guard.engine.calls import CUT, Call
from guard.engine.reading import Spelling, encode
from guard.errors import content_filter
from guard.speech import Judge, Look, Speech
from guard.types import Reply

_BROKEN = "\ufffd"  # which token shows one is the engine's own matter
_TAIL = 256  # tokens in front of one, among which a forbidden text may have begun that it completes


@dataclass
class Sample:
    """One choice of the answer to `prompt`: `waiting` deltas with the number of characters up to their ends, `said` the
    ids that left.

    What is judged are the characters that the ids stand for. The engine tells of tokens before their characters, where
    these may become a stop string, and of tokens alone, where it is told not to detokenize; both are judged when the
    ids come, for ids and likelihoods tell as much as text does.
    """

    speech: Speech
    tokenizer: Any
    prompt: Sequence[int]
    params: SamplingParams
    waiting: deque[tuple[CompletionOutput, int]] = field(default_factory=deque)
    ended: bool = False
    said: list[int] = field(default_factory=list)
    _spelling: Spelling = field(init=False)
    _single: list[int] = field(default_factory=list)  # what came alone, one text each, and was not spelt yet
    _early: bool = False  # ids come before their characters, or without them
    _joint: _Joint | None = None  # takes apart what the engine has joined, where spelling does not
    _spells: bool = False  # the engine gives ids alone, and the client wants text
    _passed: int = 0  # characters up to the end of the last delta that left
    _shown: int = 0  # characters of text that left

    def __post_init__(self) -> None:
        self._early = bool(self.params.stop) or not self.params.detokenize
        skip = self.params.skip_special_tokens or not self.params.detokenize
        self._spelling = Spelling(self.tokenizer, skip_special=skip)

    async def take(self, delta: CompletionOutput) -> CompletionOutput | None:
        """What can leave now that `delta` has come, as one delta; None: nothing, or there is a hit."""
        texts, heard = self._texts(delta), self.speech.heard
        text = "".join(texts)
        if self._spells:
            delta.text = text
        await self.speech.say(text, ended=_ending(delta))
        if self._all_leaves(delta, texts):
            self._passed, self.ended = self.speech.left, delta.finished()
            return self._leaves(delta)
        lengths = [len(one) for one in texts]
        for part, length in zip(_apart(delta, lengths), lengths, strict=True):
            heard += length
            self.waiting.append((part, heard))
        if self.speech.hit is not None:
            return None
        safe = []
        for _ in range(self._free()):
            delta, self._passed = self.waiting.popleft()
            safe.append(delta)
        self.ended = bool(safe) and safe[-1].finished()
        return self._leaves(_joined(safe))

    def cut(self) -> CompletionOutput:
        """The last delta of an answer that ends in front of what was found."""
        self.ended = True
        last = copy(self._front() or _shortened(self.waiting[0][0], 0, self.tokenizer))
        if self.params.detokenize:
            last.text = self.speech.text[self._shown :]
        last.finish_reason, last.stop_reason = "stop", None
        self._leaves(last)
        return last

    def resume(self, judge: Judge | None) -> None:
        """Another answer follows behind the ids that left, which comes without text: the engine would begin with the
        last characters of its prompt, which are those of this answer."""
        self.speech.judge, self._spells, self._early = judge, True, True
        self._spelling = Spelling(self.tokenizer, skip_special=self.params.skip_special_tokens)
        self._spelling.add(self.said)

    def pause(self) -> CompletionOutput | None:
        """What can leave of whole tokens in front of what was found; other text will come behind it."""
        last = self._front()
        if last is not None:
            last = copy(last)
            ids, text = list(last.token_ids), self.speech.text[self._shown :]
            while ids and not text.startswith(spelt := Spelling(self.tokenizer).add(ids, ended=True)):
                ids.pop()
            last.token_ids, last.text = ids, spelt if ids else ""
            last.finish_reason = last.stop_reason = None
            if last.logprobs is not None:
                last.logprobs = last.logprobs[: len(ids)]
            last = self._leaves(last) if ids else None
        self.waiting.clear()
        self._passed = self._shown
        self.speech.resume(self._shown)
        return last

    def _texts(self, delta: CompletionOutput) -> list[str]:
        """What the tokens of a delta spell, one text each: the engine joins what waits to be taken, and what is kept
        of an answer must not depend on that. Where a stop string is waited for, nothing goes on behind a hit, and all
        is one text."""
        ids = delta.token_ids
        if self._early:
            # the token that ends an answer is not shown
            shown = ids[:-1] if self._spells and delta.finish_reason == "stop" else ids
            texts = [self._spelling.add([token]) for token in shown] + [""] * (len(ids) - len(shown))
            *first, last = texts or [""]
            texts = [*first, last + self._spelling.add([], ended=delta.finished())]
            return ["".join(texts)] if self.params.stop else texts
        if self._joint is None and len(ids) < 2:
            self._single += ids
            return [delta.text]
        if self._joint is None:
            self._spelling.add(self._single)
            self._single.clear()
            texts = [self._spelling.add([token]) for token in ids]
            if "".join(texts) == delta.text and _BROKEN not in delta.text:
                return texts
            before = [token for one, _ in self.waiting for token in one.token_ids]
            self._joint = _Joint(self.tokenizer, self.params, self.prompt, self.said + before)
        return self._joint.texts(delta)

    def _all_leaves(self, delta: CompletionOutput, texts: Sequence[str]) -> bool:
        """Whether nothing waits, of `delta` neither: almost always."""
        all_free = self.speech.hit is None and self.speech.left == self.speech.heard
        return all_free and not self.waiting and bool(texts[-1] or delta.finished())

    def _front(self) -> CompletionOutput | None:
        """What waits, as far as it may leave, as one delta."""
        free, waiting = self._free(), list(self.waiting)
        safe, rest = [delta for delta, _ in waiting[:free]], waiting[free:]
        room = self.speech.left - (waiting[free - 1][1] if free else self._passed)
        last = next((i for i, (_, end) in enumerate(rest) if end > self.speech.left), None)
        if room > 0 and last is not None:
            short = _shortened(rest[last][0], room, self.tokenizer)
            if short.token_ids:
                safe += [*(delta for delta, _ in rest[:last]), short]
        return _joined(safe)

    def _free(self) -> int:
        """How many of the deltas that wait may leave. One without a character is a part of the next one's."""
        free, start = 0, self._passed
        for number, (delta, end) in enumerate(self.waiting, start=1):
            if end <= self.speech.left and (end > start or delta.finished()):
                free = number
            start = end
        return free

    def _leaves(self, delta: CompletionOutput | None) -> CompletionOutput | None:
        if delta is not None:
            if delta.logprobs:
                before = self.tokenizer.decode(self.said[-_TAIL:])
                without_alternatives(
                    delta.logprobs, delta.token_ids, before, self.speech.look, self.tokenizer
                )
            self.said += delta.token_ids
            self._shown += len(delta.text)
        return delta


class Speaking:
    """The samples of one answer to `call`. `listen` opens the speech of a sample, `act` says what to do about a hit,
    the how many-th it is, and `reply` what to say where nothing else can be said.

    After a hit for which `act` says anything but "cut", `paused` is that hit, and the answer waits for `resume`.
    """

    def __init__(
        self,
        call: Call,
        listen: Callable[[], Speech],
        act: Callable[[Hit, int], str],
        reply: Callable[[Hit], Reply],
        tokenizer: Any,
    ) -> None:
        self._call = call
        self._listen = listen
        self._act = act
        self._reply = reply
        self._tokenizer = tokenizer
        self._samples: dict[int, Sample] = {}
        self._withheld: RequestOutput | None = None
        self.last: RequestOutput | None = None
        self.hits: list[tuple[Hit, str]] = []
        self.paused: Hit | None = None

    @property
    def over(self) -> bool:
        """Whether every choice has ended."""
        return len(self._samples) == self._call.params.n and all(s.ended for s in self._samples.values())

    @property
    def said(self) -> tuple[int, ...]:
        """The ids of the only choice that have left."""
        return tuple(self._samples[0].said)

    async def take(self, output: RequestOutput) -> RequestOutput | None:
        """What can leave now that `output` has come; None: nothing."""
        safe = []
        for delta in output.outputs:
            sample = self._samples.get(delta.index)
            if sample is None:
                sample = Sample(self._listen(), self._tokenizer, self._call.read.token_ids, self._call.params)
                self._samples[delta.index] = sample
            if sample.ended:
                continue
            released = await sample.take(delta)
            if sample.speech.hit is not None:
                released = self._found(sample, sample.speech.hit)
            if released is not None:
                safe.append(released)
        head, self._withheld = self._withheld or output, None
        if not safe:
            self._withheld = head if self.last is None else None
            return None
        if len(safe) == len(output.outputs) and all(map(is_, safe, output.outputs)):
            shown = output
        else:
            shown = copy(output)
            shown.outputs, shown.finished = safe, self.over
        if self.last is None:  # what the first output tells of the prompt may have come with one that waited
            shown.prompt_logprobs = self._of_prompt(head.prompt_logprobs)
        self.last = shown
        return shown

    def resume(self, speech: Speech) -> None:
        """The answer goes on under another verdict; `speech` is how it is judged from now on."""
        self.paused, self._withheld = None, None
        self._samples[0].resume(speech.judge)

    def give_up(self) -> RequestOutput:
        """The end of an answer that was `paused` and cannot go on."""
        assert self.paused is not None
        end = copy(self.last or self._withheld)
        assert end is not None
        likelihoods: list[Any] | None = [] if self._call.params.logprobs is not None else None
        sample, choice = (
            self._samples[0],
            CompletionOutput(0, "", [], None, likelihoods, finish_reason="stop"),
        )
        sample.ended = True
        end.outputs, end.finished = [self._finish(sample, choice, self.paused)], True
        self.hits[-1] = (self.paused, CUT)
        return end

    def end(self) -> RequestOutput:
        """The end of an answer of which something has left: the choices that have not ended stop there."""
        assert self.last is not None
        return cut(self.last, self._call.params, {i for i, s in self._samples.items() if s.ended})

    def _of_prompt(self, likelihoods: Any) -> Any:
        """Likelihoods of the prompt's tokens, whose alternatives are no secret either way but for what they spell."""
        if likelihoods:
            ids = self._call.read.token_ids[1:]
            before = self._tokenizer.decode(list(self._call.read.token_ids[:1]))
            without_alternatives(likelihoods[1:], ids, before, self._listen().look, self._tokenizer)
        return likelihoods

    def _found(self, sample: Sample, hit: Hit) -> CompletionOutput | None:
        action = self._act(hit, len(self.hits) + 1)
        self.hits.append((hit, action))
        if action == CUT:
            return self._finish(sample, sample.cut(), hit)
        self.paused = hit
        return sample.pause()

    def _broken(self, sample: Sample, context: RequestContext) -> bool:
        """Whether what has left of a choice is a part of something that the client takes as a whole."""
        said = sample.speech.text
        return context.must_parse or unfinished(self._call.read.text, said, tools=context.tools)

    def _finish(self, sample: Sample, last: CompletionOutput, hit: Hit) -> CompletionOutput:
        """The last delta of a choice that was cut: where nothing of it has left, the reply takes its place."""
        context, reply = self._call.context, self._reply(hit)
        if context is not None and self._broken(sample, context):
            last.finish_reason = "content_filter"  # half of a structure must not look whole
            context.broken = True
        elif sample.speech.left == 0:
            last.text, last.token_ids = reply.text, encode(reply.text, self._tokenizer)
            if last.logprobs is not None:
                last.logprobs = [{t: Logprob(0.0, rank=1)} for t in last.token_ids]
            last.finish_reason = "stop" if reply.style == "natural" else "content_filter"
            if context is not None:
                context.replaced = True
        return last


def without_alternatives(
    steps: Sequence[Any], ids: Sequence[int], before: str, look: Look, tokenizer: Any
) -> None:
    """Take out of the likelihoods `steps` of the tokens `ids` behind the text `before` those of other tokens that would
    complete a forbidden text: what must not be said is not told as likely either."""
    for token, step in zip(ids, steps, strict=False):
        others = [other for other in step or () if other != token]
        if others:
            begun = before[max(look(before, 0, False).safe - CONTEXT, 0) :]
            for other in others:
                if look(begun + tokenizer.decode([other]), 0, True).hit is not None:
                    del step[other]
        before = (before + tokenizer.decode([token]))[-_TAIL * 8 :]


async def without_forbidden(
    output: RequestOutput, prior: Sequence[int], speech: Speech, tokenizer: Any
) -> RequestOutput:
    """A step of beam search less the tokens that would complete a forbidden text behind those of the beam, `prior`.
    Beams go on with any token that they are told a likelihood of; where none is left, the beam ends.

    Raises:
        BadRequest: the beam says by its meaning what is forbidden; only whole beams are answered, and it may win.
    """
    await speech.say(tokenizer.decode(list(prior)), ended=True)
    if speech.hit is not None and speech.hit.meant:
        raise content_filter("This cannot be answered by beam search.", "use_beam_search")
    for choice in output.outputs:
        for step in choice.logprobs or ():
            for token in list(step):
                if speech.look(tokenizer.decode([*prior, token]), 0, True).hit is not None:
                    del step[token]
            if not step:
                step[tokenizer.eos_token_id] = Logprob(0.0, rank=1)
    return output


class _Joint:
    """Tells what each token of a delta spells, by the engine's own detokenizer, which goes through all of them."""

    def __init__(
        self, tokenizer: Any, params: SamplingParams, prompt: Sequence[int], said: Sequence[int]
    ) -> None:
        request: Any = SimpleNamespace(sampling_params=params, prompt_token_ids=list(prompt), request_id="")
        self._engines = IncrementalDetokenizer.from_new_request(tokenizer, request)
        for token in said:
            self._next(token)

    def texts(self, delta: CompletionOutput) -> list[str]:
        lengths, rest = [len(self._next(token)) for token in delta.token_ids], delta.text
        texts = [rest[start:end] for start, end in pairwise(accumulate(lengths[:-1], initial=0))]
        return [*texts, rest[sum(lengths[:-1]) :]]

    def _next(self, token: int) -> str:
        self._engines.update([token], False)
        return self._engines.get_next_output_text(False, True)


def _ending(delta: CompletionOutput) -> Ending:
    """Whether an answer ends with this delta, and whether at a length or string that the client has chosen."""
    if not delta.finished():
        return Ending.NOT_YET
    return Ending.OWN if delta.finish_reason == "stop" and delta.stop_reason is None else Ending.CHOSEN


def _joined(deltas: Sequence[CompletionOutput]) -> CompletionOutput | None:
    """Several deltas as one."""
    if len(deltas) < 2:
        return deltas[0] if deltas else None
    whole = copy(deltas[-1])
    whole.text = "".join(delta.text for delta in deltas)
    whole.token_ids = [token for delta in deltas for token in delta.token_ids]
    if whole.logprobs is not None:
        whole.logprobs = [step for delta in deltas for step in delta.logprobs or ()]
    return whole


def _apart(delta: CompletionOutput, lengths: Sequence[int]) -> list[CompletionOutput]:
    """The tokens of a delta, one delta each, of which they spell so many characters."""
    if len(lengths) < 2:
        return [delta]
    parts, end = [], 0
    for i, length in enumerate(lengths):
        part, start, end = copy(delta), end, end + length
        part.text, part.token_ids = delta.text[start:end], list(delta.token_ids[i : i + 1])
        if delta.logprobs is not None:
            part.logprobs = delta.logprobs[i : i + 1]
        if i < len(lengths) - 1:
            part.finish_reason = part.stop_reason = None
        parts.append(part)
    return parts


def _shortened(delta: CompletionOutput, length: int, tokenizer: Any) -> CompletionOutput:
    """The first `length` characters of a delta, with the tokens that lie wholly in them."""
    short = copy(delta)
    short.text = delta.text[:length]
    ids = list(delta.token_ids)
    while ids and len(tokenizer.decode(ids)) > length:
        ids.pop()
    short.token_ids = ids
    if delta.logprobs is not None:
        short.logprobs = delta.logprobs[: len(ids)]
    return short
