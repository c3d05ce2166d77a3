"""Conversations as far as they were heard, so that a request that goes on with one costs what is new in it.

Kept for each is what it takes to hear more (guard.detection.conversation.Talk: the last words, parts of names, made-up
names), and which of the texts put together from its turns something was found in. That is text of prompts; it is in
memory only, and of the latest conversations.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from guard.detection.conversation import TURNS, Story, Talk
from guard.detection.units import Unit, units
from guard.types import Prompt

_KEPT = 1_024  # conversations


@dataclass(frozen=True, slots=True)
class Read:
    """The `units` of a prompt. Of those the `lasting` ones are also units of every prompt that goes on with it: `kept`
    is where it was, and what it takes to go on there; None: nothing is kept of it."""

    units: tuple[Unit, ...]
    lasting: tuple[Unit, ...] = ()
    kept: tuple[Hashable, Talk] | None = None


class Heard:
    """For one gate; thread-safe."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, tuple[Talk, tuple[Unit, ...]]] = OrderedDict()

    def read(self, prompt: Prompt, sort: Hashable) -> Read:
        """The units of the prompt, but for those of turns that were heard in another of its `sort` and in which nothing
        was found. Of conversations beyond `TURNS` nothing is kept: there, what counts is what was said lately."""
        story = Story.of(prompt)
        short = len(story.turns) <= TURNS
        talk, lasting = self._latest([(mark, sort) for mark in story.marks] if short else [])
        lasting = (*lasting, *(Unit(joined.text, joined=joined) for joined in talk.hear(story)))
        kept = ((story.marks[-1], sort), talk.copy()) if story.turns and short else None
        rest = (Unit(joined.text, joined=joined) for joined in talk.rest(story.asides))
        return Read((*units(prompt), *lasting, *rest), lasting, kept)

    def keep(self, read: Read, found: Callable[[Unit], bool]) -> None:
        """That the prompt was judged; `found` tells whether anything was found in a unit."""
        if read.kept is None:
            return
        mark, talk = read.kept
        hits = tuple(filter(found, read.lasting))
        with self._lock:
            self._kept[mark] = talk, hits
            self._kept.move_to_end(mark)
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)

    def _latest(self, marks: list[tuple[bytes, Hashable]]) -> tuple[Talk, tuple[Unit, ...]]:
        """The longest part of the conversation that was heard, to go on with."""
        with self._lock:
            for mark in reversed(marks):
                if mark in self._kept:
                    self._kept.move_to_end(mark)
                    talk, hits = self._kept[mark]
                    return talk.copy(), hits
        return Talk(self._max_chars), ()


class Once:
    """The same for texts that are judged by their meaning alone, each by itself: nothing is kept."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars

    def read(self, prompt: Prompt, sort: Hashable) -> Read:
        """The units of the prompt, in which no names are looked for."""
        told = Talk(self._max_chars).hear(Story.of(prompt), names=False)
        own = (replace(unit, named=False) for unit in units(prompt))
        return Read((*own, *(Unit(joined.text, joined=joined) for joined in told)))

    def keep(self, read: Read, found: Callable[[Unit], bool]) -> None:
        """Nothing."""
