"""Text as the lexical detector reads it: folded, with a map from every folded character back to the original.

Folding undoes what hides a name from a string search without hiding it from a reader or a model:
compatibility forms, case, look-alike letters, diacritics, invisible and tag characters, and punctuation
between words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from guard.detection.lookalikes import LOOKALIKES
from guard.types import Span

_MARKER_WORDS = (
    r"im_start|im_end|im_sep|user|assistant|system|tool|end|eot_id|eom_id|eot|start_header_id|end_header_id|"
    r"begin_of_text|end_of_text|endoftext|start_of_turn|end_of_turn|start|message|channel|return|pad|bos|eos|"
    r"python_tag|tool_call|tool_response|separator"
)
MARKERS = re.compile(
    rf"<\|(?:{_MARKER_WORDS})\|>(?:(?:system|user|assistant|tool|model)\b(?=\s|<))?"
    r"|<(?:start_of_turn|end_of_turn)>(?:(?:user|model)\b(?=\s))?|</?s>|<bos>|<eos>|<pad>"
    r"|\[/?INST\]|<</?SYS>>|</?tool_(?:call|response)>"
)
"""Special tokens of common chat templates, with the role that follows. Only known words: a name that a client
puts between such brackets stays text."""

APOSTROPHES = frozenset("'`\u00b4\u2018\u2019\u201b\u02b9\u02bb\u02bc\u2032\uff07")
_DIACRITICS = re.compile(
    r"[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]"
)
_WITHOUT_SPACES = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_NO_SPACES = re.compile(f"[{_WITHOUT_SPACES}]")
_BEGINNING = re.compile(rf"(?:\A|(?<=[ \n{_WITHOUT_SPACES}])|(?=[{_WITHOUT_SPACES}]))[^ ]", re.DOTALL)
_IGNORED = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0\u2800\u00ad")
_TAGS = range(0xE0000, 0xE0080)
_PLAIN = re.compile(r"[\s!-&(-_a-~]*", re.ASCII)  # ASCII without apostrophes
_PLAIN_WORD = re.compile(r"[a-z0-9]+")
_SHORT = 400  # characters; what is made of the earlier turns of a conversation is folded again with each turn
_VARIATION = (range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0))


@dataclass(frozen=True, slots=True)
class Folded:
    """`text`: words of folded letters and digits, one space between two. Character i of it comes from the original
    character `starts[i]`."""

    text: str
    starts: tuple[int, ...]

    def span(self, start: int, end: int) -> Span:
        """The original characters that the folded characters [start, end) stand for (end > start)."""
        return Span(self.starts[start], self.starts[end - 1] + 1)


@lru_cache(maxsize=8192)
def _fold_char(char: str) -> str | None:
    """What one character folds to: letters and digits, "" for an invisible one, "'" , or None for a
    separator."""
    if char in APOSTROPHES:
        return "'"
    code = ord(char)
    if char in _IGNORED or code in _TAGS or any(code in block for block in _VARIATION):
        return ""
    category = unicodedata.category(char)
    if category in ("Cf", "Cs"):
        return ""
    if category == "Cc" and not char.isspace():
        return ""
    if char in LOOKALIKES:
        return LOOKALIKES[char]
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", char).casefold())
    out = "".join(LOOKALIKES.get(c, c) for c in _DIACRITICS.sub("", plain))
    kept = "".join(c for c in out if unicodedata.category(c)[0] in "LNM")
    if kept:
        return kept
    return "" if category == "Mn" else None


def fold(text: str) -> Folded:
    """Folded words of `text`; apostrophes and possessive endings are dropped ("O'Brien's" -> "obrien")."""
    return _fold_short(text) if len(text) <= _SHORT else _fold(text)


@lru_cache(maxsize=2048)
def _fold_short(text: str) -> Folded:
    return _fold(text)


def _fold(text: str) -> Folded:
    return _fold_plain(text) if _PLAIN.fullmatch(text) else _fold_any(text)


def _fold_plain(text: str) -> Folded:
    """The same as `_fold_any`, where nothing has to be looked up or dropped: answers are judged with every token."""
    words, starts, end = list[str](), list[int](), 0
    for word in _PLAIN_WORD.finditer(text.lower()):
        starts += [end] if words else []
        begin, end = word.span()
        starts += range(begin, end)
        words.append(word.group())
    return Folded(" ".join(words), tuple(starts))


def plain_words(text: str, start: int) -> list[str] | None:
    """The words of `fold(text)` from the original character `start` on, of a word that lies across it the rest; None
    where it takes more than lower case."""
    return _PLAIN_WORD.findall(text.lower(), start) if _PLAIN.fullmatch(text) else None


def _fold_any(text: str) -> Folded:
    chars: list[str] = []
    at: list[int] = []
    for i, char in enumerate(text):
        folded = _fold_char(char)
        if folded is None:
            if chars and chars[-1] != " ":
                chars.append(" ")
                at.append(i)
        else:
            chars.extend(folded)
            at.extend([i] * len(folded))
    return _tidy("".join(chars), at)


_POSSESSIVE = re.compile(r"'s(?= |$)|'")


def _tidy(raw: str, at: list[int]) -> Folded:
    """Drop possessives and apostrophes, and collapse the spaces that this leaves."""
    dropped = bytearray(len(raw))
    for match in _POSSESSIVE.finditer(raw):
        dropped[match.start() : match.end()] = b"\x01" * len(match.group())
    out: list[str] = []
    starts: list[int] = []
    for i, char in enumerate(raw):
        if not dropped[i] and not (char == " " and (not out or out[-1] == " ")):
            out.append(char)
            starts.append(at[i])
    if out and out[-1] == " ":
        out.pop()
        starts.pop()
    return Folded("".join(out), tuple(starts))


def bounded(text: str, start: int, end: int) -> bool:
    """Whether the folded piece [start, end) begins and ends at word boundaries (scripts without spaces:
    always)."""
    return _edge(text, start - 1, start) and _edge(text, end, end - 1)


def beginnings(text: str) -> Iterator[int]:
    """Where in folded text a piece may begin that is `bounded` in front."""
    return (match.start() for match in _BEGINNING.finditer(text))


def _edge(text: str, outside: int, inside: int) -> bool:
    if not 0 <= outside < len(text) or text[outside] in " \n":
        return True
    return bool(_NO_SPACES.match(text[outside]) or _NO_SPACES.match(text[inside]))


def separates(text: str) -> bool:
    """Whether `text` holds something that ends a word."""
    return any(_fold_char(char) is None for char in text)


def undecided(text: str) -> int:
    """Where the "s" of a possessive ending stands with which `text` ends; it is one only if no letter follows. The
    length of `text` where it ends otherwise."""
    ends = ((i, folded) for i in range(len(text) - 1, -1, -1) if (folded := _fold_char(text[i])) != "")
    last, letter = next(ends, (0, None))
    if letter == "s" and (next(ends, (0, None))[1] or " ")[-1] == "'":
        return last
    return len(text)


def neutralise(text: str) -> str:
    """`text` with chat-template markers replaced by as many spaces, so that offsets stay true."""
    return MARKERS.sub(lambda match: " " * len(match.group()), text)
