"""An answer on its way out: deltas of the engine wait with their tokens and likelihoods until their text may leave."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput

from guard.detection.literals import Hit
from guard.engine.answers import cut
from guard.engine.calls import Call
from guard.engine.reading import encode
from guard.errors import content_filter
from guard.speech import Speech
from guard.types import Reply

_BROKEN = "\ufffd"  # what a part of a character decodes to


@dataclass
class Sample:
    """One choice of an answer: `waiting` deltas with the number of characters up to their ends."""

    speech: Speech
    tokenizer: Any
    detokenized: bool
    waiting: deque[tuple[CompletionOutput, int]] = field(default_factory=deque)
    ended: bool = False
    _heard: int = 0
    _ids: list[int] = field(default_factory=list)

    async def take(self, delta: CompletionOutput) -> CompletionOutput | None:
        """What can leave now that `delta` has come, as one delta; None: nothing."""
        text = delta.text if self.detokenized else self._decoded(delta)
        self._heard += len(text)
        self.waiting.append((delta, self._heard))
        await self.speech.say(text, ended=delta.finished())
        if self.speech.hit is not None:
            return self._cut()
        safe = []
        while self.waiting and self.waiting[0][1] <= self.speech.left:
            safe.append(self.waiting.popleft()[0])
        self.ended = bool(safe) and safe[-1].finished()
        return _joined(safe)

    def _cut(self) -> CompletionOutput:
        """The last delta of an answer that ends in front of a forbidden text."""
        self.ended = True
        safe, start = [], self._heard
        for delta, end in self.waiting:
            start = end - len(delta.text)
            if end <= self.speech.left:
                safe.append(delta)
            elif start < self.speech.left and self.detokenized:
                safe.append(_shortened(delta, self.speech.left - start, self.tokenizer))
        last = copy(_joined(safe) or _shortened(self.waiting[0][0], 0, self.tokenizer))
        last.finish_reason, last.stop_reason = "stop", None
        return last

    def _decoded(self, delta: CompletionOutput) -> str:
        """The text of a delta that the engine was told not to detokenize, as far as its characters are whole."""
        self._ids.extend(delta.token_ids)
        whole: str = self.tokenizer.decode(self._ids)
        return (whole if delta.finished() else whole.rstrip(_BROKEN))[self._heard :]


class Speaking:
    """The samples of one answer to `call`. `listen` opens the speech of a sample, `reply` is what to say where
    nothing else can be said."""

    def __init__(
        self, call: Call, listen: Callable[[], Speech], reply: Callable[[Hit], Reply], tokenizer: Any
    ) -> None:
        self._call = call
        self._listen = listen
        self._reply = reply
        self._tokenizer = tokenizer
        self._samples: dict[int, Sample] = {}
        self._withheld: RequestOutput | None = None
        self.last: RequestOutput | None = None
        self.hits: list[Hit] = []

    @property
    def over(self) -> bool:
        """Whether every choice has ended."""
        return len(self._samples) == self._call.params.n and all(s.ended for s in self._samples.values())

    async def take(self, output: RequestOutput) -> RequestOutput | None:
        """What can leave now that `output` has come; None: nothing."""
        safe = []
        for delta in output.outputs:
            sample = self._samples.setdefault(
                delta.index, Sample(self._listen(), self._tokenizer, self._call.params.detokenize)
            )
            if sample.ended:
                continue
            released = await sample.take(delta)
            if sample.speech.hit is not None:
                self.hits.append(sample.speech.hit)
                released = self._finish(sample, released)
            if released is not None:
                safe.append(released)
        head, self._withheld = self._withheld or output, None
        if not safe:
            self._withheld = head if self.last is None else None
            return None
        if len(safe) == len(output.outputs) and all(
            a is b for a, b in zip(safe, output.outputs, strict=True)
        ):
            shown = output
        else:
            shown = copy(output)
            shown.outputs, shown.finished = safe, self.over
        if self.last is None:  # what the first output tells of the prompt may have come with one that waited
            shown.prompt_logprobs = head.prompt_logprobs
        self.last = shown
        return shown

    def end(self) -> RequestOutput:
        """The end of an answer of which something has left: the choices that have not ended stop there."""
        assert self.last is not None
        return cut(self.last, self._call.params, {i for i, s in self._samples.items() if s.ended})

    def _finish(self, sample: Sample, last: CompletionOutput | None) -> CompletionOutput | None:
        """The last delta of a choice that was cut: where nothing of it has left, the reply takes its place."""
        context, reply = self._call.context, self._reply(self.hits[-1])
        if last is None:
            return None
        if context is not None and context.must_parse:
            last.finish_reason = "content_filter"  # half of a structure must not look whole
        elif sample.speech.left == 0:
            last.text, last.token_ids = reply.text, encode(reply.text, self._tokenizer)
            if last.logprobs is not None:
                last.logprobs = [{t: Logprob(0.0, rank=1)} for t in last.token_ids]
            last.finish_reason = "stop" if reply.style == "natural" else "content_filter"
        return last


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
