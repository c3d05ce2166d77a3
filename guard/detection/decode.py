"""Finds text that is written in a simple code inside other text, so that it can be judged like the rest.

Covered: base64 and hexadecimal runs, tag characters, percent, HTML and backslash escapes, digits for letters,
and letters written one by one. Whoever nests codes deeper than `_DEPTH` is read as far as that."""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from guard.types import Span

_DEPTH = 2
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{12,}={0,2}(?![A-Za-z0-9+/=_-])")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0x)?(?:[0-9a-fA-F]{2}[\s:]?){6,}(?![0-9A-Za-z])")
_TAGS = re.compile("[\U000e0020-\U000e007e]{3,}")
_ESCAPES = re.compile(
    r"%[0-9A-Fa-f]{2}|&(?:#\d{1,6}|#x[0-9A-Fa-f]{1,5}|[a-z]{2,8});|\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}"
)
_SPACED = re.compile(r"(?<![^\W_])[^\W\d_](?:[ \t.\-_*|/,]{1,3}[^\W\d_]){4,}(?![^\W_])")
_LEET_WORD = re.compile(r"(?=\S*[a-zA-Z])(?=\S*[013457@$!|])[\w@$!|]{3,}")
_LEET = (str.maketrans("013457@$!|", "oieastasil"), str.maketrans("013457@$!|", "oleastasll"))


Form = Literal["text", "words", "letters"]


@dataclass(frozen=True, slots=True)
class Hidden:
    """A decoded text and where it was found. Only a `text` is judged by its meaning. `words` are a reading of
    a few words that are perhaps no code at all ("3D"), `letters` were written one by one and have lost their
    word boundaries: names are looked for in both."""

    text: str
    span: Span
    form: Form = "text"


def hidden(text: str, depth: int = _DEPTH) -> Iterator[Hidden]:
    """What is written in code inside `text`; nothing for almost all ordinary text."""
    for found in _once(text):
        yield found
        if depth > 1 and found.form == "text":
            for deeper in hidden(found.text, depth - 1):
                yield Hidden(deeper.text, found.span, deeper.form)


def _once(text: str) -> Iterator[Hidden]:
    for match in _BASE64.finditer(text):
        yield from _bytes(_base64(match.group()), match)
    for match in _HEX.finditer(text):
        digits = re.sub(r"[\s:]|^0x", "", match.group())
        yield from _bytes(bytes.fromhex(digits) if len(digits) % 2 == 0 else b"", match)
    for match in _TAGS.finditer(text):
        yield Hidden("".join(chr(ord(c) - 0xE0000) for c in match.group()), Span(*match.span()))
    if _ESCAPES.search(text):
        plain = html.unescape(unquote(re.sub(r"\\u([0-9A-Fa-f]{4})|\\x([0-9A-Fa-f]{2})", _escaped, text)))
        if plain != text:
            yield Hidden(plain, Span(0, len(text)))
    for match in _SPACED.finditer(text):
        yield Hidden(re.sub(r"[^\w]|_", "", match.group()), Span(*match.span()), "letters")
    yield from _leet(text)


def _base64(run: str) -> bytes:
    try:
        digits = run.rstrip("=").replace("-", "+").replace("_", "/")
        return base64.b64decode(digits + "=" * (-len(digits) % 4))
    except (binascii.Error, ValueError):
        return b""


def _bytes(data: bytes, match: re.Match[str]) -> Iterator[Hidden]:
    """`data` as text if it is text: decodable and printable. Almost no ordinary word is."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    if len(text) >= 6 and all(c.isprintable() or c.isspace() for c in text):
        yield Hidden(text, Span(*match.span()))


def _escaped(match: re.Match[str]) -> str:
    return chr(int(match.group(1) or match.group(2), 16))


def _leet(text: str) -> Iterator[Hidden]:
    """Runs of words with digits or signs inside, read as letters, with one plain word on either side."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    coded = [i for i, (start, end) in enumerate(words) if _LEET_WORD.search(text, start, end)]
    groups: list[list[int]] = []
    for i in coded:
        if groups and i - groups[-1][-1] <= 2:
            groups[-1].append(i)
        else:
            groups.append([i])
    for group in groups:
        start, end = words[max(group[0] - 2, 0)][0], words[min(group[-1] + 2, len(words) - 1)][1]
        for table in _LEET:
            yield Hidden(text[start:end].translate(table), Span(start, end), "words")


def rot13(text: str) -> str:
    return codecs.encode(text, "rot13")
