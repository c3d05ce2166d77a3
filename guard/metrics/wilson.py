"""Wilson's score interval (Wilson 1927) on a share: unlike a bootstrap it has a width when all trials agree."""

from __future__ import annotations

from statistics import NormalDist

from guard.metrics.bootstrap import Interval


def wilson(hits: float, n: int, *, level: float = 0.95, trials: int | None = None) -> Interval | None:
    """The share `hits` / `n` with its interval; None without trials.

    `trials` is the number of independent ones, where some of the `n` are repetitions of others.
    """
    if not n:
        return None
    share = hits / n
    count = trials or n

    def bound(side: float, tail: float) -> float:
        z = NormalDist().inv_cdf(1 - tail)
        middle = share + z * z / (2 * count)
        spread = z * ((share * (1 - share) + z * z / (4 * count)) / count) ** 0.5
        return min(max((middle + side * spread) / (1 + z * z / count), 0.0), 1.0)

    tail = (1 - level) / 2
    return Interval(n, share, bound(-1, tail), bound(1, tail), bound(1, 1 - level), level)
