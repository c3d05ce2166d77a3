"""Cuts text into the windows that are embedded: every word lies in some window, and none is ever
truncated."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from guard.detection.text import MARKERS, neutralise
from guard.types import Span

WIDTH = 32  # words
STRIDE = 16
_SHORTEST_SENTENCE = 3  # words; shorter ones mean nothing by themselves
# scripts without spaces between words: two characters count as a word
_DENSE = r"\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_DENSE}]{{1,2}}|[^\s{_DENSE}]{{1,48}}")
_SENTENCE_END = re.compile(
    r"[.!?\u3002\uff01\uff1f]+[\"'\u201d\u2019)\]]*(?=\s|$)|[.!?][\"\u201d](?=[,;}\]])|[\u3002\uff01\uff1f]|\n+"
)
_OPENING = re.compile(
    r"(?:(?<=\w )|(?<=: )|(?<=[\"'\u201c\u2018(\[{>]))"
    r"(?:Who|Whom|Whose|What|When|Where|Which|Why|How|Can|Could|Did|Do|Does|Has|Have|Is|Are|Was|Were|Will|Would|"
    r"Tell|Give|Name|Describe|Explain|List|Please|Write)(?= [a-z])"
)
_ABBREVIATION = re.compile(r"(?:\b[A-Z]|\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|e\.g|i\.e|No))\.$")


@dataclass(frozen=True, slots=True)
class Window:
    """One piece of text to embed, and where it lies in the judged text."""

    text: str
    span: Span


def size(text: str) -> int:
    """How many words `text` has."""
    return sum(1 for _ in _WORD.finditer(text))


def wording(text: str) -> bytes:
    """Equal for texts of the same words in the same order, whatever their case and punctuation."""
    words = " ".join(re.findall(r"\w+", text.lower()))
    return hashlib.blake2b(words.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def word_spans(text: str, start: int = 0) -> Iterator[Span]:
    """Where the words of `text` lie, from character `start` on."""
    for match in _WORD.finditer(text, start):
        yield Span(*match.span())


def windows(text: str, *, max_chars: int) -> tuple[Window, ...]:
    """Overlapping windows of 32 words over all of `text`, then each single sentence; template markers are
    blanked.

    No window has more than `max_chars` characters. A sentence inside a window is given again by itself,
    because a short question is diluted by what stands around it. Windows without a letter or digit are left
    out."""
    found: dict[tuple[int, int], Window] = {}
    plain = neutralise(text)
    for start, end in (*_sliding(plain, max_chars), *_sentences(text, max_chars)):
        piece = plain[start:end]
        if any(c.isalnum() for c in piece):
            found.setdefault((start, end), Window(" ".join(piece.split()), Span(start, end)))
    return tuple(found.values())


def _sliding(text: str, max_chars: int) -> Iterator[tuple[int, int]]:
    words = [match.span() for match in _WORD.finditer(text)]
    first = 0
    while first < len(words):
        last = first
        while last + 1 < min(first + WIDTH, len(words)) and words[last + 1][1] - words[first][0] <= max_chars:
            last += 1
        yield words[first][0], words[last][1]
        if last + 1 >= len(words):
            return
        # half a window on, or less where long words made the window short
        first += max(1, min(STRIDE, (last - first + 1) // 2))


def _sentences(text: str, max_chars: int) -> Iterator[tuple[int, int]]:
    for whole, end in sentences(text):
        # a question behind a sentence without an end is a question nevertheless
        for start in (whole, *(match.start() for match in _OPENING.finditer(text, whole + 1, end))):
            words = _WORD.findall(text, start, end)
            if _SHORTEST_SENTENCE <= len(words) <= WIDTH and end - start <= max_chars:
                yield start, end


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Spans of the sentences of `text`, without surrounding spaces; chat-template markers end a sentence."""
    edge = 0
    for segment in (*(m.span() for m in MARKERS.finditer(text)), (len(text), len(text))):
        for start, end in _split(text, edge, segment[0]):
            piece = text[start:end]
            if piece.strip():
                yield start + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))
        edge = segment[1]


def _split(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for match in _SENTENCE_END.finditer(text, start, end):
        if not _ABBREVIATION.search(text, max(start, match.end() - 8), match.end()):
            yield start, match.end()
            start = match.end()
    if start < end:
        yield start, end
