"""Codes that can be told by their alphabet: bytes written as base64, base32 or numbers, escapes, Morse, Braille,
tag characters, and letters written one by one. Each reader finds the places of its code in a text and reads them."""

from __future__ import annotations

import base64
import binascii
import codecs
import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from urllib.parse import unquote

import numpy as np

from guard.detection.language import Characters
from guard.detection.segments import segmented


@dataclass(frozen=True, eq=False)
class Patch:
    """Characters [start, end) of a text, read as `text`.

    Character i of that stands for the characters `starts[i]:ends[i]`, or for all of them where that cannot be
    told (None). `others` are further readings of the same place, which are judged beside it. `unread`: it is
    too long to be read within bounds."""

    start: int
    end: int
    text: str
    starts: Sequence[int] | np.ndarray | None = None
    ends: Sequence[int] | np.ndarray | None = None
    others: tuple[Patch, ...] = ()
    unread: bool = False


def letter_by_letter(start: int, text: str) -> Patch:
    """As many characters as the code has."""
    end = start + len(text)
    return Patch(start, end, text, range(start, end), range(start + 1, end + 1))


# --- the same characters, written otherwise

_LONGEST = 4  # letters that one compatibility character may stand for; longer ones are symbols
_NEAR = 32  # characters between odd ones that are replaced together
_TAG_RUN = re.compile("[\U000e0020-\U000e007e]{3,}")
# A letter of ASCII alone, so that its place is its own; longer runs of bytes or surrogates together.
_ESCAPE = re.compile(
    r"%[0-7][0-9A-Fa-f]|(?:%[89A-Fa-f][0-9A-Fa-f]){1,8}|&(?:#\d{1,6}|#x[0-9A-Fa-f]{1,5}|[A-Za-z]{2,8});"
    r"|(?:\\u[dD][89A-Fa-f][0-9A-Fa-f]{2}){1,2}|(?:\\u|%u)[0-9A-Fa-f]{4}|U\+[0-9A-Fa-f]{4}(?![0-9A-Za-z])|\\u\{[0-9A-Fa-f]{1,5}\}"
    r"|\\U000[0-9A-Fa-f]{5}|(?:\\x[89A-Fa-f][0-9A-Fa-f]){2,8}|\\x[0-9A-Fa-f]{2}|\\[0-3][0-7]{2}"
)


@lru_cache(maxsize=8192)
def _respelt(char: str) -> str:
    """The letters or digits that a compatibility character stands for, "" for an invisible one, else itself."""
    category = unicodedata.category(char)
    if category in ("Cf", "Cs", "Cn") or char in "\u034f\u115f\u1160\u3164\uffa0\ufe0e\ufe0f":
        return ""
    plain = _BOXED.get(char) or unicodedata.normalize("NFKC", char)
    return plain if len(plain) <= _LONGEST and plain.isalnum() and not char.isascii() else char


def _boxed() -> dict[str, str]:
    """Letters in boxes, bubbles and flags, which compatibility normalisation leaves as symbols."""
    starts = (0x1F130, 0x1F150, 0x1F170, 0x1F1E6)
    return {chr(start + i): chr(ord("a") + i) for start in starts for i in range(26)}


_BOXED = _boxed()


def tags(text: str) -> Iterator[Patch]:
    """Letters in the tag block, which nobody sees and models read."""
    for match in _TAG_RUN.finditer(text):
        yield letter_by_letter(match.start(), "".join(chr(ord(c) - 0xE0000) for c in match.group()))


def characters(text: str) -> Iterator[Patch]:
    """Styled letters, invisible characters beside letters, and heaps of accents; near ones together."""
    if text.isascii():
        return
    chars = Characters(text)
    spelt = np.array([_respelt(char) for char in chars.distinct], object)
    accents = np.array(["\u0300" <= char <= "\u036f" for char in chars.distinct])[chars.places]
    edges = np.concatenate([[False], accents, [False]])
    heaped = accents & (edges[:-2] | edges[2:])  # one accent belongs to its letter, several are a disguise
    odd = (spelt != np.array(list(chars.distinct), object))[chars.places] | heaped
    at = np.flatnonzero(odd)
    for group in np.split(at, np.flatnonzero(np.diff(at) > _NEAR) + 1) if len(at) else ():
        start, end = int(group[0]), int(group[-1]) + 1
        parts = np.where(heaped[start:end], "", spelt[chars.places[start:end]])
        read = "".join(parts)
        # an invisible character matters beside letters only; emoji have their own
        if any(map(str.isalnum, text[max(start - 1, 0) : end + 1] + read)):
            places = np.repeat(np.arange(start, end), [len(part) for part in parts])
            yield Patch(start, end, read, places, places + 1)


def escapes(text: str) -> Iterator[Patch]:
    """Percent, HTML and backslash escapes; neighbouring ones together."""
    run: list[tuple[int, int, str]] = []
    for match in _ESCAPE.finditer(text):
        char = _unescape(match.group())
        if char == match.group():
            continue
        if run and run[-1][1] != match.start():
            yield _run(run)
            run = []
        run.append((*match.span(), char))
    if run:
        yield _run(run)


def _run(found: Sequence[tuple[int, int, str]]) -> Patch:
    starts = [start for start, _, text in found for _ in text]
    ends = [end for _, end, text in found for _ in text]
    return Patch(found[0][0], found[-1][1], "".join(text for _, _, text in found), starts, ends)


def _unescape(escape: str) -> str:
    if escape.startswith("&"):
        return html.unescape(escape)
    if escape.startswith("%") and escape[1] != "u":
        return unquote(escape)
    if escape.startswith("\\x"):
        return bytes.fromhex(escape.replace("\\x", "")).decode("utf-8", "replace")
    if escape[1].isdigit():
        return chr(int(escape[1:], 8))
    if len(escape) == 12:
        units = escape.replace("\\u", " ").split()
        return b"".join(int(u, 16).to_bytes(2, "little") for u in units).decode("utf-16-le", "replace")
    return chr(int(re.sub(r"[\\%uU+{}]", "", escape), 16))


# --- bytes

_SHORTEST = 6  # characters that a run of bytes must give to be a text
_BASE64 = re.compile(
    r"(?<![A-Za-z0-9+/_=-])={0,2}[A-Za-z0-9+/_-]{12,}+(?:\r?\n[A-Za-z0-9+/_-]{4,}+)*+={0,2}(?![A-Za-z0-9+/=_-])"
)
_BASE32 = re.compile(r"(?<![A-Za-z0-9=])={0,6}(?:[A-Z2-7]{12,}+|[a-z2-7]{12,}+)={0,6}(?![A-Za-z0-9=])")
# A run is looked for from its first item on: from each of them, long runs would take quadratic time.
_HEX = re.compile(
    r"(?<![0-9A-Za-z])(?<![0-9a-fA-F]{2}[\s:,-])(?<![0-9a-fA-F]{2}[\s:,-]{2})"
    r"(?:0x|\\x)?[0-9a-fA-F]{2}(?:[\s:,-]{0,2}(?:0x|\\x)?[0-9a-fA-F]{2}){5,}(?![0-9A-Za-z])"
)
_BINARY = re.compile(
    r"(?<![0-9A-Za-z])(?<![01]{7}[\s,])(?<![01]{7}[\s,]{2})(?:[01]{7,8}[\s,]{0,2}){3,}+(?![0-9A-Za-z])"
)
_ITEM = r"\d{2,3}(?!\w|\.\d)"
_DECIMAL = re.compile(
    r"(?<![\w.])" + "".join(rf"(?<!(?<!\d)\d{{{n}}}[\s,;]{{{m}}})" for n in (2, 3) for m in (1, 2))
    + rf"{_ITEM}(?:[\s,;]{{1,2}}{_ITEM}){{5,}}+"
)  # fmt: skip
_WORD64 = re.compile(
    r"(?<![^\s,.;:])(?:[\w+/]{4}){0,16}(?:[\w+/]{4}|[\w+/]{3}=|[\w+/]{2}==)(?![^\s,.;:])", re.ASCII
)
_ROW = 3  # words in base64, one by one, that are no chance


def byte_codes(text: str) -> Iterator[Patch]:
    """Runs in an alphabet of bytes that give a text when they are read: forwards, backwards or in rot13."""
    row: list[tuple[int, int, str]] = []
    for match in _WORD64.finditer(text):
        if word := _as_text(_base64(match.group()), 1):
            if row and text[row[-1][1] : match.start()].strip(" ,.;:\r\n\t"):
                yield from _row(row)
                row = []
            wrapped = text[match.end() : match.end() + 1] in ("\r", "\n")  # a line's end is no word's
            row.append((*match.span(), word if wrapped else f"{word} "))
    yield from _row(row)
    for pattern, read in (
        (_HEX, _hex),
        (_BINARY, _binary),
        (_DECIMAL, _decimal),
        (_BASE32, _base32),  # its alphabet is a part of the next one
        (_BASE64, _base64),
    ):
        for match in pattern.finditer(text):
            run = match.group()
            for variant in (run, run[::-1], rot13(run)):
                if found := _as_text(read(variant)):
                    yield Patch(*match.span(), found)
                    break


def _row(words: Sequence[tuple[int, int, str]]) -> Iterator[Patch]:
    if len(words) >= _ROW:
        yield _run(words)


def _as_text(data: bytes, shortest: int = _SHORTEST) -> str:
    """`data` as text if it is text: decodable and printable. Almost no ordinary word is."""
    wide = data[1::2].count(0) * 4 > len(data)  # letters of two bytes, most of them Latin
    for encoding in ("utf-8", "utf-16-le") if wide else ("utf-8",):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if len(text) >= shortest and all(c.isprintable() or c.isspace() for c in text):
            return text
    return ""


def _base64(run: str) -> bytes:
    try:
        digits = re.sub(r"\s|=", "", run).replace("-", "+").replace("_", "/")
        return base64.b64decode(digits + "=" * (-len(digits) % 4))
    except (binascii.Error, ValueError):
        return b""


def _base32(run: str) -> bytes:
    try:
        digits = run.strip("=").upper()
        return base64.b32decode(digits + "=" * (-len(digits) % 8))
    except (binascii.Error, ValueError):
        return b""


def _hex(run: str) -> bytes:
    digits = re.sub(r"0x|\\x|[\s:,-]", "", run)
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""


def _binary(run: str) -> bytes:
    bits = re.findall(r"[01]+", run)
    joined = "".join(bits)
    units = bits if len(bits) > 2 else [joined[i : i + 8] for i in range(0, len(joined), 8)]
    return bytes(int(unit, 2) for unit in units if len(unit) in (7, 8))


def _decimal(run: str) -> bytes:
    values = [int(value) for value in re.findall(r"\d+", run)]
    return bytes(values) if max(values) < 256 else b""


def rot13(text: str) -> str:
    return codecs.encode(text, "rot13")


# --- signs for letters

_SIGNS = """
    .- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --..
    ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----. .-.-.- --..-- ..--.. .----. -.-.-- -..-. -.--. -.--.-
    ---... -.-.-. -...- .-.-. -....- .-..-. .--.-.
"""
_MORSE = {
    code: letter
    for letter, code in zip(
        "abcdefghijklmnopqrstuvwxyz0123456789.,?'!/():;=+-\"@",
        _SIGNS.split(),
        strict=True,
    )
}
_DOTS, _DASHES = "\u00b7\u2022\u2219\u22c5\u25cf", "_\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_TO_MORSE = str.maketrans({**dict.fromkeys(_DOTS, "."), **dict.fromkeys(_DASHES, "-"), "\u2026": "..."})
_MORSE_LETTER = rf"[.\-{_DOTS}{_DASHES}\u2026]{{1,7}}"
_MORSE_RUN = re.compile(
    rf"(?<![^\s/|]){_MORSE_LETTER}(?:[ \t\r\n/|]{{1,5}}{_MORSE_LETTER}(?![^\s/|])){{3,}}+"
)
_MORSE_UNIT = re.compile(r"[^\s/|]+|[\s/|]+")


def morse(text: str) -> Iterator[Patch]:
    """Dots and dashes; a slash, a bar, a line end or a wider space ends a word."""
    for match in _MORSE_RUN.finditer(text):
        found = []
        for unit in _MORSE_UNIT.finditer(match.group().translate(_TO_MORSE)):
            start, end = match.start() + unit.start(), match.start() + unit.end()
            sign = unit.group()
            if sign[0] in ".-":
                found.append((start, end, _MORSE.get(sign, "")))
            elif sign != " ":
                found.append((start, end, " "))
        letters = [sign for _, _, sign in found if sign.strip()]
        codes = sum(sign != " " for _, _, sign in found)
        # rows of dots and dashes are rules and tables
        if len(set(letters)) >= 3 and len(letters) >= 0.8 * codes:
            yield _run(found)


_BRAILLE_RUN = re.compile("[\u2801-\u28ff](?:[\u2800-\u28ff\\s]*[\u2801-\u28ff])?")
_DOTS_OF_LETTERS = """
    1 12 14 145 15 124 1245 125 24 245 13 123 134 1345 135 1234 12345 1235 234 2345 136 1236 2456 1346 13456 1356
"""  # English Braille, grade 1
_BRAILLE = {
    sum(1 << (int(dot) - 1) for dot in dots): letter
    for letter, dots in {
        **dict(
            zip(
                "abcdefghijklmnopqrstuvwxyz",
                _DOTS_OF_LETTERS.split(),
                strict=True,
            )
        ),
        ",": "2",
        ";": "23",
        ":": "25",
        ".": "256",
        "!": "235",
        "?": "236",
        "'": "3",
        "-": "36",
        "/": "34",
    }.items()
}
_CAPITAL, _NUMBER = 0b100000, 0b111100


def braille(text: str) -> Iterator[Patch]:
    """Braille patterns of letters, capitals, digits and the commonest marks."""
    for match in _BRAILLE_RUN.finditer(text):
        found: list[tuple[int, int, str]] = []
        capital = number = False
        for at, char in enumerate(match.group(), match.start()):
            dots = ord(char) - 0x2800 if "\u2800" <= char <= "\u28ff" else 0
            if dots == _CAPITAL:
                capital = True
            elif dots == _NUMBER:
                number = True
            else:
                sign = _BRAILLE.get(dots & 0b111111, " " if not dots else "")
                number = number and sign in "abcdefghij"
                sign = str("jabcdefghi".index(sign)) if number and sign else sign
                found.append((at, at + 1, sign.upper() if capital else sign))
                capital = False
        if found:
            found[0] = (match.start(), *found[0][1:])  # signs before the first letter are part of it
            yield _run(found)


# --- letters one by one

_APART = re.compile(r"(?<!\S)\S(?:\s{1,8}\S(?!\S)){4,}+")
_CHAINED = re.compile(
    r"(?<!\S)\S([.\-_*|/,+~\u00b7])\S(?:\1\S)*+(?!\S)(?:\s{1,3}\S(?:\1\S)*+(?!\S))*+"
)  # one character, a sign, one character
LONGEST_WORD = 1_000  # letters without a space that are cut into words,
SEGMENTED = 50_000  # and of one text together
_JOINED_LETTERS = 24  # of words without a space between them; hardly a word has as many
# Signs of ordinary sentences stand between the letters; those of addresses, paths and code do not.
_JOINED = re.compile(r"(?:[^\W_]|[-'\u2019.,;:!?\"\u201c\u201d()&]){24,}+")
_CHANGE = re.compile(r"(?<=[a-z])[A-Z]|(?<=[^\W\d_])\d|(?<=\d)[^\W\d_]")
_PART = re.compile(r"[^\W\d_]+|\d+|\D")
_AROUND = frozenset('.,;:!?"\u201c\u201d()&')  # with a space behind them, or before, where words are joined


def spaced(text: str) -> Iterator[Patch]:
    """Letters with gaps between them. Wider gaps than most stand between words; without any, and in long words, the
    word boundaries are those that make the likeliest text."""
    left = SEGMENTED
    for tokens, cuts in _apart(text):
        if not cuts:
            left -= len(tokens)
            if len(tokens) > LONGEST_WORD or left < 0:
                yield Patch(tokens[0][0], tokens[-1][0] + 1, "", unread=True)
                continue
            cuts = _word_ends("".join(char for _, char in tokens))
        yield _run([(at, at + 1, char + " " * (i in cuts)) for i, (at, char) in enumerate(tokens, 1)])


def joined(text: str) -> Iterator[tuple[int, int]]:
    """[start, end) of words without spaces between them. Keys and hashes are none: letters and digits, small letters
    and capitals take turns in them."""
    for match in _JOINED.finditer(text):
        run = match.group()
        changes = sum(1 for _ in _CHANGE.finditer(run))
        if sum(map(str.isalpha, run)) >= _JOINED_LETTERS and changes * 4 <= len(run):
            yield match.span()


def _word_ends(text: str) -> set[int]:
    """Behind how many characters of a text without spaces a word ends."""
    found: set[int] = set()
    for part in _PART.finditer(text):
        start, end = part.span()
        if part.group().isalpha():
            found |= {start + cut for cut in segmented(part.group())} if part.group().isascii() else set()
        elif part.group().isdigit() or part.group() in _AROUND:
            found |= {start, end}
    return found


def _apart(text: str) -> Iterator[tuple[list[tuple[int, str]], set[int]]]:
    """Rows of (place, character) that belong together, and behind how many of them a word ends, as far as the gaps
    show it."""
    for match in _APART.finditer(text):
        tokens = [(m.start() + match.start(), m.group()) for m in re.finditer(r"\S", match.group())]
        if sum(char.isalnum() for _, char in tokens) * 2 > len(tokens):
            gaps = [two - one for (one, _), (two, _) in pairwise(tokens)]
            usual = Counter(gaps).most_common(1)[0][0]
            yield tokens, {i for i, gap in enumerate(gaps, 1) if gap > usual}
    for start, end in joined(text):
        yield list(enumerate(text[start:end], start)), set()
    for match in _CHAINED.finditer(text):
        words = [word.span() for word in re.finditer(r"\S+", match.group())]
        tokens = [
            (match.start() + at, match.group()[at]) for start, end in words for at in range(start, end, 2)
        ]
        if len(tokens) >= 5:
            yield tokens, set(accumulate(len(range(*word, 2)) for word in words[:-1]))


RESPELT: tuple[Callable[[str], Iterator[Patch]], ...] = (tags, characters, escapes)
CODED: tuple[Callable[[str], Iterator[Patch]], ...] = (byte_codes, morse, braille, spaced)
"""Readers in order: of two that claim one place, the first has it."""
