"""Nearest examples: how near each window is to those texts of a target that hold no name or fact to tell it by.

A text that does is judged with what it holds (guard.detection.classifier): by its meaning alone, the same question
about anybody else is the same question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from guard.detection.base import CompiledTarget, Finding, Reading, Screen
from guard.detection.calibrate import HIGHEST
from guard.detection.evidence import named, unknown
from guard.detection.gist import EQUAL
from guard.detection.index import FLOOR, relative
from guard.detection.layers import Layers
from guard.detection.windows import wording
from guard.types import Span

_SCREENED = 4_096  # rows; to compare gists with more costs as much as embedding the window
_ROUNDED = 0.05  # what the index may be wrong by; whoever comes so near is looked at exactly


class Semantic:
    """Fires where a window is as near to an example or description as the calibrated threshold asks. Where no target
    has texts to be met by their meaning, that are the windows with the words of an example; where all that have such
    texts are screened, those that pass."""

    def __init__(self, compiled: Sequence[CompiledTarget], before: Semantic | None = None) -> None:
        self._targets = [target for target in compiled if len(target.vectors)]
        least = [target.semantic_threshold - _ROUNDED for target in self._targets]
        self._thresholds = np.array(least, np.float32)
        plain = [target for target in self._targets if target.plain.any()]
        self._plain = frozenset(target.target_id for target in plain)
        self._screen = _joined(plain)
        self._owners = [target for target in plain for _ in target.vectors] if self._screen else []
        self._wordings: Layers[frozenset[bytes]] = (
            before._wordings if before else Layers(_wordings)
        ).renewed(self._targets)

    def detect(self, reading: Reading) -> Iterable[Finding]:
        asked = self._asked(reading)
        if not len(asked):
            return
        near = reading.near(asked)
        thresholds = self._thresholds[near.columns]
        for at in np.flatnonzero((near.scores >= thresholds).any(axis=0)):
            target = self._targets[near.columns[at]]
            if target.target_id not in reading.active:
                continue
            of = _to_plain(reading, asked, target)
            least = target.semantic_threshold
            for unit, best, spans in fired(reading, asked, of, least):
                score = max(min(best, 1.0), least)  # float32 rounds
                yield Finding(unit, target.target_id, score, least, spans)

    def _asked(self, reading: Reading) -> list[int]:
        """The windows that can match."""
        if not any(target.target_id in reading.active for target in self._targets):
            return []
        asked: list[int] = []
        if not reading.active.isdisjoint(self._plain):
            if self._screen is None:
                return list(range(len(reading.windows)))
            asked = self._passing(reading, self._screen)
        known = [wordings for wordings in self._wordings if wordings]
        rest = set(range(len(reading.windows))).difference(asked)
        texts = {at: wording(reading.windows[at][1].text) for at in rest} if known else {}
        return sorted([*asked, *(at for at, text in texts.items() if any(text in of for of in known))])

    def _passing(self, reading: Reading, screen: Screen) -> list[int]:
        """The windows that a text may be near enough of a target that is not out of the question for them anyway."""
        alike = reading.alike(screen)
        asked = np.any(alike >= EQUAL, axis=1)
        near: dict[int, dict[str, CompiledTarget]] = {}
        for at, row in np.argwhere((alike >= screen.least) & ~asked[:, None]):
            near.setdefault(int(at), {})[self._owners[row].target_id] = self._owners[row]
        for at, targets in near.items():
            text = reading.windows[at][1].text
            asked[at] = any(not _of_others(target, text) for target in targets.values())
        return np.flatnonzero(asked).tolist()


def _joined(plain: Sequence[CompiledTarget]) -> Screen | None:
    """What screens windows for all of these targets, None where one has no screen or they have too many texts."""
    screens = [target.screen for target in plain if target.screen is not None]
    if not screens or len(screens) < len(plain) or sum(len(one.least) for one in screens) > _SCREENED:
        return None
    return Screen(
        np.concatenate([one.gists for one in screens]), np.concatenate([one.least for one in screens])
    )


def _wordings(targets: Sequence[CompiledTarget]) -> frozenset[bytes]:
    return frozenset(wording(text) for target in targets for text in target.texts)


def _to_plain(reading: Reading, asked: Sequence[int], target: CompiledTarget) -> np.ndarray:
    """[asked] relative similarity to the nearest plain row of the target, or to any row that it equals. What asks
    about somebody by name does not ask about an entity that goes without."""
    scores = relative(reading.vectors(asked) @ target.vectors.T, target.ceilings)
    result: np.ndarray = np.where(target.plain | (scores >= HIGHEST), scores, FLOOR).max(axis=1)
    for at in np.flatnonzero((result >= target.semantic_threshold) & (result < HIGHEST)):
        if _of_others(target, reading.windows[asked[at]][1].text):
            result[at] = FLOOR
    return result


def _of_others(target: CompiledTarget, text: str) -> bool:
    """Whether the text names somebody whom the texts of a person or a work do not know."""
    return target.spec.kind in ("entity", "work") and unknown(target.terms, named(text)) > 0


def fired(
    reading: Reading, asked: Sequence[int], scores: np.ndarray, least: float, limit: int = 16
) -> Iterator[tuple[int, float, tuple[Span, ...]]]:
    """(unit, best score, spans of the best `limit` windows) wherever the `scores` of the windows `asked` reach
    `least`."""
    high = {asked[at]: float(scores[at]) for at in np.flatnonzero(scores >= least)}
    for unit, windows in reading.by_unit(high).items():
        best = sorted(windows, key=lambda window: -high[window])[:limit]
        yield unit, high[best[0]], tuple(dict.fromkeys(map(reading.span, best)))
