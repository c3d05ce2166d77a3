"""The texts that a target is calibrated and trained on, with their vectors and evidence."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from guard.detection.background import background_groups
from guard.detection.base import WINDOW_CHARS, CompiledTarget, Terms
from guard.detection.encoder import Encoder
from guard.detection.evidence import amounts, names_other, strangers
from guard.detection.index import FLOOR, relative
from guard.detection.swaps import mentions, near_misses
from guard.detection.text import fold
from guard.detection.windows import sentences, windows
from guard.targets import TargetSpec

# Of own texts and near misses together, so that one core registers 50 examples within a second.
_TEXTS, _WORDS = 96, 1_200
_NEAR_AT_LEAST = 32
LOWEST, HIGHEST = 0.3, 0.98  # of a ceiling
_SHORTEST = 3  # words of a description sentence


@dataclass(frozen=True, eq=False)
class Texts:
    """Texts with `vectors` [n, dim] and, where a head is trained, `evidence` [n, 5] (evidence.FEATURES)."""

    texts: tuple[str, ...]
    vectors: np.ndarray
    evidence: np.ndarray


@dataclass(frozen=True, eq=False)
class Material:
    """`own` speaks of the target (`sources` numbers the registered texts they come from: examples, then
    sentences of the description), `partial` by a part of its name; `near` are near misses made from them,
    `others` other targets' texts, `retain` the operator's; `background` are the scores of the background
    prompts. Column 0 of every evidence is held out."""

    own: Texts
    sources: np.ndarray
    ceilings: np.ndarray
    partial: Texts
    near: Texts
    others: Texts
    retain: Texts
    background: np.ndarray


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
    encoder: Encoder,
    others: Sequence[CompiledTarget],
    background: np.ndarray,
    rng: random.Random,
) -> Material:
    """All material of one target; one call of the encoder. `background` [prompts, dim] are ordinary
    prompts."""
    own, sources = own_texts(spec, min(WINDOW_CHARS, encoder.max_tokens - 6))
    names = [other.spec.name for other in others if other.spec.kind == spec.kind]
    made = near_misses(spec, own, names, _budget(own), rng)
    partial = [sample for sample in made if sample.role == "partial"]
    near = [sample.text for sample in made if sample.role != "partial"]
    retain = [w.text for text in spec.retain for w in windows(text, max_chars=WINDOW_CHARS)]
    vectors = encoder.encode([*own, *(sample.text for sample in partial), *near, *retain])
    rows, partials, nears, retains = np.split(vectors, np.cumsum([len(own), len(partial), len(near)]))
    at = np.array(sources, np.int64)
    foreign, foreign_rows = _foreign(others, rows, encoder.dim)
    strata = [nears, foreign_rows, retains, background]
    alone = len(nears) + len(foreign_rows) + len(retains)
    # only the background has variants of one text; the numbers of the others must not meet its own
    kin = np.concatenate([-1 - np.arange(alone), np.array(background_groups())])
    scale = Scale(rows, strata, kin)
    origins = at[[sample.source for sample in partial]] if partial else np.zeros(0, np.int64)
    scores = [scale.held_out(i) for i in range(4)]
    return Material(
        own=_own(own, rows, of, at, len(spec.examples), scale),
        sources=at,
        ceilings=scale.ceilings,
        partial=_with_evidence([s.text for s in partial], partials, of, scale.apart(partials, origins, at)),
        near=_with_evidence(near, nears, of, scores[0]),
        others=_with_evidence(foreign, foreign_rows, of, scores[1]),
        retain=_with_evidence(retain, retains, of, scores[2]),
        background=scores[3],
    )


def _budget(own: Sequence[str]) -> int:
    """How many near misses may be embedded beside the own texts; each is about as long as its source."""
    words = sum(len(text.split()) for text in own)
    by_words = (_WORDS - words) * len(own) // max(words, 1)
    return max(min(_TEXTS - len(own), by_words), _NEAR_AT_LEAST)


class Scale:
    """Relative similarities to `rows` [n, dim]: each row's ceiling is its similarity to the nearest negative.

    `kin` [negatives] are group numbers over all strata together: negatives of one group are variants of one
    text."""

    def __init__(self, rows: np.ndarray, strata: Sequence[np.ndarray], kin: np.ndarray) -> None:
        self._rows = rows
        self._cosines = [stratum @ rows.T for stratum in strata]
        self._offsets = np.cumsum([0, *(len(stratum) for stratum in strata)])
        self._kin = kin
        pooled = np.concatenate(self._cosines)
        self._nearest_kin = kin[pooled.argmax(axis=0)] if len(rows) else np.zeros(0, np.int64)
        self.ceilings = self._clip(pooled.max(axis=0) if len(rows) else np.zeros(0, np.float32))
        seconds = [pooled[kin != group, row].max() for row, group in enumerate(self._nearest_kin)]
        self._second = self._clip(np.array(seconds, np.float32))

    @staticmethod
    def _clip(values: np.ndarray) -> np.ndarray:
        # never 1: a negative that equals an example must not make the example unreachable for its equal
        result: np.ndarray = np.clip(values, LOWEST, HIGHEST).astype(np.float32)
        return result

    def held_out(self, stratum: int) -> np.ndarray:
        """[negatives] scores of one stratum, each negative judged by ceilings that neither it nor its kin
        set."""
        cosines = self._cosines[stratum]
        if not cosines.size:
            return np.full(len(cosines), FLOOR, np.float32)
        kin = self._kin[self._offsets[stratum] : self._offsets[stratum + 1]]
        own = kin[:, None] == self._nearest_kin[None, :]
        scores = relative(cosines, np.where(own, self._second, self.ceilings))
        result: np.ndarray = np.maximum(scores.max(axis=1), FLOOR)
        return result

    def apart(self, vectors: np.ndarray, origins: np.ndarray, sources: np.ndarray) -> np.ndarray:
        """[n] scores of texts of the target's own, without the rows of the source that each was made from."""
        if not len(vectors):
            return np.zeros(0, np.float32)
        scores = relative(vectors @ self._rows.T, self.ceilings)
        scores[origins[:, None] == sources[None, :]] = FLOOR
        result: np.ndarray = np.maximum(scores.max(axis=1), FLOOR)
        return result


def _own(
    texts: Sequence[str], rows: np.ndarray, of: Terms, sources: np.ndarray, examples: int, scale: Scale
) -> Texts:
    """Own texts as if each were new. For an example, the rows and terms that come from it alone do not count;
    a prompt that describes the target repeats what its description says, so only the sentence itself is left
    out."""
    groups = np.where(sources < examples, sources, examples + np.arange(len(texts)))
    made = _with_evidence(texts, rows, of, scale.apart(rows, groups, groups))
    folded = [fold(text).text for text in texts]
    elsewhere = {
        term: {int(source) for text, source in zip(folded, sources, strict=True) if term in text}
        for term in of.strong | of.weak
    }
    known = {t for t, where in elsewhere.items() if len(where) >= 2 or any(at >= examples for at in where)}
    shared = amounts(Terms(of.parts, of.strong & known, of.weak & known, of.vocabulary), folded)
    made.evidence[sources < examples, 1:4] = shared[sources < examples]
    return made


def _foreign(
    others: Sequence[CompiledTarget], rows: np.ndarray, dim: int, limit: int = 400
) -> tuple[list[str], np.ndarray]:
    """Texts of other targets, but for those that are about the same thing: most of their rows lie on ours."""
    texts: list[str] = []
    vectors: list[np.ndarray] = []
    for other in others:
        if len(other.vectors) and len(rows) and np.median((other.vectors @ rows.T).max(axis=1)) < 0.9:
            texts.extend(other.texts)
            vectors.append(other.vectors)
    if not vectors:
        return [], np.zeros((0, dim), np.float32)
    pooled = np.concatenate(vectors)
    # the nearest ones decide; the far ones are like the background
    order = np.argsort(-(pooled @ rows.T).max(axis=1), kind="stable")[:limit]
    return [texts[i] for i in order], pooled[order]


def _with_evidence(texts: Sequence[str], vectors: np.ndarray, of: Terms, near: np.ndarray) -> Texts:
    """Evidence [n, 5] of texts, given their similarity to the nearest example."""
    found = amounts(of, [fold(text).text for text in texts])
    other = np.array([names_other(strangers(text), of.vocabulary) for text in texts], np.float32).reshape(-1)
    evidence = np.concatenate([near.reshape(-1, 1), found, other.reshape(-1, 1)], axis=1).astype(np.float32)
    return Texts(tuple(texts), vectors, evidence)
