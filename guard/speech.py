"""One answer on its way out: what may be part of a forbidden text waits until it is known not to be.

Two things look at it. The automaton says how much of the text can no longer become a part of a forbidden text. A judge
of meaning looks at windows: `Extent.window` words long, one every `Extent.lookahead` words and one at the end. A word
leaves when a window that ends `lookahead` or more words behind it was judged. Windows lie at fixed places of the text,
so that it does not matter in which pieces it comes: what leaves of a stream is what leaves of a whole answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from guard.context import RequestContext
from guard.detection.literals import CONTEXT, Ending, Found, Hit
from guard.detection.windows import word_spans
from guard.errors import GuardUnavailable, LetheError
from guard.types import Span

log = logging.getLogger("lethe.guard")

OUTPUT = "output_filter"

Look = Callable[[str, int, int], Found]
"""(text, characters of it that have left, whether nothing comes behind it: `Ending`) -> what may leave."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is judged by its meaning at once, and how far the judgement is ahead of what leaves, in words."""

    window: int = 24
    lookahead: int = 8


class Judge(Protocol):
    """Judges what is said by its meaning."""

    @property
    def listens(self) -> bool:
        """Whether any target forbids what is said here by its meaning."""
        ...

    async def __call__(self, text: str, windows: Sequence[Span]) -> Sequence[Hit | None]:
        """What each window of `text` says that is forbidden.

        Raises:
            GuardUnavailable: it could not be judged.
        """
        ...


@dataclass
class Speech:
    """Text goes in by `say`, and comes out when it is safe. After a hit nothing comes out any more, unless the answer
    goes on otherwise (`resume`).

    `left` counts the characters that came out, `heard` those that went in.
    """

    look: Look
    judge: Judge | None = None
    extent: Extent = Extent()
    hit: Hit | None = None
    left: int = 0
    _text: str = field(default="", repr=False)
    _literal: int = 0  # characters that the automaton has cleared
    _meant: int = 0  # characters that windows have cleared
    _words: list[Span] = field(default_factory=list, repr=False)
    _windows: int = 0  # words up to the end of the last window

    @property
    def heard(self) -> int:
        return len(self._text)

    @property
    def text(self) -> str:
        """What has left."""
        return self._text[: self.left]

    async def say(self, text: str, *, ended: int = Ending.NOT_YET) -> str:
        """What can leave now that `text` was added; `ended` tells whether it was the last, and why.

        Raises:
            GuardUnavailable: the text could not be judged.
        """
        if self.hit is not None:
            return ""
        self._text += text
        try:
            literal = self._looked(ended)
            meant = await self._judged(bool(ended) or literal is not None)
        except LetheError:
            raise
        except Exception as error:
            log.exception("an answer could not be judged")
            raise GuardUnavailable("The answer could not be checked; try again.", reason="output") from error
        self.hit = meant or literal
        begun, self.left = self.left, max(self.left, min(self._literal, self._meant))
        return self._text[begun : self.left]

    def resume(self, left: int) -> None:
        """Another text will come behind the first `left` characters, instead of what was found in the last one."""
        self.hit, self.left, self._text = None, left, self._text[:left]
        self._literal, self._meant = min(self._literal, left), min(self._meant, left)
        self._words = [word for word in self._words if word.end <= left]
        self._windows = len(self._words) // self.extent.lookahead * self.extent.lookahead

    def _looked(self, ended: int) -> Hit | None:
        """Let the automaton look at what it has not cleared."""
        start = max(self._literal - CONTEXT, 0)
        found = self.look(self._text[start:], self._literal - start, ended)
        self._literal = start + found.safe
        return found.hit

    async def _judged(self, ended: bool) -> Hit | None:
        """Judge the windows that are complete in what the automaton has cleared, all of it when that has `ended`."""
        if self.judge is None or not self.judge.listens:
            self._meant = self._literal
            return None
        ends = self._ends(ended)
        spans = [
            Span(self._words[max(end - self.extent.window, 0)].start, self._words[end - 1].end)
            for end in ends
        ]
        hits = await self.judge(self._text[: self._literal], spans) if spans else ()
        for end, hit in zip(ends, hits, strict=True):
            if hit is not None:
                return hit
            if end > self.extent.lookahead:
                self._meant = max(self._meant, self._words[end - self.extent.lookahead - 1].end)
        if ended:
            self._meant = self._literal
        return None

    def _ends(self, ended: bool) -> list[int]:
        """Numbers of words at which windows end that were not judged yet."""
        behind = self._words[-1].end if self._words else 0
        for word in word_spans(self._text[: self._literal], behind):
            if ended or word.end < self._literal:  # else more of the word may come
                self._words.append(word)
        ends = list(range(self._windows + self.extent.lookahead, len(self._words) + 1, self.extent.lookahead))
        self._windows = ends[-1] if ends else self._windows
        if ended and len(self._words) > self._windows:
            ends.append(len(self._words))
            self._windows = len(self._words)
        return [end for end in ends if self._words[end - 1].end > self.left]


def note_hits(context: RequestContext | None, hits: Sequence[tuple[Hit, str]]) -> None:
    """Tell the request's context what was found in its answers, for whom, and what was done about it."""
    if context is not None and hits:
        context.applied += [OUTPUT] if OUTPUT not in context.applied else []
        for hit, action in hits:
            what = "meaning" if hit.meant else "name" if hit.named else "answer"
            context.events.append(
                {"event": "output", "target": hit.target_id, "said": what, "action": action}
            )
