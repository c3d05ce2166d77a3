"""The arithmetic of what is told: intervals of ratios, of gaps and of growth, and what is certainly worse."""

import numpy as np
import pytest

from benchmarks.ratios import gap_intervals, growth, median_interval, quantile_ratio, worse


def test_a_quantiles_ratio_has_an_interval_over_pairs():
    rng = np.random.default_rng(1)
    first = rng.exponential(size=400)
    exact = quantile_ratio([(x, 1.5 * x) for x in first], 0.9)
    assert exact.n == 400
    assert [exact.mean, exact.low, exact.high] == pytest.approx([1.5] * 3)
    noisy = quantile_ratio(list(zip(first, 1.1 * rng.exponential(size=400), strict=True)), 0.5)
    assert noisy.low < 1.1 < noisy.high and noisy.low < noisy.mean < noisy.high
    assert quantile_ratio([], 0.5) is None


def test_one_round_in_which_a_server_stood_still_does_not_decide():
    found = median_interval([0.9, 1.1, 1.0, 20.0, 1.0, 0.9, 1.1])
    assert (found.n, found.mean) == (7, 1.0)
    assert 0.9 <= found.low < 1.0 < found.high <= 1.1
    assert median_interval([]) is None


def test_only_what_is_certainly_worse_is_told():
    def ratio(low, mean, high):
        return {"low": low, "mean": mean, "high": high}

    stored = {
        name: ratio(0.95, 1.0, 1.05) for name in ("a_throughput", "b_throughput", "a_ttft_p50", "b_ttft_p50")
    }
    now = {
        "a_throughput": ratio(0.80, 0.85, 0.90),
        "b_throughput": ratio(0.90, 0.94, 0.96),
        "a_ttft_p50": ratio(0.80, 0.85, 0.90),
        "b_ttft_p50": ratio(1.10, 1.20, 1.30),
        "new_throughput": ratio(0.1, 0.1, 0.1),
    }
    assert worse(now, stored) == ["a_throughput: 0.850, was 1.000", "b_ttft_p50: 1.200, was 1.000"]


def test_gaps_are_compared_at_their_quantile_over_windows():
    rng = np.random.default_rng(2)
    quiet = [rng.exponential(10, 100) for _ in range(40)]
    difference, ratio = gap_intervals(quiet, [window + 5 for window in quiet])
    assert difference.n == ratio.n == 40
    assert [difference.mean, difference.low, difference.high] == pytest.approx([5] * 3)
    assert ratio.mean == pytest.approx(1 + 5 / np.quantile(np.concatenate(quiet), 0.99))
    same, _ = gap_intervals(quiet, [rng.exponential(10, 100) for _ in range(40)])
    assert same.low < 0 < same.high
    assert same.high - same.low < 40


def test_windows_are_drawn_whole():
    """One bad window of forty is left out of a third of the resamples, however many gaps it holds."""
    quiet = [[10.0] * 100 for _ in range(40)]
    busy = [*quiet[:-1], [100.0] * 100]
    difference, _ = gap_intervals(quiet, busy)
    assert (difference.mean, difference.low, difference.high) == (90, 0, 90)


def test_growth_is_the_slope_as_a_share_of_the_size():
    requests = np.arange(5_000, 20_001, 250)
    exact = growth(requests, 1e9 + 500 * requests)
    size = 1e9 + 500 * requests.mean()
    assert exact.n == len(requests)
    assert [exact.mean, exact.low, exact.high] == pytest.approx([5e6 / size] * 3)
    rng = np.random.default_rng(3)
    level = growth(requests, 1e9 + rng.normal(0, 1e6, len(requests)))
    assert level.low < 0 < level.high
    assert abs(level.mean) < 0.01


def test_growths_interval_is_wider_where_neighbours_are_alike():
    rng = np.random.default_rng(4)
    requests = np.arange(60) * 250.0
    noise = rng.normal(0, 1e6, 60)
    alike = np.repeat(noise[:10], 6) * np.std(noise) / np.std(noise[:10])
    wide, narrow = (growth(requests, 1e9 + one) for one in (alike, noise))
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)
