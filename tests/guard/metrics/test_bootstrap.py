"""The bootstrap: exact where it can be, covering where it must."""

from __future__ import annotations

import numpy as np
import pytest

from guard.metrics.bootstrap import mean_interval, paired_difference, upper_bound


def test_known_values_and_order():
    interval = mean_interval([0.0, 1.0] * 50)
    assert interval.n == 100
    assert interval.mean == 0.5
    assert interval.low < interval.mean < interval.upper < interval.high
    # The standard error is 0.05; 1.96 and 1.645 of it.
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)
    assert interval.upper == pytest.approx(0.5 + 1.645 * 0.05, abs=0.01)


def test_the_seed_decides():
    values = np.random.default_rng(1).random(40).tolist()
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_nothing_has_no_mean():
    assert mean_interval([]) is None
    assert upper_bound([]) is None


def test_pairing_takes_the_items_own_level_out():
    base = np.random.default_rng(2).random(60)
    difference = paired_difference((base + 0.1).tolist(), base.tolist())
    assert difference.mean == pytest.approx(0.1)
    assert difference.high - difference.low < 1e-9
    with pytest.raises(ValueError, match="equal lengths"):
        paired_difference([1.0], [1.0, 2.0])


def test_coverage_of_the_interval_and_of_the_upper_bound():
    rng = np.random.default_rng(5)
    inside = under = 0
    for trial in range(200):
        interval = mean_interval(rng.normal(1.0, 1.0, 50).tolist(), seed=trial, samples=500)
        inside += interval.low <= 1.0 <= interval.high
        under += interval.upper >= 1.0
    assert 0.88 <= inside / 200 <= 0.99
    assert 0.89 <= under / 200 <= 0.99


def test_groups_that_move_together_widen_the_interval():
    values, groups = [0.0] * 50 + [1.0] * 50, [i // 10 for i in range(100)]
    alone, grouped = mean_interval(values), mean_interval(values, groups=groups)
    assert grouped.mean == alone.mean
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
    with pytest.raises(ValueError, match="groups"):
        mean_interval([1.0, 2.0], groups=["a"])


def test_groups_of_unequal_size_weigh_by_their_items():
    interval = mean_interval([1.0] * 9 + [0.0], groups=["a"] * 9 + ["b"], samples=2000)
    assert interval.mean == 0.9
    assert (interval.low, interval.high) == (0.0, 1.0)
