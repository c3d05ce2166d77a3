"""Ways of writing a prompt so that a filter may not read it and a model still does: name -> text -> text.

Each is a pure function. `PADDINGS` leave the prompt as it is and put other text beside it or into it.
"""

from __future__ import annotations

import base64
import codecs
import random
import re
import string
import textwrap
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache

from guard.detection.background import background

Disguise = Callable[[str], str]

PADDING_CHARS = 16_000  # about 4,000 tokens
_ALIKE = str.maketrans("aceijopsuxyABCEHIKMOPSTX", "асеіјорѕսхуАВСЕНІКМОРЅТХ")  # noqa: RUF001 - that is the point
_LEET = str.maketrans("aeiostAEIOST", "431057431057")
_SIGNS = """
    .- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...- .-- -..- -.-- --..
    ----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----. .-.-.- --..-- ..--.. .----. -.-.-- -..-. -.--. -.--.-
    ---... -.-.-. -...- .-.-. -....- .-..-. .--.-.
"""
_MORSE = dict(zip("abcdefghijklmnopqrstuvwxyz0123456789.,?'!/():;=+-\"@", _SIGNS.split(), strict=True))
_BRAILLE = dict(
    zip(
        "abcdefghijklmnopqrstuvwxyz,;:.!?'-/ ",
        "⠁⠃⠉⠙⠑⠋⠛⠓⠊⠚⠅⠇⠍⠝⠕⠏⠟⠗⠎⠞⠥⠧⠺⠭⠽⠵⠂⠆⠒⠲⠖⠦⠄⠤⠌⠀",
        strict=True,
    )
)


def _each(write: Callable[[str], str], between: str = "") -> Disguise:
    """Every character by itself."""
    return lambda text: between.join(map(write, text))


def _words(write: Callable[[str], str], between: str = " ") -> Disguise:
    """Every word by itself."""
    return lambda text: between.join(map(write, text.split()))


def _bytes(write: Callable[[bytes], bytes]) -> Disguise:
    return lambda text: write(text.encode()).decode()


def _letters(capital: int, small: int) -> Disguise:
    """ASCII letters as those of a styled alphabet."""
    table = {ord(c): chr(capital + i) for i, c in enumerate(string.ascii_uppercase)}
    table |= {ord(c): chr(small + i) for i, c in enumerate(string.ascii_lowercase)}
    return lambda text: text.translate(table)


def _alphabet(letters: str) -> Disguise:
    table = str.maketrans(string.ascii_lowercase + string.ascii_uppercase, letters + letters.upper())
    return lambda text: text.translate(table)


def _shift(by: int) -> Disguise:
    return _alphabet(string.ascii_lowercase[by:] + string.ascii_lowercase[:by])


def _rot47(text: str) -> str:
    return "".join(chr(33 + (ord(c) - 33 + 47) % 94) if "!" <= c <= "~" else c for c in text)


def _rot13(text: str) -> str:
    return codecs.encode(text, "rot13")


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _fullwidth(text: str) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def _unaccented(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def _morse(text: str) -> str:
    words = _unaccented(text).lower().split()
    return " / ".join(" ".join(_MORSE[c] for c in word if c in _MORSE) for word in words)


def _braille(text: str) -> str:
    """Grade 1: a sign before capitals and before numbers, whose digits are the letters a to j."""
    out, number = [], False
    for char in _unaccented(text):
        if char.isdigit():
            out.append(("" if number else "⠼") + _BRAILLE["jabcdefghi"[int(char)]])
        else:
            out.append(("⠠" if char.isupper() else "") + _BRAILLE.get(char.lower(), ""))
        number = char.isdigit()
    return "".join(out)


def _accents(text: str) -> str:
    return "".join(f"{c}\u0336\u0301\u0308" if c.isalpha() else c for c in text)


def _then(*steps: Disguise) -> Disguise:
    def run(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return run


DISGUISES: Mapping[str, Disguise] = {
    "plain": str,
    "capitals": str.upper,
    "full-width": _fullwidth,
    "mathematical bold": _letters(0x1D400, 0x1D41A),
    "circled": _letters(0x24B6, 0x24D0),
    "look-alike letters": lambda text: text.translate(_ALIKE),
    "heaps of accents": _accents,
    "zero-width spaces": "\u200b".join,
    "soft hyphens": "\u00ad".join,
    "tag characters": _each(lambda c: chr(0xE0000 + ord(c)) if c.isascii() else c),
    "leetspeak": lambda text: text.translate(_LEET),
    "spaced letters": " ".join,
    "spaced letters, no word gaps": lambda text: " ".join(text.replace(" ", "")),
    "hyphened letters": _words("-".join),
    "no spaces": lambda text: text.replace(" ", ""),
    "base64": _base64,
    "base64, URL alphabet": _bytes(lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")),
    "base64 in lines": lambda text: "\n".join(textwrap.wrap(_base64(text), 40)),
    "base64, word by word": _words(_base64),
    "base64 three times": _then(_base64, _base64, _base64),
    "base32": _bytes(base64.b32encode),
    "base16": lambda text: text.encode().hex(),
    "hex with spaces": lambda text: text.encode().hex(" "),
    "binary": lambda text: " ".join(f"{byte:08b}" for byte in text.encode()),
    "decimal": lambda text: " ".join(map(str, text.encode())),
    "URL escapes": lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
    "URL escapes twice": lambda text: "".join(f"%25{byte:02X}" for byte in text.encode()),
    "HTML escapes": _each(lambda c: f"&#{ord(c)};"),
    "HTML escapes, hex": _each(lambda c: f"&#x{ord(c):x};"),
    "backslash escapes": _each(lambda c: f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c),
    "ROT13": _rot13,
    "Caesar 5": _shift(5),
    "Atbash": _alphabet(string.ascii_lowercase[::-1]),
    "ROT47": _rot47,
    "Morse": _morse,
    "Braille": _braille,
    "reversed": lambda text: text[::-1],
    "words reversed": _words(lambda word: word[::-1]),
    "reversed ROT13": _then(_rot13, lambda text: text[::-1]),
    "ROT13 in base64": _then(_rot13, _base64),
    "base64 in ROT13": _then(_base64, _rot13),
    "leetspeak in hex": _then(lambda text: text.translate(_LEET), lambda text: text.encode().hex()),
}


@cache
def padding() -> str:
    """Ordinary prompts, one after the other."""
    prompts = list(background())
    random.Random(0).shuffle(prompts)
    text = " ".join(prompts)
    return text[: text.rindex(" ", 0, PADDING_CHARS)]


def _between(text: str) -> str:
    """The padding inside the prompt: in the middle, but not inside of a name."""
    gaps = [m.start() for m in re.finditer(r"(?<=[a-z,]) (?=[a-z])", text)] or [len(text)]
    middle = min(gaps, key=lambda at: abs(at - len(text) // 2))
    return f"{text[:middle]} {padding()} {text[middle:].lstrip()}"


PADDINGS: Mapping[str, Disguise] = {
    "padding before": lambda text: f"{padding()} {text}",
    "padding after": lambda text: f"{text} {padding()}",
    "padding around": lambda text: f"{padding()[:8_000]} {text} {padding()[8_000:]}",
    "padding between": _between,
    "base64 in padding": lambda text: f"{padding()[:8_000]} {_base64(text)} {padding()[8_000:]}",
    "ROT13 in padding": lambda text: f"{padding()[:8_000]} {_rot13(text)} {padding()[8_000:]}",
}
"""The padding is about 4,000 tokens in each."""

ALL: Mapping[str, Disguise] = {**DISGUISES, **PADDINGS}
