"""What is told of two that were compared: ratios with bootstrap intervals, and which of them are worse than stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.driving import Block, Pair
from guard.metrics.bootstrap import Interval

SAMPLES = 2_000
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def interval(value: float, drawn: Sequence[float] | np.ndarray, n: int) -> Interval:
    """Around a figure of n measurements, from what resamples of them gave."""
    low, high, upper = (float(x) for x in np.quantile(drawn, [0.025, 0.975, 0.95]))
    return Interval(n, value, low, high, upper)


def quantile_ratio(pairs: Sequence[tuple[float, float]], quantile: float, seed: int = 0) -> Interval | None:
    """The ratio of second to first at a quantile, with its interval over resampled pairs."""
    if not pairs:
        return None
    data, rng = np.asarray(pairs), np.random.default_rng(seed)
    ratio = lambda rows: float(np.divide(*np.quantile(rows, quantile, axis=0)[::-1]))  # noqa: E731
    drawn = [ratio(data[rng.integers(0, len(data), len(data))]) for _ in range(SAMPLES)]
    return interval(ratio(data), drawn, len(data))


def gap_intervals(
    quiet: Sequence[Sequence[float]], busy: Sequence[Sequence[float]], quantile: float = 0.99, seed: int = 0
) -> tuple[Interval, Interval]:
    """How far the gaps of busy windows lie above those of the quiet ones beside them at a quantile, as a difference
    and as a ratio. Windows are resampled whole, each with its neighbour: gaps of one window rise together."""
    windows = [(np.asarray(a), np.asarray(b)) for a, b in zip(quiet, busy, strict=True)]
    rng = np.random.default_rng(seed)

    def at(chosen: Sequence[int]) -> tuple[float, float]:
        calm, swapped = (
            float(np.quantile(np.concatenate([windows[i][side] for i in chosen]), quantile))
            for side in (0, 1)
        )
        return swapped - calm, swapped / calm

    n = len(windows)
    whole = at(range(n))
    drawn = list(zip(*(at(rng.integers(0, n, n).tolist()) for _ in range(SAMPLES)), strict=True))
    return interval(whole[0], drawn[0], n), interval(whole[1], drawn[1], n)


def growth(
    requests: Sequence[float], resident: Sequence[float], per: int = 10_000, seed: int = 0
) -> Interval:
    """By what share of its mean resident memory grows in so many requests: a straight line through the measurements.
    Its residuals are resampled in runs, because what a process holds it mostly still holds a moment later."""
    x, y = np.asarray(requests, dtype=float), np.asarray(resident, dtype=float)
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    slope = weights @ y
    residuals, rng = y - y.mean() - slope * (x - x.mean()), np.random.default_rng(seed)
    run = max(1, round(len(x) ** 0.5))
    starts = rng.integers(0, len(x) - run + 1, (SAMPLES, -(-len(x) // run), 1))
    chosen = (starts + np.arange(run)).reshape(SAMPLES, -1)[:, : len(x)]
    share = per / y.mean()
    return interval(float(slope * share), (slope + residuals[chosen] @ weights) * share, len(x))


def median_interval(values: Sequence[float], seed: int = 0) -> Interval | None:
    """The median with its interval over resampled values; None when there are no values."""
    if not len(values):
        return None
    data, rng = np.asarray(values, dtype=float), np.random.default_rng(seed)
    drawn = np.median(data[rng.integers(0, len(data), (SAMPLES, len(data)))], axis=1)
    return interval(float(np.median(data)), drawn, len(data))


def _by_round(of: Callable[[Block], float]) -> Callable[[Sequence[Pair]], Interval | None]:
    """The median over rounds of second over first. Not the mean: where cores are few, a server's processes can stand in
    each other's way for seconds, and one such block of either would decide."""
    return lambda pairs: median_interval([of(second) / of(first) for first, second in pairs])


def _by_request(quantile: float) -> Callable[[Sequence[Pair]], Interval | None]:
    """Second over first at a quantile of the times to the first token, over the pairs of requests of all rounds."""
    return lambda pairs: quantile_ratio(
        [both for first, second in pairs for both in zip(first.first, second.first, strict=True)], quantile
    )


MEASURES: dict[str, Callable[[Sequence[Pair]], Interval | None]] = {
    "throughput": _by_round(lambda block: block.tokens / block.seconds),
    "ttft_p50": _by_request(0.5),
    "ttft_p95": _by_request(0.95),
    "ttft_p99": _by_request(0.99),
    "tpot": _by_round(lambda block: float(np.mean(block.each))),
    "itl_p99": _by_round(lambda block: float(np.quantile(block.gaps, 0.99))),
    "cpu_per_token": _by_round(lambda block: block.cpu / block.tokens),
    "memory": _by_round(lambda block: float(block.memory)),
}
"""Second over first; of throughput more is better, of all others less."""


def first_tokens(pairs: Sequence[Pair]) -> dict[str, list[float]]:
    """Quantiles of both sides' times to the first token, at SHARES, as shares of the first side's median."""
    sides = [np.concatenate([pair[side].first for pair in pairs]) for side in (0, 1)]
    middle = np.median(sides[0])
    told = [np.quantile(side / middle, SHARES).tolist() for side in sides]
    return {"shares": list(SHARES), "first": told[0], "second": told[1]}


def worse(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """The ratios that are certainly worse than stored ones: intervals apart, on the wrong side."""
    found = []
    for name in sorted(now.keys() & before.keys()):
        more_is_better = name.endswith("throughput")
        new, old = now[name], before[name]
        apart = new["high"] < old["low"] if more_is_better else new["low"] > old["high"]
        if apart:
            found.append(f"{name}: {new['mean']:.3f}, was {old['mean']:.3f}")
    return found
