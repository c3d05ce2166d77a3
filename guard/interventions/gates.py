"""The activation gate: a running statistic over tokens that show features of a target. It only observes.

Dynamic SAE Guardrails (arXiv 2504.08192) gates on the share of hot tokens in the whole prompt, so harmless text around
a question dilutes it. Two statistics that are not diluted stand here instead: the share among the last tokens, and
Page's CUSUM, a sum that each hot token raises, each other token lowers, and that never falls below zero. The verdict
belongs to the frontend.

Both follow from the tokens seen, in their order, alone: sums are of integers, so that they are the same however the
tokens are cut into chunks, and tokens that are computed again after a preemption are not counted twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Hot = NDArray[np.bool_]
_UNIT = 1 << 16  # the CUSUM's steps are multiples of its inverse


@dataclass(frozen=True, slots=True)
class Limits:
    """What a gate is measured against; it fires above `rate` or above `cusum`.

    window: tokens that the rate runs over; as long as fewer have been seen it runs over those, but it is never taken
    over less than a quarter of the window. drift: by how much a token that is not hot lowers the sum; a hot one raises
    it by 1 - drift.
    """

    window: int
    rate: float
    drift: float
    cusum: float


@dataclass
class Gate:
    """The statistics of one request. `fired_at` is the position of the token that was too much, None before;
    `excess` is then by what factor, in the statistic that is further above its limit."""

    limits: Limits
    fired_at: int | None = None
    excess: float = 0.0
    _next: int = 0
    _seen: int = 0
    _last: Hot = field(default_factory=lambda: np.zeros(0, np.bool_))
    _sum: int = 0

    def observe(self, start: int, hot: Hot) -> bool:
        """Take in the tokens from position `start` on; whether the gate fires now, which it does once.

        Positions that were taken in before are left out. Positions that are skipped, as those that the prefix cache
        serves are, count for nothing.
        """
        hot = hot[max(self._next - start, 0) :]
        if not len(hot):
            return False
        first = max(start, self._next)
        rates = window_rates(hot, self.limits.window, self._last, self._seen)
        sums = _cusums(hot, self.limits.drift, self._sum)
        self._next, self._seen, self._sum = first + len(hot), self._seen + len(hot), int(sums[-1])
        last = np.concatenate([self._last, hot])
        self._last = last[max(len(last) - self.limits.window + 1, 0) :]
        above = (rates > self.limits.rate) | (sums > self.limits.cusum * _UNIT)
        if self.fired_at is not None or not above.any():
            return False
        at = int(above.argmax())
        self.fired_at = first + at
        pairs = ((float(rates[at]), self.limits.rate), (sums[at] / _UNIT, self.limits.cusum))
        self.excess = float(max(value / max(limit, 1 / _UNIT) for value, limit in pairs))
        return True


def window_rates(hot: Hot, window: int, before: Hot | None = None, seen: int = 0) -> NDArray[np.float64]:
    """The share of hot tokens in the window that ends at each of `hot` [n]; `before` are the last of the `seen`
    tokens ahead of them, at least window - 1 where there are so many."""
    before = hot[:0] if before is None else before
    total = np.concatenate([[0], np.cumsum(np.concatenate([before, hot]))])
    ends = np.arange(len(before) + 1, len(total))
    counts = total[ends] - total[np.maximum(ends - window, 0)]
    lengths = np.minimum(seen + 1 + np.arange(len(hot)), window)
    return counts / np.maximum(lengths, math.ceil(window / 4))


def _cusums(hot: Hot, drift: float, start: int = 0) -> NDArray[np.int64]:
    """The sum after each of `hot` [n], in steps of 1 / _UNIT, from `start`."""
    down = round(drift * _UNIT)
    walk = np.cumsum(np.where(hot, _UNIT - down, -down))
    return walk - np.minimum(np.minimum.accumulate(walk), -start)


def calibrate(clean: Sequence[Hot], armed: Sequence[Hot], *, window: int = 32, level: float = 0.01) -> Limits:
    """Limits that all but a share `level` of the tokens of `clean` texts stay under, for each statistic.

    The quantiles are those of all window rates and all sums pooled: the distribution of the largest of each text
    depends on its length and soon reaches the top of the scale. The drift is the rate between those of `clean` and
    `armed` texts at which both are equally likely.

    Raises:
        ValueError: tokens of armed texts are not hot more often than those of clean ones.
    """
    quiet, loud = (float(np.concatenate(list(texts)).mean()) for texts in (clean, armed))
    if not 0 <= quiet < loud <= 1:
        raise ValueError("the features do not show more in armed texts than in clean ones")
    # Rates of 0 and 1 have no likelihoods.
    p, q = max(quiet, 1e-4), min(loud, 1 - 1e-4)
    drift = math.log((1 - p) / (1 - q)) / math.log(q * (1 - p) / (p * (1 - q)))
    rates = np.concatenate([window_rates(hot, window) for hot in clean])
    sums = np.concatenate([_cusums(hot, drift) for hot in clean]) / _UNIT
    rate, cusum = (float(np.quantile(values, 1 - level, method="higher")) for values in (rates, sums))
    return Limits(window, rate, drift, cusum)
