"""What of a prompt is judged by itself: each message, each text beside the messages, each text that is put together
from several turns. What stands elsewhere in the prompt changes nothing of the judgement on a unit, so a later request
of the same conversation finds it made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from guard.detection.conversation import Form as JoinedForm
from guard.detection.conversation import Joined
from guard.detection.decode import Form as DecodedForm
from guard.detection.decode import Hidden, decode
from guard.detection.text import MARKERS, Folded, fold, neutralise
from guard.detection.windows import Window, size, windows
from guard.turns import located
from guard.types import Prompt, Span

SHORTEST = 3  # words of an aside that means something by itself


@dataclass(frozen=True)
class Unit:
    """A text that begins at `start` of the prompt, or is `joined` from parts of it, or has no place in it. Where it is
    not `named`, no names are looked for in it."""

    text: str
    start: int | None = None
    joined: Joined | None = None
    named: bool = True

    @property
    def aside(self) -> bool:
        return self.start is None and self.joined is None

    @cached_property
    def key(self) -> bytes:
        """Equal for units on which every judgement is the same."""
        made = self.joined
        sort = (made.form, made.windows, made.seams) if made else self.aside
        return hashlib.blake2b(
            f"{sort}\x00{self.text}".encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()

    def places(self, span: Span) -> tuple[Span, ...]:
        """Where characters of the unit stand in the prompt."""
        if self.joined:
            return self.joined.spans(span.start, span.end)
        return () if self.start is None else (Span(self.start + span.start, self.start + span.end),)

    def pieces(self, number: int) -> Iterator[Piece]:
        """Its own text, then what is encoded inside of it."""
        if self.joined:
            yield Piece(self.text, number, self)
            return
        decoded = decode(
            neutralise(self.text), names=self.named
        )  # the bars of a template's markers are no letters
        yield Piece(self.text, number, self, unread=decoded.unread)
        for found in decoded.views:
            yield Piece(found.text, number, self, found)


@dataclass(frozen=True)
class Piece:
    """A text to judge: that of a unit, or a `decoded` one inside of it. `unread` looks like code in it and could not
    be read."""

    text: str
    number: int
    unit: Unit
    decoded: Hidden | None = None
    unread: tuple[Span, ...] = ()

    @property
    def form(self) -> DecodedForm | JoinedForm:
        """What decoding or joining says of it (decode.Hidden, conversation.Joined)."""
        made = self.decoded or self.unit.joined
        return made.form if made else "text"

    @cached_property
    def folded(self) -> Folded:
        return fold(neutralise(self.text))  # a name that two turns share is still a name

    def span(self, span: Span) -> Span:
        """Where characters of it stand in its unit."""
        return self.decoded.span(span.start, span.end) if self.decoded else span

    def windows(self, max_chars: int) -> tuple[Window, ...]:
        """The parts of it that are judged by their meaning. An aside of a word or two has none: it is a key, a
        name or an answer to choose."""
        if self.unit.aside and size(self.text) < SHORTEST:
            return ()
        if self.unit.joined is None:
            return windows(self.text, max_chars=max_chars)
        return tuple(Window(self.text[span.start : span.end], span) for span in self.unit.joined.windows)


def units(prompt: Prompt) -> Iterator[Unit]:
    """Every character of the prompt that says something is in one unit: a message, or a stretch between messages. Then
    come the asides. What is put together from several turns is apart (guard.detection.heard)."""
    cursor = 0
    for start, end in (*_messages(prompt), (len(prompt.text),) * 2):
        between = prompt.text[cursor:start]
        if any(char.isalnum() for char in neutralise(between)):
            yield Unit(between, cursor)
        if start < end:
            yield Unit(prompt.text[start:end], start)
        cursor = end
    yield from (Unit(text) for text in prompt.asides if text)


def _messages(prompt: Prompt) -> Iterator[tuple[int, int]]:
    """Where messages stand between the template's own marks. Of a message that the template leaves out, the text may
    stand inside of another one: to cut there would hide what goes over the edge."""
    text = prompt.text
    marks = [match.span() for match in MARKERS.finditer(text)]
    opened, closed = {end for _, end in marks}, {start for start, _ in marks}
    for start, end, _ in located(text, prompt.messages):
        before, behind = start, end
        while before and text[before - 1].isspace():
            before -= 1
        while behind < len(text) and text[behind].isspace():
            behind += 1
        if (before == 0 or before in opened) and (behind == len(text) or behind in closed):
            yield start, end
