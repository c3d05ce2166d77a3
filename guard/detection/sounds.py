"""Names across scripts: words of other scripts as they sound, so spelt that a name in Latin letters is spelt the same.

Transliteration (anyascii, a table of characters) gives one of many spellings: "Салливан" becomes "Sallivan", and
Japanese writes l as r. So the text and the names are both brought to a coarse spelling: consonants that languages
exchange are one, and vowels, h, w and y are left out, as some scripts leave them out. It is written in letters of its
own, which no text uses, so that ordinary words never meet it. Chinese characters are read in pinyin, letter by letter.
What cannot be told: foreign names in Chinese characters, Japanese ones in kanji, names that a language replaces by
others, and names with too few consonants to be no chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from anyascii import anyascii

_HANGUL, _KANA, _HAN = "\uac00-\ud7a3", "\u30a1-\u30fa\u30fc", "\u3400-\u9fff"
_HEBREW, _ARABIC = "\u05d0-\u05ea", "\u0621-\u064a"
_SPACED = "\u0370-\u03ff\u0400-\u052f\u0900-\u0dff\u1f00-\u1fff"  # Greek, Cyrillic, scripts of India
_WORD = re.compile(
    rf"[{_HEBREW}][{_HEBREW}\u05b0-\u05c7\u05f3\u05f4'\u2019]*|[{_ARABIC}\u064b-\u0652]+|[{_HANGUL}]+|[{_KANA}]+|"
    rf"(?:[{_SPACED}][\u0300-\u036f\u200c\u200d]*)+"
)
_PINYIN = re.compile(rf"[{_HAN}]{{2,}}")
_TOGETHER = re.compile(r"[\W_]{1,3}")  # what may stand between two words of one name
_PREFIXES = (
    "\u05d5\u05d4\u05d1\u05dc\u05de\u05e9\u05db\u0648\u0641\u0628\u0644\u0643"  # and, the, in, to, from ...
)
_PARTICLES = (
    "\uc740\ub294\uc774\uac00\uc744\ub97c\uc758\uc5d0\uc640\uacfc\ub3c4\ub85c"  # endings of Korean words
)

# How a script writes what it has no letter for, where anyascii reads it letter by letter.
_GREEK = (
    ("[\u03bd\u039d][\u03c4\u03a4]", "d"),
    ("[\u03bc\u039c][\u03c0\u03a0]", "b"),
    ("[\u03b3\u0393][\u03ba\u039a]", "g"),
    ("[\u03c4\u03a4][\u03b6\u0396\u03c3\u03a3]", "ch"),
    ("[\u03c7\u03a7]", "h"),
)
_SCRIPTS = (
    ("(?<=[^\u05d5])\u05d5(?!\u05d5)", ""),  # a lone vav inside a Hebrew word is a vowel
    ("\u05d2['\u2019\u05f3]", "j"),
    ("[\u05e6\u05e5]['\u2019\u05f3]", "ch"),
    ("\u05ea['\u2019\u05f3]", "th"),
    ("\u062a\u0634", "ch"),
    ("\u062f\u062c", "j"),
    ("\u0902(?=[\u092a-\u092e])", "m"),
    ("[\u0901\u0902]", "n"),
    ("[\u091a\u091b]", "ch"),
    ("\u091c\u093c", "z"),
    ("\u30f3(?=[\u30d0-\u30dd\u30de-\u30e2])", "m"),
    ("\u30f4", "v"),
    ("\u30c6\u30a3|\u30c1(?![\u30e3\u30e5\u30e7\u30a7])", "ti"),
    ("\u30c7\u30a3", "di"),
    ("\u30c4", "ts"),
    ("[\u30a1\u30a3\u30a5\u30a7\u30a9\u30e3\u30e5\u30e7\u30fc]", ""),
)
_SPELT = tuple((re.compile(written), latin) for written, latin in _SCRIPTS)
_SPELT_IN_GREEK = tuple((re.compile(written), latin) for written, latin in _GREEK) + _SPELT

_CLUSTERS = (
    *(
        (cluster, "S")
        for cluster in ("tsch", "shch", "tch", "sch", "dzh", "tsh", "ch", "zh", "sh", "ts", "tz")
    ),
    *((("dz", "S"), ("dj", "S"), ("kh", "K"), ("gh", "K"), ("ck", "K"), ("qu", "K"))),
    *((("ph", "P"), ("th", "T"), ("x", "KS"))),
)
_CLASSES = {"P": "bpfv", "T": "td", "S": "sz", "K": "cgkq", "L": "lr", "M": "m", "N": "n"}
_CLASS = {letter: one for one, letters in _CLASSES.items() for letter in letters}
_VOWELS = dict.fromkeys("aeiouyw", "V")
_BARE = {code: _CLASS.get(chr(code)) for code in range(ord("a"), ord("z") + 1)}  # None: left out
_VOICED = {code: _CLASS.get(chr(code)) or _VOWELS.get(chr(code)) for code in _BARE}
_SOUNDS = str.maketrans("PTSKLMNV", "".join(chr(0x10428 + i) for i in range(8)))
_WRITES_VOWELS = re.compile(
    "[\u0370-\u03ff\u0400-\u052f\u1f00-\u1fff]"
)  # each as it is heard: Greek, Cyrillic
_LETTERS = {ord("a") + i: chr(0x10480 + i) for i in range(26)}
_BREAK = chr(0x10430)
_FEWEST = {True: 5, False: 6}  # consonants of a name, by whether its vowels are told as well
_FEWEST_LETTERS = 8  # of a name in pinyin


@dataclass(frozen=True, slots=True)
class Sounded:
    """What was read of a text: each of `parts` is some letters that stand for the characters `start:end` of it.
    `joined` parts have no word boundaries."""

    parts: tuple[tuple[str, int, int], ...]
    joined: bool = False


def spellings(name: str) -> Iterator[str]:
    """The coarse spellings of a name in any script: its words one by one, and all together."""
    words = [re.sub("[^a-z]", "", word) for word in re.split(r"[\s\-\u2019']+", _latin(name).lower())]
    words = [word for word in words if word]
    if len(words) > 1 and len("".join(words)) >= _FEWEST_LETTERS:
        yield "".join(words).translate(_LETTERS)
    for voiced, soft, j, kh in product((True, False), "SK", ("S", "K", ""), ("K", "")):
        made = [_coarse(word, soft, j, kh, voiced=voiced) for word in words]
        for written in (" ".join(made), _coarse("".join(words), soft, j, kh, voiced=voiced)):
            if all(made) and len(re.sub("[V ]", "", written)) >= _FEWEST[voiced]:
                yield written.translate(_SOUNDS)


def transliterated(name: str) -> str | None:
    """A name of another script in Latin letters, None for one that is in Latin letters."""
    if _PINYIN.fullmatch(name):
        surname, given = anyascii(name[0]), anyascii(name[1:])
        return f"{surname} {given}"
    return _latin(name) if _WORD.search(name) else None


def sounded(text: str) -> Iterator[Sounded]:
    """All readings of what `text` holds in other scripts."""
    if text.isascii():
        return
    words = [match.span() for match in _WORD.finditer(text)]
    ways = product(("S", ""), ("K", ""), (False, True)) if words else ()
    yield from dict.fromkeys(Sounded(tuple(_read(text, words, *way))) for way in ways)
    for match in _PINYIN.finditer(text):
        syllables = ((anyascii(text[i]).lower().translate(_LETTERS), i, i + 1) for i in range(*match.span()))
        yield Sounded(tuple(syllables), joined=True)


def _read(
    text: str, words: list[tuple[int, int]], j: str, kh: str, bare: bool
) -> Iterator[tuple[str, int, int]]:
    before = None
    for start, end in words:
        if before is not None and not _TOGETHER.fullmatch(text, before, start):
            yield f"{_BREAK} ", before, start
        word = text[start:end]
        voiced = bool(_WRITES_VOWELS.match(word))
        latin = _latin(_bare(word) if bare else word, greek=not j)
        yield _coarse(latin, "K", j, kh, voiced=voiced).translate(_SOUNDS) + " ", start, end
        before = end


def _bare(word: str) -> str:
    """The word without what Korean puts behind it and Hebrew and Arabic before it."""
    if len(word) > 2 and word[-1] in _PARTICLES:
        return word[:-1]
    return word[1:] if len(word) > 3 and word[0] in _PREFIXES else word


@lru_cache(maxsize=16_384)
def _latin(word: str, *, greek: bool = True) -> str:
    """`greek`: two letters are one sound where they can be."""
    for pattern, latin in _SPELT_IN_GREEK if greek else _SPELT:
        word = pattern.sub(latin, word)
    return anyascii(word)


@lru_cache(maxsize=16_384)
def _coarse(word: str, soft: str, j: str, kh: str = "K", *, voiced: bool) -> str:
    """The consonant classes of a word: `soft` that of a c before e and i, `j` that of a j and `kh` that of kh. If
    `voiced`, with the places of vowels, but for one at the end, which many languages change."""
    text = re.sub("[^a-z]", "", word.lower())
    text = re.sub("^x", "s", text).replace("kh", kh)
    for cluster, one in _CLUSTERS:
        text = text.replace(cluster, one)
    text = re.sub("c(?=[eiy])", soft, text).replace("j", j)
    text = re.sub(r"(.)\1+", r"\1", text.translate(_VOICED if voiced else _BARE))
    return text.removesuffix("V") if len(text) > 1 else text
