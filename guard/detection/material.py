"""The texts that a target is calibrated on, with their vectors and scores."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from guard.detection.background import background, background_groups
from guard.detection.base import WINDOW_CHARS, CompiledTarget, Terms
from guard.detection.calibrate import Stratum
from guard.detection.encoder import Encoder
from guard.detection.evidence import background_words, named, ordinary, read, weigh, words
from guard.detection.index import FLOOR, relative
from guard.detection.swaps import mentions, near_misses
from guard.detection.windows import sentences, windows
from guard.targets import TargetSpec

# Of own texts and near misses together, so that one core registers 50 examples within a second.
_TEXTS, _WORDS = 96, 1_200
_NEAR_AT_LEAST = 32
LOWEST, HIGHEST = 0.3, 0.98  # of a ceiling
_SHORTEST = 3  # words of a description sentence


@dataclass(frozen=True, eq=False)
class Scored:
    """Texts of one sort with `vectors` [n, dim], their `meaning` [n], the relative similarity to the nearest plain
    row, and their `evidence` [n] in nats, every one judged as if it were new. `of` is the number of texts that
    these are the nearest of."""

    texts: tuple[str, ...]
    vectors: np.ndarray
    meaning: np.ndarray
    evidence: np.ndarray
    of: int


@dataclass(frozen=True, eq=False)
class Material:
    """`own` speaks of the target (`sources` numbers the registered texts they come from: examples, then
    sentences of the description; `plain` are those from a text without name or fact). `negatives` do not: `near` misses
    made from the own texts, `others` of other targets, `retain` of the operator's, and the `background`."""

    own: Scored
    sources: np.ndarray
    ceilings: np.ndarray
    plain: np.ndarray
    negatives: dict[str, Scored]

    def strata(self, score: Literal["meaning", "evidence"], rates: Mapping[str, float]) -> dict[str, Stratum]:
        """The negatives by one of their scores, with the rate allowed to each; those that there are."""
        return {
            name: Stratum(getattr(scored, score), rates[name], scored.of)
            for name, scored in self.negatives.items()
            if len(scored.texts)
        }


@dataclass(frozen=True, eq=False)
class Registered:
    """The `texts` that an operator registered, as they are embedded, with `sources` and `plain` as in Material, and
    the windows of the `retain` prompts."""

    texts: tuple[str, ...]
    sources: np.ndarray
    plain: np.ndarray
    retain: tuple[str, ...]


def registered(spec: TargetSpec, of: Terms, max_chars: int = WINDOW_CHARS) -> Registered:
    """What is registered in `spec`; `of` are the words of the target."""
    own, sources = own_texts(spec, max_chars)
    whole = [*spec.examples, *[spec.description] * (max(sources, default=0) + 1 - len(spec.examples))]
    # of ordinary words alone, a text is anybody's
    telling = [_tells(text, spec) or of.weights.keys().isdisjoint(words(text)) for text in whole]
    plain = np.array([not telling[source] for source in sources], bool)
    retain = [w.text for text in spec.retain for w in windows(text, max_chars=WINDOW_CHARS)]
    return Registered(tuple(own), np.array(sources, np.int64), plain, tuple(retain))


def own_texts(spec: TargetSpec, max_chars: int = WINDOW_CHARS) -> tuple[list[str], list[int]]:
    """Windows of examples, sentences of the description, and those sentences without the name; and for each
    the number of the registered text that it comes from."""
    texts: dict[str, int] = {}
    for i, example in enumerate(spec.examples):
        for window in windows(example, max_chars=max_chars):
            texts.setdefault(window.text, i)
    description = [spec.description[start:end] for start, end in sentences(spec.description)]
    for i, sentence in enumerate(description, start=len(spec.examples)):
        for window in windows(sentence, max_chars=max_chars):
            if len(window.text.split()) >= _SHORTEST:
                texts.setdefault(window.text, i)
                for described in _described(window.text, spec):
                    texts.setdefault(described, i)
    return list(texts), list(texts.values())


def _described(sentence: str, spec: TargetSpec) -> list[str]:
    """ "Jane Doe is a chemist from Vintry." without the name: as a phrase, and as a question for the name."""
    name = next((n for n in sorted(spec.names(), key=len, reverse=True) if mentions(sentence, n)), None)
    if name is None:
        return []
    bare = re.sub(
        rf"(?<!\w)(?:the\s+)?{re.escape(name)}(?:['\u2019]s)?(?!\w)(?:\s+(?:is|was|are|were)(?!\w))?",
        " ",
        sentence,
        flags=re.IGNORECASE,
    )
    bare = " ".join(bare.split())
    asked = re.sub(
        r"^(?:an?|the|one of the)\s+(.*?)[.!]*$", r"What is the name of the \1?", bare, flags=re.IGNORECASE
    )
    return [text for text in dict.fromkeys((bare, asked)) if len(text.split()) >= _SHORTEST]


def gather(
    spec: TargetSpec,
    of: Terms,
    registered: Registered,
    encoder: Encoder,
    others: Sequence[CompiledTarget],
    background_vectors: np.ndarray,
    rng: random.Random,
) -> Material:
    """All material of one target; one call of the encoder. `background_vectors` [prompts, dim] are those of
    ordinary prompts."""
    own, plain, retain = list(registered.texts), registered.plain, list(registered.retain)
    names = [other.spec.name for other in others if other.spec.kind == spec.kind]
    near = near_misses(spec, own, names, _budget(own), rng)
    vectors = encoder.encode([*own, *near, *retain])
    rows, nears, retains = np.split(vectors, np.cumsum([len(own), len(near)]))
    foreign, foreign_rows, foreign_of = _foreign(others, rows, encoder.dim)
    texts = {"near": near, "others": foreign, "retain": retain, "background": background()}
    strata = {"near": nears, "others": foreign_rows, "retain": retains, "background": background_vectors}
    alone = len(near) + len(foreign) + len(retain)
    # only the background has variants of one text; the numbers of the others must not meet its own
    kin = np.concatenate([-1 - np.arange(alone), np.array(background_groups())])
    scale = Scale(rows, list(strata.values()), kin)
    negatives = {}
    for i, (name, stratum) in enumerate(strata.items()):
        meaning, nearest = scale.held_out(i, plain), scale.held_out(i)
        read_texts = background_words() if name == "background" else map(read, texts[name])
        evidence = weigh(of, read_texts, nearest)
        many = foreign_of if name == "others" else len(stratum)
        negatives[name] = Scored(tuple(texts[name]), stratum, meaning, evidence, many)
    mine = _own(own, rows, of, registered.sources, plain, scale)
    return Material(mine, registered.sources, scale.ceilings, plain, negatives)


def draft(
    of: Terms, registered: Registered, encoder: Encoder, background_vectors: np.ndarray, ceilings: np.ndarray
) -> Material:
    """As `gather`, at the cost of the registered texts alone: no near misses and no texts of other targets. A row's
    ceiling is that of `ceilings` [n], or its nearest prompt of the background or to `retain`, where that is higher."""
    texts, retain, plain = registered.texts, registered.retain, registered.plain
    rows, retains = np.split(encoder.encode([*texts, *retain]), [len(texts)])
    kin = np.concatenate([-1 - np.arange(len(retain)), np.array(background_groups())])
    scale = Scale(rows, [retains, background_vectors], kin, ceilings)
    evidence = weigh(of, map(read, retain), scale.held_out(0))
    scored = Scored(retain, retains, scale.held_out(0, plain), evidence, len(retain))
    mine = _own(texts, rows, of, registered.sources, plain, scale)
    return Material(mine, registered.sources, scale.ceilings, plain, {"retain": scored})


def _tells(text: str, spec: TargetSpec) -> bool:
    """Whether a registered text holds a name or fact by which it can be known to speak of the target."""
    return any(mentions(text, name) for name in spec.names()) or not named(text) <= ordinary()


def _budget(own: Sequence[str]) -> int:
    """How many near misses may be embedded beside the own texts; each is about as long as its source."""
    words = sum(len(text.split()) for text in own)
    by_words = (_WORDS - words) * len(own) // max(words, 1)
    return max(min(_TEXTS - len(own), by_words), _NEAR_AT_LEAST)


class Scale:
    """Relative similarities to `rows` [n, dim]: each row's ceiling is its similarity to the nearest negative, or
    that of `least` [n].

    `kin` [negatives] are group numbers over all strata together: negatives of one group are variants of one
    text."""

    def __init__(
        self,
        rows: np.ndarray,
        strata: Sequence[np.ndarray],
        kin: np.ndarray,
        least: np.ndarray | float = LOWEST,
    ) -> None:
        self._rows = rows
        self._cosines = [stratum @ rows.T for stratum in strata]
        self._offsets = np.cumsum([0, *(len(stratum) for stratum in strata)])
        self._kin = kin
        pooled = np.concatenate(self._cosines)
        self._nearest_kin = kin[pooled.argmax(axis=0)] if len(rows) else np.zeros(0, np.int64)
        nearest = pooled.max(axis=0) if len(rows) else np.zeros(0, np.float32)
        self.ceilings = self._clip(np.maximum(nearest, least))
        seconds = [pooled[kin != group, row].max() for row, group in enumerate(self._nearest_kin)]
        self._second = self._clip(np.maximum(np.array(seconds, np.float32), least))

    @staticmethod
    def _clip(values: np.ndarray) -> np.ndarray:
        # never 1: a negative that equals an example must not make the example unreachable for its equal
        result: np.ndarray = np.clip(values, LOWEST, HIGHEST).astype(np.float32)
        return result

    def held_out(self, stratum: int, among: np.ndarray | None = None) -> np.ndarray:
        """[negatives] scores of one stratum, each negative judged by ceilings that neither it nor its kin
        set; to the rows `among` [n] alone, if given."""
        cosines = self._cosines[stratum]
        if not cosines.size or (among is not None and not among.any()):
            return np.full(len(cosines), FLOOR, np.float32)
        kin = self._kin[self._offsets[stratum] : self._offsets[stratum + 1]]
        own = kin[:, None] == self._nearest_kin[None, :]
        scores = relative(cosines, np.where(own, self._second, self.ceilings))
        result: np.ndarray = np.maximum(scores if among is None else scores[:, among], FLOOR).max(axis=1)
        return result

    def apart(self, groups: np.ndarray, among: np.ndarray) -> np.ndarray:
        """[n] scores of the rows themselves, each to the rows `among` of other groups."""
        scores = relative(self._rows @ self._rows.T, self.ceilings)
        scores[(groups[:, None] == groups[None, :]) | ~among[None, :]] = FLOOR
        result: np.ndarray = np.maximum(scores.max(axis=1, initial=FLOOR), FLOOR)
        return result


def _own(
    texts: Sequence[str], rows: np.ndarray, of: Terms, sources: np.ndarray, plain: np.ndarray, scale: Scale
) -> Scored:
    """Own texts, each without the rows that come from the same registered text."""
    nearest = scale.apart(sources, np.ones(len(texts), bool))
    return Scored(
        tuple(texts), rows, scale.apart(sources, plain), weigh(of, map(read, texts), nearest), len(texts)
    )


def _foreign(
    others: Sequence[CompiledTarget], rows: np.ndarray, dim: int, limit: int = 100
) -> tuple[list[str], np.ndarray, int]:
    """Texts of other targets, but for those that are about the same thing: most of their rows lie on ours; and how
    many there were."""
    texts: list[str] = []
    vectors: list[np.ndarray] = []
    for other in others:
        if len(other.vectors) and len(rows) and np.median((other.vectors @ rows.T).max(axis=1)) < 0.9:
            texts.extend(other.texts)
            vectors.append(other.vectors)
    if not vectors:
        return [], np.zeros((0, dim), np.float32), 0
    pooled = np.concatenate(vectors)
    # the nearest ones decide; the far ones are like the background
    order = np.argsort(-(pooled @ rows.T).max(axis=1), kind="stable")[:limit]
    return [texts[i] for i in order], pooled[order], len(pooled)
