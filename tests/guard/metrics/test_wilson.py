import pytest

from guard.metrics.wilson import wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # from scipy.stats.binomtest(...).proportion_ci(method="wilson")
    [(0, 10, 0.0, 0.277533), (8, 10, 0.490162, 0.943318), (217, 217, 0.982606, 1.0)],
)
def test_intervals_are_wilsons(hits: int, n: int, low: float, high: float) -> None:
    interval = wilson(hits, n)
    assert interval is not None
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    assert (interval.n, interval.mean) == (n, hits / n)
    assert interval.mean <= interval.upper <= interval.high


def test_repeated_trials_make_the_interval_no_narrower() -> None:
    once, thrice = wilson(8, 10), wilson(24, 30, trials=10)
    assert once is not None
    assert thrice is not None
    assert (once.low, once.high) == pytest.approx((thrice.low, thrice.high))


def test_without_trials_there_is_no_interval() -> None:
    assert wilson(0, 0) is None
