"""Finds text that is written in a simple code inside other text, so that it can be judged like the rest.

Covered: base64 and hexadecimal runs, tag characters, percent, HTML and backslash escapes, digits for letters,
and letters written one by one. Whoever nests codes deeper than `_DEPTH` is read as far as that."""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from guard.types import Span

_DEPTH = 2
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{12,}={0,2}(?![A-Za-z0-9+/=_-])")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0x)?(?:[0-9a-fA-F]{2}[\s:]?){6,}(?![0-9A-Za-z])")
_TAGS = re.compile("[\U000e0020-\U000e007e]{3,}")
# One character each where that can be told: a letter of ASCII alone, longer runs of bytes or surrogates together.
_ESCAPE = re.compile(
    r"%[0-7][0-9A-Fa-f]|(?:%[89A-Fa-f][0-9A-Fa-f])+|&(?:#\d{1,6}|#x[0-9A-Fa-f]{1,5}|[a-z]{2,8});"
    r"|(?:\\u[dD][89A-Fa-f][0-9A-Fa-f]{2})+|\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}"
)
_SPACED = re.compile(r"(?<![^\W_])[^\W\d_](?:[ \t.\-_*|/,]{1,3}[^\W\d_]){4,}(?![^\W_])")
_LEET_WORD = re.compile(r"(?=\S*[a-zA-Z])(?=\S*[013457@$!|])[\w@$!|]{3,}")
_LEET = (str.maketrans("013457@$!|", "oieastasil"), str.maketrans("013457@$!|", "oleastasll"))


Form = Literal["text", "words", "letters"]


@dataclass(frozen=True, slots=True)
class Hidden:
    """A decoded text; its character i stands for the characters `starts[i]:ends[i]` of the text it was found in.

    Only a `text` is judged by its meaning. `words` are a reading of a few words that are perhaps no code at all
    ("3D"), `letters` were written one by one and have lost their word boundaries: names are looked for in both."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]
    form: Form = "text"

    def span(self, start: int, end: int) -> Span:
        """Where the decoded characters [start, end) stand (end > start)."""
        return Span(self.starts[start], self.ends[end - 1])


def hidden(text: str, depth: int = _DEPTH) -> Iterator[Hidden]:
    """What is written in code inside `text`; nothing for almost all ordinary text."""
    for found in _once(text):
        yield found
        if depth > 1 and found.form == "text":
            for deeper in hidden(found.text, depth - 1):
                starts = [found.starts[i] for i in deeper.starts]
                ends = [found.ends[i - 1] for i in deeper.ends]
                yield Hidden(deeper.text, starts, ends, deeper.form)


def _once(text: str) -> Iterator[Hidden]:
    for match in _BASE64.finditer(text):
        yield from _bytes(_base64(match.group()), match)
    for match in _HEX.finditer(text):
        digits = re.sub(r"[\s:]|^0x", "", match.group())
        yield from _bytes(bytes.fromhex(digits) if len(digits) % 2 == 0 else b"", match)
    for match in _TAGS.finditer(text):
        yield _letter_by_letter("".join(chr(ord(c) - 0xE0000) for c in match.group()), match.start())
    yield from _unescaped(text)
    for match in _SPACED.finditer(text):
        at = [i for i in range(*match.span()) if text[i].isalpha()]
        yield Hidden("".join(text[i] for i in at), at, [i + 1 for i in at], "letters")
    yield from _leet(text)


def _letter_by_letter(text: str, start: int, form: Form = "text") -> Hidden:
    """A decoded text with as many characters as its code."""
    return Hidden(text, range(start, start + len(text)), range(start + 1, start + 1 + len(text)), form)


def _whole(text: str, match: re.Match[str]) -> Hidden:
    """A decoded text of whose characters no one can be told from the others in the code."""
    return Hidden(text, [match.start()] * len(text), [match.end()] * len(text))


def _unescaped(text: str) -> Iterator[Hidden]:
    """`text` with every escape replaced by its character, where there is one."""
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    last = 0
    for match in _ESCAPE.finditer(text):
        char = _unescape(match.group())
        if char == match.group():
            continue
        for part, (start, end) in ((text[last : match.start()], (last, 0)), (char, match.span())):
            parts.append(part)
            starts.extend([start] * len(part) if end else range(start, start + len(part)))
            ends.extend([end] * len(part) if end else range(start + 1, start + 1 + len(part)))
        last = match.end()
    if last:
        parts.append(text[last:])
        starts.extend(range(last, len(text)))
        ends.extend(range(last + 1, len(text) + 1))
        yield Hidden("".join(parts), starts, ends)


def _unescape(escape: str) -> str:
    if escape.startswith("%"):
        return unquote(escape)
    if escape.startswith("&"):
        return html.unescape(escape)
    units = re.sub(r"\\[ux]", " ", escape).split()
    return b"".join(int(u, 16).to_bytes(2, "little") for u in units).decode("utf-16-le", "replace")


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
        yield _whole(text, match)


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
            yield _letter_by_letter(text[start:end].translate(table), start, "words")


def rot13(text: str) -> str:
    return codecs.encode(text, "rot13")
