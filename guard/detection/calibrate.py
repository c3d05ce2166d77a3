"""Thresholds from measured scores of texts that must not match: split-conformal, one stratum at a time.

A stratum of its own for each sort of negatives, because the many easy ones would outvote the few hard ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

_CLEAR = 0.1  # quantile of the own scores that counts as the upper side of the gap
HIGHEST = 0.999  # a prompt that equals an example must be able to match


@dataclass(frozen=True, eq=False)
class Stratum:
    """Scores of one sort of texts that must not match, the highest `of` so many, and the rate at which new ones of
    that sort may."""

    scores: np.ndarray
    fpr: float
    of: int


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
