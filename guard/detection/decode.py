"""Finds text that is written in code inside other text, so that it can be judged like the rest.

Each layer of code is taken off by the surest readers that find anything: of characters that are written otherwise
(codes.RESPELT), of codes that their alphabet gives away (codes.CODED), of ciphers that language gives away (ciphers).
What they read is put in the place of its code, with the text around it, because a name may stand outside of the code
and the question inside.
Bounds: `DEPTH` layers, `LONGEST` characters in each and `PLACES` places of code in each; what lies beyond them, and
what looks like code after the last layer, is reported as unread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from guard.detection.ciphers import ciphers, unreadable
from guard.detection.codes import CODED, RESPELT, Patch, joined
from guard.detection.sounds import sounded
from guard.types import Span

DEPTH = 4
LONGEST = 200_000
PLACES = 20_000
_NEAR = 24  # characters on either side of a word with signs in it that are read as it is
CONTEXT = 250  # characters before and behind a decoded place that are judged with it
_FEW = 0.2  # of a text
_ONE_BY_ONE = re.compile(r"(?<![^\W_])[^\W\d_](?![^\W_])(?:[ \t.\-_*|/,]{1,3}[^\W\d_](?![^\W_])){4,}+")
_SIGNED = re.compile(r"(?<!\S)(?=\S{0,64}?[a-zA-Z])(?=\S{0,64}?[013457@$!|])[\w@$!|'.,?-]{3,64}(?!\S)")
_LEET = (str.maketrans("013457@$!|", "oieastasil"), str.maketrans("013457@$!|", "oleastasll"))

Form = Literal["text", "words", "letters"]
Reader = Callable[[str], Iterator[Patch]]
STEPS: tuple[tuple[Reader, ...], ...] = (RESPELT, CODED, (ciphers,))


@dataclass(frozen=True, slots=True, eq=False)
class Hidden:
    """A decoded text; its character i stands for the characters `starts[i]:ends[i]` of the text it was found in.

    Only a `text` is judged by its meaning. `words` are a reading of a few words that are perhaps no code at all
    ("3D"), `letters` have lost their word boundaries: names are looked for in both."""

    text: str
    starts: np.ndarray
    ends: np.ndarray
    form: Form = "text"

    def span(self, start: int, end: int) -> Span:
        """Where the decoded characters [start, end) stand (end > start)."""
        return Span(
            int(self.starts[start:end].min()), int(self.ends[start:end].max())
        )  # it may run backwards

    def part(self, start: int, end: int) -> Hidden:
        return Hidden(self.text[start:end], self.starts[start:end], self.ends[start:end], self.form)


@dataclass(frozen=True, slots=True)
class Decoded:
    """What is written in code inside a text, and where it looks like code that could not be read."""

    views: tuple[Hidden, ...] = ()
    unread: tuple[Span, ...] = ()


def decode(text: str, *, names: bool = True) -> Decoded:
    """All readings of what is written in code inside `text`; none for almost all ordinary text. Where no `names` are
    looked for, only those that are judged by their meaning, and nothing is unread."""
    layer = _identity(text[:LONGEST])
    views = [*_for_names(layer)] if names else []
    unread = [Span(LONGEST, len(text))] if len(text) > LONGEST else []
    for depth in range(DEPTH):
        for readers in STEPS:
            patches, beyond = _patches(layer.text, readers)
            unread += [layer.span(start, end) for start, end in beyond]
            if patches:
                break
        else:
            break
        covered = sum(patch.end - patch.start for patch in patches)
        if not depth and readers is not STEPS[-1] and covered < _FEW * len(layer.text):
            views += _read_by(layer, STEPS[-1])  # a few signs of a cipher may look like those of a code
        found = [_on(layer, other) for patch in patches for other in patch.others]
        layer, touched = _rewritten(layer, patches)
        found += [layer.part(start, end) for start, end in _around(touched, len(layer.text))]
        views += [view for of in found for view in (of, *(_for_names(of) if names else ()))]
    if not names:
        return Decoded(tuple(views))
    unread += [layer.span(start, end) for start, end in unreadable(layer.text)]
    return Decoded(tuple(views), tuple(sorted(unread, key=lambda span: (span.start, span.end))))


def _read_by(layer: Hidden, readers: Iterable[Reader]) -> Iterator[Hidden]:
    """The readings of a layer by some readers alone."""
    patches, _ = _patches(layer.text, readers)
    rewritten, touched = _rewritten(layer, patches)
    return (rewritten.part(start, end) for start, end in _around(touched, len(rewritten.text)))


def _identity(text: str) -> Hidden:
    return Hidden(text, np.arange(len(text)), np.arange(1, len(text) + 1))


def _patches(text: str, readers: Iterable[Reader]) -> tuple[list[Patch], list[tuple[int, int]]]:
    """What the readers find, in order of place, and what is beyond their bounds; of two claims on one place the
    first counts."""
    taken = bytearray(len(text))
    found: list[Patch] = []
    beyond: list[tuple[int, int]] = []
    for reader in readers:
        for patch in reader(text):
            if len(found) == PLACES:
                return sorted(found, key=lambda one: one.start), [(0, len(text))]
            if taken.find(1, patch.start, patch.end) >= 0:
                continue
            taken[patch.start : patch.end] = b"\x01" * (patch.end - patch.start)
            if patch.unread:
                beyond.append((patch.start, patch.end))
            else:
                found.append(patch)
    return sorted(found, key=lambda one: one.start), beyond


def _on(layer: Hidden, patch: Patch) -> Hidden:
    """What a patch reads, with its places in the text that `layer` was found in."""
    if patch.starts is None or patch.ends is None:
        span, length = layer.span(patch.start, patch.end), len(patch.text)
        return Hidden(patch.text, np.full(length, span.start), np.full(length, span.end))
    starts, ends = np.array(patch.starts, np.int64), np.array(patch.ends, np.int64)
    return Hidden(patch.text, layer.starts[starts], layer.ends[ends - 1])


def _rewritten(layer: Hidden, patches: Sequence[Patch]) -> tuple[Hidden, list[tuple[int, int]]]:
    """The layer with every patch in its place, and where in it they are now; the layer itself without any."""
    if not patches:
        return layer, []
    pieces: list[Hidden] = []
    touched: list[tuple[int, int]] = []
    at = length = 0
    for patch in patches:
        before, read = layer.part(at, patch.start), _on(layer, patch)
        start = length + len(before.text)
        length = start + len(read.text)
        touched.append((start, length))
        pieces += [before, read]
        at = patch.end
    pieces.append(layer.part(at, len(layer.text)))
    starts = np.concatenate([piece.starts for piece in pieces])
    ends = np.concatenate([piece.ends for piece in pieces])
    return Hidden("".join(piece.text for piece in pieces), starts, ends), touched


def _around(touched: Iterable[tuple[int, int]], length: int) -> Iterator[tuple[int, int]]:
    """The places with `CONTEXT` around them, joined where they overlap."""
    wide = ((max(start - CONTEXT, 0), min(end + CONTEXT, length)) for start, end in touched)
    return _joined(wide, 0)


def _joined(places: Iterable[tuple[int, int]], gap: int) -> Iterator[tuple[int, int]]:
    """Places in their order, those together that are no further apart than `gap`."""
    begin, end = None, 0
    for first, last in places:
        if begin is not None and first - end > gap:
            yield begin, end
            begin = first
        begin, end = first if begin is None else begin, max(end, last)
    if begin is not None:
        yield begin, end


def _for_names(view: Hidden) -> Iterator[Hidden]:
    """Letters one by one or without spaces, joined; words with signs inside, in both ways of reading them; and words
    of other scripts as they sound."""
    for read in sounded(view.text):
        texts, starts, ends = zip(*read.parts, strict=True)
        counts = [len(text) for text in texts]
        places = (
            np.repeat(view.starts[list(starts)], counts),
            np.repeat(view.ends[np.array(ends) - 1], counts),
        )
        yield Hidden("".join(texts), *places, "letters" if read.joined else "words")
    apart = (match.span() for match in _ONE_BY_ONE.finditer(view.text))
    for start, end in (*apart, *joined(view.text)):
        at = np.array([i for i in range(start, end) if view.text[i].isalpha()])
        yield Hidden("".join(view.text[i] for i in at), view.starts[at], view.ends[at], "letters")
    words = [match.span() for match in _SIGNED.finditer(view.text)]
    near = ((max(start - _NEAR, 0), min(end + _NEAR, len(view.text))) for start, end in words)
    for start, end in _joined(near, 0):  # half of a name may be plain
        for table in _LEET:
            yield Hidden(
                view.text[start:end].translate(table), view.starts[start:end], view.ends[start:end], "words"
            )
