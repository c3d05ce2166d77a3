"""Thresholds from measured scores of texts that must not match: split-conformal, one stratum at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

_CLEAR = 0.1  # quantile of the own scores that counts as the upper side of the gap
_HIGHEST = 0.999  # a prompt that equals an example must be able to match


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A threshold with what it was measured on; `report` is JSON-able."""

    threshold: float
    report: dict[str, Any]


def conformal(scores: np.ndarray, fpr: float) -> float:
    """The smallest threshold at which a new text of the same sort fires with probability at most `fpr`.

    With n scores that is the ceil((n+1)(1-fpr))-th smallest. Too few scores cannot promise `fpr`: then it is
    estimated from the spread of the upper half around the median, as of a normal distribution.
    """
    n = len(scores)
    if not n:
        return -math.inf
    ordered = np.sort(scores).astype(np.float64)
    rank = math.ceil((n + 1) * (1 - fpr))
    if rank <= n:
        return float(np.nextafter(ordered[rank - 1], np.inf))
    middle = float(np.median(ordered))
    spread = math.sqrt(float(np.mean((ordered[n // 2 :] - middle) ** 2)))
    return middle + NormalDist().inv_cdf(1 - fpr) * spread + 1e-6


def calibrate(
    strata: Mapping[str, np.ndarray],
    own: np.ndarray,
    fpr: Mapping[str, float],
    fixed: float | None = None,
    shown: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Calibrated:
    """The threshold that keeps every stratum of negatives at its rate in `fpr`, or `fixed`.

    A stratum of its own for each sort of negatives, because the many easy ones would outvote the few hard
    ones. Real traffic is more varied than any set of negatives: where most of the target's own texts lie
    clear above, the threshold is put in the middle of the gap.

    `own` are leave-one-out scores of the target's own texts. `shown` turns raw scores into those in [0, 1]
    that users see; it is monotone, and `fixed` is such a score."""
    if fixed is not None:
        threshold = fixed
    else:
        lowest = max((conformal(scores, fpr[name]) for name, scores in strata.items()), default=1.0)
        clear = float(np.quantile(own, _CLEAR)) if len(own) else lowest
        threshold = min(float(shown(np.array(max(lowest, (lowest + clear) / 2)))), _HIGHEST)
    seen = {name: shown(scores) for name, scores in strata.items()}
    own = shown(own)
    measured = {
        name: {"n": len(scores), "false_positive_rate": share(scores, threshold)}
        for name, scores in seen.items()
    }
    report = {
        "threshold": round(float(threshold), 6),
        "negatives": measured,
        "recall": {"n": len(own), "rate": share(own, threshold), "how": "leave one out"},
        "histogram": {"negatives": histogram(list(seen.values())), "own": histogram([own])},
    }
    return Calibrated(float(threshold), report)


def share(scores: np.ndarray, threshold: float) -> float | None:
    """The share of scores that reach the threshold, None without scores."""
    return round(float((scores >= threshold).mean()), 4) if len(scores) else None


def histogram(scores: Sequence[np.ndarray]) -> list[int]:
    """Counts of scores in 20 equal bins of [0, 1]."""
    pooled = np.concatenate([np.asarray(s, np.float64) for s in scores]) if scores else np.zeros(0)
    return [int(count) for count in np.histogram(np.clip(pooled, 0.0, 1.0), bins=20, range=(0.0, 1.0))[0]]
