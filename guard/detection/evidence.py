"""What in a text points to a target, and what points to somebody else: the words, weighed in nats.

A sentence encoder sees "in which genre does X write" as one question for every X: how near a text is to an example
says what is asked, and hardly of whom. Words say that. One that the target's texts hold, and few others, is as much
evidence for the target as it is rarer elsewhere; a name that they do not hold is evidence against it (naive Bayes: the
logarithm of how much likelier a prompt about the target is to hold the word than any other prompt)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import dropwhile

import numpy as np

from guard.detection.background import background
from guard.detection.background_templates import FAMILIES
from guard.detection.background_words import POOLS
from guard.detection.base import CompiledTarget, Form, Terms
from guard.detection.text import Folded, bounded, fold
from guard.targets import TargetSpec
from guard.types import Span

OFTEN = 0.1
"""The share of prompts about a target that hold a given one of its words, and of those that name somebody else
beside it: the one assumption of the weights."""
NEAR = 5.0  # nats from FLOOR to a text that equals an example
_RARELY = 1_000.0
# Words that are no names may be ordinary ones that the background happens to lack, one by one and all together.
_ORDINARY, _ALL_ORDINARY = 0.05, 0.01
_MOST_UNKNOWN = 5  # names; a text that lists many says no more with each
_FEW_OTHERS = 10  # targets, about which nothing can be said of what targets have in common
_SHORTEST = 3  # letters of a word
# Words, and the share of their letters in capitals, that tell nothing of names.
_FEWEST_SHOUTED, _SHOUTED = 4, 0.8

_CAPITAL = r"[^\W\d_a-zß-öø-ÿ][\w'\u2019.-]*"
_NAME = rf"{_CAPITAL}(?:\s+(?:(?:of|the|de|van|von|der|al|bin|la|le|and)\s+)?{_CAPITAL})*"
_PROPER = re.compile(_NAME)
_ENDING = re.compile(r"(?:['\u2019]s)?[.'\u2019-]*$")
_PLACE = re.compile(rf"\b(?:in|from|near)\s+({_NAME},\s+{_NAME})")  # the town tells the country
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


def terms(spec: TargetSpec, others: Sequence[CompiledTarget]) -> Terms:
    """The words of a target's names, description, examples and answers, weighed against the background and the
    `others`. Words of names and facts (capitals, digits) may be as rare as the background allows."""
    texts = (*spec.names(), spec.description, *spec.examples, *spec.answers)
    vocabulary = frozenset(word for text in texts for word in words(text))
    together = [*map(words, spec.names())]
    for text in texts:
        found = [part for name in proper(text) if " " in name for part in name.split(" and ")]
        together += map(words, (*found, *_PLACE.findall(text)))
    names = {word for text in texts for word in named(text)}.union(*together)
    counts = _counts()
    weights = {}
    for word in vocabulary:
        if len(word) < _SHORTEST and word.isascii() and not word.isdigit():
            continue
        held = sum(word in other.terms.vocabulary for other in others)
        elsewhere = max((counts[word] + 1) / (len(background()) + 1), shared(held, len(others)))
        elsewhere = max(elsewhere, 0.0 if word in names else _ORDINARY)
        if elsewhere <= _ORDINARY:
            weights[word] = nats_of(elsewhere)
    stands = _united(together) | dict.fromkeys(vocabulary - names, "")
    return Terms(weights, stands, vocabulary, math.log(OFTEN / _ALL_ORDINARY))


def shared(holders: int, others: int) -> float:
    """The share of other targets' prompts that are likely to hold a word, when so many of these targets do."""
    return max(holders, 0) / (max(others, 0) + _FEW_OTHERS)


def nats_of(share: float) -> float:
    """The evidence of a word that so many other prompts hold."""
    return math.log(OFTEN / share) if share < OFTEN and share > 0 else 0.0 if share else math.inf


def _united(together: Sequence[frozenset[str]]) -> dict[str, str]:
    """For each word of a name of several words one that stands for all that it comes with: they are one fact."""
    stands: dict[str, str] = {}
    for group in together:
        first = min((stands.get(word, word) for word in group), default="")
        joined = {stands.get(word, word) for word in group}
        stands |= dict.fromkeys(group, first)
        stands |= {word: first for word, other in stands.items() if other in joined}
    return stands


def words(text: str) -> frozenset[str]:
    """Folded words."""
    return frozenset(fold(text).text.split())


@dataclass(frozen=True, slots=True)
class Words:
    """The folded words of a text, and those of them that are names or numbers."""

    all: frozenset[str]
    named: frozenset[str]


def read(text: str) -> Words:
    found = words(text)
    names = [name for name, begins, _ in _capitalised(text) if " " in name or not begins]
    return Words(found, words(" . ".join(names)) | {word for word in found if any(c.isdigit() for c in word)})


def named(text: str) -> frozenset[str]:
    """Folded words of `text` that are names or numbers, as digits and capitals tell. The first word of a sentence
    has a capital in any case."""
    return read(text).named


@cache
def background_words() -> tuple[Words, ...]:
    return tuple(read(prompt) for prompt in background())


def unknown(of: Terms, names: Iterable[str]) -> int:
    """How many of the `named` words belong neither to the target nor to ordinary language."""
    return len(frozenset(names) - of.vocabulary - ordinary())


def against(strangers: int) -> float:
    """Nats for so many names that the target does not have."""
    return min(strangers, _MOST_UNKNOWN) * math.log(OFTEN)


def weigh(of: Terms, texts: Iterable[Words], near: np.ndarray) -> np.ndarray:
    """[texts] nats that each speaks of the target; `near` [texts] is its similarity to the nearest example."""
    told = [of.nats(text.all) + against(unknown(of, text.named)) for text in texts]
    result: np.ndarray = NEAR * near + np.array(told, np.float32)
    return result


def probability(evidence: np.ndarray) -> np.ndarray:
    """That a prompt with so many nats of evidence is about the target, if one in a thousand is."""
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(math.log(_RARELY) - evidence, -40.0, 40.0))))


def nats(shown: float) -> float:
    """The evidence that `probability` shows so."""
    return math.log(max(shown, 1e-12) / max(1.0 - shown, 1e-12)) + math.log(_RARELY)


@cache
def ordinary() -> frozenset[str]:
    """Ordinary words: those of the background's templates, without the names that fill them."""
    texts = [re.sub(r"\{\w+\}", " ", text) for family in FAMILIES.values() for text in family]
    return frozenset(word for text in (*texts, *POOLS["month"], *POOLS["day"]) for word in words(text))


@cache
def _counts() -> Counter[str]:
    """How many background prompts hold each folded word."""
    return Counter(word for prompt in folded_background() for word in set(prompt.text.split()))


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
    return [name for name, *_ in _capitalised(text)]


def entities(text: str) -> list[Span]:
    """Where the names stand that `proper` finds, without those of ordinary words alone: at the beginning of a sentence
    every word has a capital."""
    return [place for name, _, place in _capitalised(text) if not words(name) <= ordinary()]


def _capitalised(text: str) -> Iterator[tuple[str, bool, Span]]:
    """What `proper` finds, whether it begins a sentence, and its place without an ending of the sentence's."""
    if _shouted(text):
        return
    for match in _PROPER.finditer(text):
        found = match.group().split()
        left = list(dropwhile(lambda word: fold(word).text in _OPENERS, found))
        if left:
            before = text[: match.start()].rstrip(" \"'(\u201c\u2018")
            told = match.group().split(maxsplit=len(found) - len(left))[-1]
            start, length = match.end() - len(told), len(_ENDING.sub("", told))
            begins = left == found and before[-1:] in ("", ".", "!", "?", ":", "\n")
            yield " ".join(left), begins, Span(start, start + length)


def _shouted(text: str) -> bool:
    """Whether it is in capitals, which then tell nothing."""
    words = re.findall(r"[^\W\d_]+", text)
    capitals = sum(map(len, filter(str.isupper, words)))
    return len(words) >= _FEWEST_SHOUTED and capitals >= _SHOUTED * sum(map(len, words))
