"""What an answer tells: the words and phrases that must not be said, taken from a target's own texts.

Not every word of an answer tells something. In "Jane Doe was born in Vintry." the name and the frame are in
the question, and only "Vintry" is new. Told are proper names, numbers and uncommon words, and runs of them,
unless they name the target or its examples ask with them; and where a sentence ends in a common word, its last two
words, for what is new in a sentence comes last. Words that everybody uses are never forbidden alone.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby, islice
from pathlib import Path

from guard.errors import BadRequest
from guard.targets import TargetSpec

LAST = "\U0010ffff"  # sorts behind every text
START = "^"  # begins a phrase that is forbidden at the beginning of a sentence only; no folded text holds it
SENTENCE_ENDS = re.compile(r"[.!?:;\n]+(?=\s|$)|\n")
MOST = 100_000
_WORD = re.compile(r"[^\s\u2013\u2014/]+")
_SHORT = 30  # words; in longer texts a rare word tells little, and runs of words do
_SHINGLE = 5  # words, the longest n-gram of GUARD
_RUN = 8
_LAST = 2
_OPENING = "\"'\u2018\u201c\u00ab(*["
_LETTERS = 3
_DIGITS = 2
_FREQUENT = 2_000  # words of English


def forbidden(spec: TargetSpec, *, opening: int, names: bool) -> tuple[str, ...]:
    """Sorted folded phrases that the target's answers and description tell.

    Args:
        opening: how many of an answer's first words it may not begin with.
        names: whether the target's names are forbidden too.

    Raises:
        BadRequest: there are more than MOST.
    """
    from guard.detection.text import fold

    known = _known(spec)
    found: set[str] = set()
    for text in (spec.description, *spec.answers):
        sentences = [sentence for sentence in SENTENCE_ENDS.split(text) if sentence.strip()]
        short = len(text.split()) <= _SHORT
        for sentence in sentences:
            found.update(_told(sentence, known, short))
        if len(found) > MOST:
            raise BadRequest(f"The answers hold more than {MOST} phrases; give fewer.", param="answers")
    if opening:
        found.update(START + " ".join(fold(answer).text.split()[:opening]) for answer in spec.answers)
    if names:
        found.update(fold(name).text for name in spec.names())
    return tuple(sorted(found - {"", START}))


def words_of(phrases: Sequence[str]) -> tuple[str, ...]:
    """The words of four letters or more in phrases of what is told, each once, to find others near them."""
    found = {w for p in phrases if not p.startswith(START) for w in p.split() if len(w) >= 4 and w.isalpha()}
    return tuple(sorted(found - everyday_words()))


@cache
def everyday_words() -> frozenset[str]:
    """Folded words that are common in English, names among them: those of everyday prompts, and the most
    frequent ones, by which the packaged encoder's vocabulary is ordered."""
    from guard.detection.encoder import packaged_folder

    vocabulary = (Path(packaged_folder()) / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return _small() | frozenset(
        islice((word for word in vocabulary if len(word) > 1 and word.isalpha()), _FREQUENT)
    )


@cache
def _small() -> frozenset[str]:
    """Folded words that everyday prompts hold three times or more in small letters, and not a lot more often
    with a capital within a sentence, as names that some people write small."""
    from guard.detection.background import background
    from guard.detection.text import fold

    small: Counter[str] = Counter()
    great: Counter[str] = Counter()
    for prompt in background():
        for at, word in enumerate(_WORD.findall(prompt)):
            if word[:1].isupper() and at > 0 and len(word) > 1:
                great[fold(word).text] += 1
            else:
                small[fold(word).text] += 1
    return frozenset(word for word, count in small.items() if count >= 3 and 4 * count > great[word])


def _known(spec: TargetSpec) -> frozenset[str]:
    """Stems of the target's names and of the words that its examples ask with: not of the names and numbers
    in them, for a question may hold another question's answer."""
    from guard.detection.text import fold

    names = {word for name in spec.names() for word in fold(name).text.split()}
    asked = {
        fold(word).text for example in spec.examples for word in _WORD.findall(example) if word.islower()
    }
    return frozenset(map(_stem, names | asked))


def _stem(word: str) -> str:
    """Without an English ending of a verb or a plural: a question asks "where does" what an answer says "lives"."""
    return re.sub(r"(?<=\w{3})(?:es|ed|ing|s|e)$", "", word)


def _told(sentence: str, known: frozenset[str], short: bool) -> Iterator[str]:
    """The phrases that one sentence tells; `short` tells that it is an answer, and not a part of a long text."""
    from guard.detection.text import fold

    words = [(word, folded) for word in _WORD.findall(sentence) if (folded := fold(word).text)]
    telling, rare = [], []
    for at, (word, folded) in enumerate(words):
        number = any(char.isdigit() for char in folded)
        named = number or (at > 0 and word.lstrip(_OPENING)[:1].isupper())
        rare.append(number or (folded not in everyday_words() and len(folded) >= _LETTERS))
        telling.append(_stem(folded) not in known and (named or (rare[-1] and short)))
    if not short:
        for at in range(0, len(words) - _SHINGLE + 1, _SHINGLE):
            yield " ".join(folded for _, folded in words[at : at + _SHINGLE])
    elif len(words) >= _LAST and not rare[-1] and _stem(words[-1][1]) not in known:
        yield " ".join(folded for _, folded in words[-_LAST:])
    for tells, group in groupby(range(len(words)), telling.__getitem__):
        run = list(group)
        if tells:
            yield from (words[i][1] for i in run if rare[i] and len(words[i][1]) >= _DIGITS)
            together = " ".join(words[i][1] for i in run)
            if len(run) <= _RUN and together not in _small():
                yield together


class Phrases:
    """Sorted folded phrases, found by what they begin with."""

    def __init__(self, phrases: Sequence[str]) -> None:
        self._sorted = sorted(phrases)
        self.longest = max(map(len, self._sorted), default=0)
        self.bytes = max((len(phrase.encode()) for phrase in self._sorted), default=0)

    def beginning(self, said: str) -> Sequence[str]:
        """The phrases that begin with `said`."""
        first = bisect_left(self._sorted, said)
        return self._sorted[first : bisect_left(self._sorted, said + LAST, lo=first)]

    def begun(self, text: str, cut: bool) -> frozenset[str]:
        """Beginnings of phrases with which `text` ends: "" where a word may begin, START and more where no
        sentence has ended since. With `cut`, text and maybe a word are missing before it."""
        most = 2 * self.longest + 16  # characters of `text`; folding shortens it
        text, cut = text[-most:], cut or len(text) > most
        sentence = max((found.end() for found in SENTENCE_ENDS.finditer(text)), default=None if cut else 0)
        found: set[str] = set()
        for said, at in _readings(text, sentence):
            words = [i + 1 for i, char in enumerate(said) if char == " "]
            found.update(said[i:] for i in (words if cut else [0, *words]))
            if at is not None:
                found.add(START + said[at:].lstrip())
        return frozenset(said for said in found if self._any(said))

    def _any(self, said: str) -> bool:
        first = bisect_left(self._sorted, said)
        return first < len(self._sorted) and self._sorted[first].startswith(said)


def _readings(text: str, sentence: int | None) -> Iterator[tuple[str, int | None]]:
    """`text` folded, as its last word may go on or be over, and where in it the `sentence` begins."""
    from guard.detection.text import APOSTROPHES, fold

    goes_on = fold(f"{text}x")  # otherwise a blank behind the last word would not show
    at = None if sentence is None else bisect_left(goes_on.starts, sentence)
    said = goes_on.text[:-1]
    yield said, at
    if said.endswith(" "):
        yield said[:-1], at
    elif text[-1:] in ("s", "S") and text[-2:-1] in APOSTROPHES:
        yield fold(text).text, at
