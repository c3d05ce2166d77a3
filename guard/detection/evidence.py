"""What in a text points to a target besides its name, and what points to somebody else."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

import ahocorasick
import numpy as np

from guard.detection.background import background
from guard.detection.base import Form, Terms
from guard.detection.names import parts
from guard.detection.text import Folded, bounded, fold
from guard.targets import TargetSpec

FEATURES = ("nearest", "strong", "weak", "part", "other")
"""How near the nearest example is, relative to its near misses (semantic.relative); strong terms (up to 2),
weak terms (up to 4) and the share of the name that the window holds, each scaled to [0, 1]; whether it names
somebody else."""

_OPEN, _CLOSE, _QUOTES = r"[\"'\u201c\u00ab\u2018]", r"[\"'\u201d\u00bb\u2019]", r"\"\u201c\u201d\u00ab\u00bb"
_QUOTED = re.compile(
    rf"(?<!\w){_OPEN}([^\s'\u2018\u2019{_QUOTES}][^\n{_QUOTES}]{{2,80}}?)(?<!\s){_CLOSE}(?!\w)"
)
_CAPITAL = r"[^\W\d_a-zß-öø-ÿ][\w'\u2019.-]*"
_PROPER = re.compile(rf"{_CAPITAL}(?:\s+(?:(?:of|the|de|van|von|der|al|bin|la|le|and)\s+)?{_CAPITAL})*")
_NUMBER = re.compile(r"(?<![\w.])\d{3,4}(?![\w.]\d)")
_OPENERS = frozenset(
    """
    what who whom whose when where which why how is are was were do does did can could would will should
    has have had tell describe explain write give name list please the a an in on at of for from by and
    or but if as to with his her its their i you he she it they we my your this that these those there
    here hi hello summarize translate compare context question answer let draft find return extract
    classify call make sort act pretend count fill remind generate fix rewrite correct suggest continue
    plan convert show say also then first finally
    """.split()  # noqa: SIM905 - as a list it would be a hundred lines
)


def terms(spec: TargetSpec) -> Terms:
    """The terms of a target, from its names, description, examples and answers."""
    common = common_words()
    share = parts(spec, common)
    names = {word for name in spec.names() for word in fold(name).text.split()}
    strong: set[str] = set()
    weak: set[str] = set()
    for text in (spec.description, *spec.examples, *(a for a in spec.answers if len(a) < 200)):
        for phrase in (*_QUOTED.findall(text), *proper(text), *_NUMBER.findall(text)):
            words = [word for word in fold(phrase).text.split() if word not in names]
            folded = " ".join(words)
            if len(words) >= 2 and len(folded) >= 7 and folded not in _OPENERS:
                strong.add(folded)
            elif len(words) == 1 and len(folded) >= 3 and folded not in common:
                weak.add(folded)
    source = spec.description if spec.kind == "entity" else " ".join((spec.description, *spec.examples))
    unusual = {word for word in fold(source).text.split() if len(word) >= 5 and word not in common | names}
    weak |= {word for phrase in strong for word in phrase.split() if len(word) >= 4 and word not in common}
    vocabulary = names | {word for phrase in strong | weak for word in phrase.split()}
    return Terms(share, frozenset(strong), frozenset(weak | unusual), frozenset(vocabulary))


@cache
def common_words() -> frozenset[str]:
    """Folded words that three or more background prompts hold."""
    counts: dict[str, int] = {}
    for prompt in folded_background():
        for word in set(prompt.text.split()):
            counts[word] = counts.get(word, 0) + 1
    return frozenset(word for word, count in counts.items() if count >= 3)


@cache
def folded_background() -> tuple[Folded, ...]:
    return tuple(fold(prompt) for prompt in background())


@cache
def _joined_background() -> tuple[str, np.ndarray]:
    """All folded background prompts as one text with line breaks between, and where each begins."""
    texts = [prompt.text for prompt in folded_background()]
    starts = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
    return "\n".join(texts), starts


def rate(form: Form) -> float:
    """The share of background prompts that the folded form occurs in, at word boundaries."""
    text, starts = _joined_background()
    hits = set()
    at = text.find(form.text)
    while at >= 0:
        end = at + len(form.text)
        if bounded(text, at, end):
            hits.add(int(np.searchsorted(starts, at, side="right")))
        at = text.find(form.text, at + 1)
    return len(hits) / len(starts)


def proper(text: str) -> list[str]:
    """Capitalised words and their sequences, without the question words and verbs that begin a sentence."""
    found = []
    for match in _PROPER.finditer(text):
        words = match.group().split()
        while words and fold(words[0]).text in _OPENERS:
            words = words[1:]
        if words:
            found.append(" ".join(words))
    return found


def strangers(text: str) -> tuple[frozenset[str], ...]:
    """The folded words of each capitalised name of two or more words in `text`."""
    found = (frozenset(fold(name).text.split()) for name in proper(text))
    return tuple(words for words in found if len(words) >= 2)


@cache
def background_strangers() -> tuple[tuple[frozenset[str], ...], ...]:
    """`strangers` of each background prompt."""
    return tuple(strangers(prompt) for prompt in background())


def names_other(found: Iterable[frozenset[str]], vocabulary: frozenset[str]) -> bool:
    """Whether one of the names is somebody else's: a third of its words or more do not belong to the
    target."""
    return any(len(words - vocabulary) * 3 >= len(words) for words in found)


def automaton(patterns: dict[str, object]) -> ahocorasick.Automaton:
    """Finds all keys of `patterns` in one pass and gives their values."""
    made = ahocorasick.Automaton()
    for text, value in patterns.items():
        made.add_word(text, (text, value))
    made.make_automaton()
    return made


def amounts(of: Terms, texts: Sequence[str]) -> np.ndarray:
    """[texts, 3] float32: strong, weak and part of `of` for each folded text, scaled as in FEATURES."""
    patterns: dict[str, object] = dict.fromkeys((*of.parts, *of.strong, *of.weak))
    out = np.zeros((len(texts), 3), np.float32)
    if not patterns:
        return out
    finder = automaton(patterns)
    for row, text in enumerate(texts):
        found = {p for end, (p, _) in finder.iter(text) if bounded(text, end + 1 - len(p), end + 1)}
        if found:
            out[row] = scaled(of, found)
    return out


def scaled(of: Terms, found: Iterable[str]) -> tuple[float, float, float]:
    """Amounts of strong terms, weak terms and name parts among the folded terms `found` in one window."""
    words = set(found)
    strong = min(len(words & of.strong), 2) / 2
    weak = min(len(words & of.weak), 4) / 4
    return strong, weak, min(sum(of.parts.get(word, 0.0) for word in words), 1.0)
