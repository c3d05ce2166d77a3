"""Thresholds from measured scores of texts that must not match: split-conformal, one stratum at a time.

A stratum of its own for each sort of negatives, because the many easy ones would outvote the few hard ones. What was
measured for some targets stands for others with as many texts until these are measured themselves (`Pool`): their
scores together give thresholds that keep the rates over all such targets, the better the more there are, though not
for each (Dunn, Wasserman and Ramdas 2023, on two-layer hierarchies)."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

_CLEAR = 0.1  # quantile of the own scores that counts as the upper side of the gap
HIGHEST = 0.999  # a prompt that equals an example must be able to match
_ENOUGH, _KEPT = 8, 32  # measured targets of one size that stand for others, and that are remembered
_SCORES = 128  # the highest of a stratum that are remembered


@dataclass(frozen=True, eq=False)
class Stratum:
    """Scores of one sort of texts that must not match, the highest `of` so many, and the rate at which new ones of
    that sort may."""

    scores: np.ndarray
    fpr: float
    of: int


@dataclass(frozen=True, eq=False)
class Measured:
    """What calibration measured for a target, or for several `targets` together: strata by `meaning` and by
    `evidence`, and the `ceilings` [rows] of the texts with those that are `plain` [rows]."""

    targets: int
    meaning: Mapping[str, Stratum]
    evidence: Mapping[str, Stratum]
    ceilings: np.ndarray
    plain: np.ndarray

    def ceilings_for(self, plain: np.ndarray) -> np.ndarray:
        """[rows] ceilings that texts of these sorts typically have."""
        typical = {sort: self.ceilings[self.plain == sort] for sort in (False, True)}
        middle = {sort: float(np.median(of)) if len(of) else 0.0 for sort, of in typical.items()}
        result: np.ndarray = np.where(plain, middle[True], middle[False]).astype(np.float32)
        return result


class Pool:
    """What was measured for the targets that were calibrated last, by the number of their texts and whether any is
    plain. Holds scores and no text. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._measured: dict[tuple[int, bool], deque[Measured]] = {}

    def add(self, one: Measured) -> None:
        kept = replace(one, meaning=_highest(one.meaning), evidence=_highest(one.evidence))
        with self._lock:
            self._measured.setdefault(_size(one.plain), deque(maxlen=_KEPT)).append(kept)

    def like(self, plain: np.ndarray, rates: Mapping[str, float]) -> Measured | None:
        """What was measured for targets with about as many texts as `plain` [rows], all together, to be judged by
        `rates`; for a target without texts nothing needs to be. None where these targets are too few."""
        if not len(plain):
            return Measured(0, {}, {}, np.zeros(0, np.float32), plain)
        with self._lock:
            found = tuple(self._measured.get(_size(plain), ()))
        if len(found) < _ENOUGH:
            return None
        return Measured(
            len(found),
            _together([one.meaning for one in found], rates),
            _together([one.evidence for one in found], rates),
            np.concatenate([one.ceilings for one in found]),
            np.concatenate([one.plain for one in found]),
        )


def _size(plain: np.ndarray) -> tuple[int, bool]:
    return len(plain).bit_length(), bool(plain.any())


def _highest(strata: Mapping[str, Stratum]) -> dict[str, Stratum]:
    """Their highest scores; `retain` prompts are near one target and say nothing of others."""
    return {
        name: Stratum(np.sort(of.scores)[-_SCORES:], of.fpr, of.of)
        for name, of in strata.items()
        if name != "retain"
    }


def _together(measured: Sequence[Mapping[str, Stratum]], rates: Mapping[str, float]) -> dict[str, Stratum]:
    joined: dict[str, Stratum] = {}
    for name in rates:
        found = [strata[name] for strata in measured if name in strata]
        if found:
            scores = np.concatenate([one.scores for one in found])
            joined[name] = Stratum(scores, rates[name], sum(one.of for one in found))
    return joined


def conformal(scores: np.ndarray, fpr: float, of: int | None = None, *, nats: bool = False) -> float:
    """The smallest threshold at which a new text of the same sort fires with probability at most `fpr`.

    With n scores that is the ceil((n+1)(1-fpr))-th smallest; `scores` may be the highest ones `of` so many. Too few
    scores cannot promise `fpr`. Then it is estimated from the spread of the upper half around the median, as of a
    normal distribution; for scores that are `nats` of evidence, by a nat more for each factor e that is missing, since
    a likelihood ratio of k comes up by chance at most once in k times (Ville 1939).
    """
    n = len(scores)
    if not n:
        return -math.inf
    ordered = np.sort(scores).astype(np.float64)
    total = max(of or n, n)
    rank = math.ceil((total + 1) * (1 - fpr)) - (total - n)
    if rank <= n:
        return float(np.nextafter(ordered[max(rank, 1) - 1], np.inf))
    if nats:
        return float(ordered[-1]) - math.log((total + 1) * fpr)
    middle = float(np.median(ordered))
    spread = math.sqrt(float(np.mean((ordered[n // 2 :] - middle) ** 2)))
    return middle + NormalDist().inv_cdf(1 - fpr) * spread + 1e-6


def of_similarity(strata: Mapping[str, Stratum], own: np.ndarray) -> float:
    """The similarity that keeps every stratum at its rate.

    Real traffic is more varied than any set of negatives: where most of the target's `own` texts, each judged
    without itself, lie clear above, the threshold is put in the middle of the gap."""
    lowest = max((conformal(s.scores, s.fpr, s.of) for s in strata.values()), default=1.0)
    clear = float(np.quantile(own, _CLEAR)) if len(own) else lowest
    return min(max(lowest, (lowest + clear) / 2), HIGHEST)


def of_evidence(strata: Mapping[str, Stratum]) -> float:
    """The nats that keep every stratum at its rate, and traffic that no stratum stands for at the strictest of the
    rates, as far as the evidence is what it claims to be (Ville 1939)."""
    chance = max((math.log(1 / s.fpr) for s in strata.values()), default=math.inf)
    return max([chance, *(conformal(s.scores, s.fpr, s.of, nats=True) for s in strata.values())])


def report(
    strata: Mapping[str, Stratum],
    own: np.ndarray,
    threshold: float,
    shown: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> dict[str, Any]:
    """What a threshold lets through, JSON-able. `shown` turns scores and threshold into those in [0, 1] that users
    see."""
    seen = {name: shown(stratum.scores) for name, stratum in strata.items()}
    least, mine = float(shown(np.array(threshold))), shown(own)
    measured = {
        name: {
            "n": len(scores),
            "of": strata[name].of,
            "allowed": strata[name].fpr,
            "false_positive_rate": share(scores, least),
        }
        for name, scores in seen.items()
    }
    return {
        "threshold": round(least, 6),
        "negatives": measured,
        "recall": {"n": len(mine), "rate": share(mine, least), "how": "leave one out"},
        "histogram": {"negatives": histogram(list(seen.values())), "own": histogram([mine])},
    }


def share(scores: np.ndarray, threshold: float) -> float | None:
    """The share of scores that reach the threshold, None without scores."""
    return round(float((scores >= threshold).mean()), 4) if len(scores) else None


def histogram(scores: Sequence[np.ndarray]) -> list[int]:
    """Counts of scores in 20 equal bins of [0, 1]."""
    pooled = np.concatenate([np.asarray(s, np.float64) for s in scores]) if scores else np.zeros(0)
    return [int(count) for count in np.histogram(np.clip(pooled, 0.0, 1.0), bins=20, range=(0.0, 1.0))[0]]
