"""Percentile bootstrap intervals (Efron 1979), seeded, on means.

Paired quantities are resampled as pairs: give the per-item differences. Where items come in groups that
rise and fall together (the questions about one person), `groups` resamples whole groups (a cluster
bootstrap) and the interval is wider for it. When every value is the same the interval has no width whatever
the sample size: n belongs beside every figure.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

SAMPLES = 4_000
_CHUNK = 2_000_000  # cells of an index matrix held at once


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its two-sided interval and the one-sided upper bound of the same level."""

    n: int
    mean: float
    low: float
    high: float
    upper: float
    level: float = 0.95

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def _resampled(values: np.ndarray, weights: np.ndarray, rng: np.random.Generator, samples: int) -> np.ndarray:
    """Means of `samples` resamples; each drawn unit brings the sum `values` of its `weights` items."""
    units = len(values)
    step = max(1, _CHUNK // units)
    means = []
    for start in range(0, samples, step):
        drawn = rng.integers(0, units, size=(min(step, samples - start), units))
        means.append(values[drawn].sum(axis=1) / weights[drawn].sum(axis=1))
    return np.concatenate(means)


def mean_interval(
    values: Sequence[float],
    *,
    seed: int = 0,
    level: float = 0.95,
    samples: int = SAMPLES,
    groups: Sequence[Hashable] | None = None,
) -> Interval | None:
    """The mean of `values` with its bootstrap interval; None when there are no values."""
    data = np.asarray(values, dtype=float)
    if not len(data):
        return None
    sums, sizes = data, np.ones_like(data)
    if groups is not None:
        if len(groups) != len(data):
            raise ValueError(f"{len(groups)} groups for {len(data)} values")
        index = {group: i for i, group in enumerate(dict.fromkeys(groups))}
        where = np.array([index[group] for group in groups])
        sums, sizes = np.bincount(where, weights=data), np.bincount(where).astype(float)
    means = _resampled(sums, sizes, np.random.default_rng(seed), samples)
    tail = (1 - level) / 2
    low, high, upper = (float(x) for x in np.quantile(means, [tail, 1 - tail, level]))
    return Interval(len(data), float(data.mean()), low, high, upper, level)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    *,
    seed: int = 0,
    level: float = 0.95,
    samples: int = SAMPLES,
    groups: Sequence[Hashable] | None = None,
) -> Interval | None:
    """The mean of `first - second` over items that both have, in the same order."""
    if len(first) != len(second):
        raise ValueError(f"pairs need equal lengths, not {len(first)} and {len(second)}")
    return mean_interval(
        np.subtract(first, second).tolist(), seed=seed, level=level, samples=samples, groups=groups
    )


def upper_bound(values: Sequence[float], *, seed: int = 0, level: float = 0.95) -> float | None:
    """The one-sided bound under which the mean lies with probability `level`; None without values."""
    interval = mean_interval(values, seed=seed, level=level)
    return None if interval is None else interval.upper
