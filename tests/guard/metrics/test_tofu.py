"""TOFU's figures, against values computed by hand."""

from __future__ import annotations

import math

import pytest

from guard.metrics import tofu

LN = math.log


def test_the_two_truth_ratios_differ_as_their_means_do():
    right, wrong = LN(0.5), [LN(0.1), LN(0.4)]
    assert math.exp(tofu.log_truth_ratio(right, wrong, "geometric")) == pytest.approx(0.2 / 0.5)
    assert math.exp(tofu.log_truth_ratio(right, wrong, "arithmetic")) == pytest.approx(0.25 / 0.5)


def test_answers_without_any_chance_still_have_a_ratio():
    assert tofu.log_truth_ratio(-5_000.0, [-4_000.0, -9_000.0], "arithmetic") == pytest.approx(1_000 - LN(2))


@pytest.mark.parametrize(
    ("ratio", "forgotten", "kept"), [(0.25, 0.25, 0.75), (4.0, 0.25, 0.0), (1.0, 1.0, 0.0)]
)
def test_both_scores_of_a_ratio(ratio, forgotten, kept):
    assert tofu.forgotten(LN(ratio)) == pytest.approx(forgotten)
    assert tofu.kept(LN(ratio)) == pytest.approx(kept)


def test_a_probability_among_the_options():
    assert tofu.among(LN(0.3), [LN(0.1), LN(0.2)]) == pytest.approx(0.5)


def test_utility_is_the_harmonic_mean_and_nothing_where_one_figure_is_nothing():
    assert tofu.model_utility([0.5, 1.0]) == pytest.approx(2 / 3)
    assert tofu.model_utility([0.0, 1.0]) == 0.0


def test_forgetting_too_much_is_as_far_from_never_learned_as_forgetting_nothing():
    never = [0.1 * i for i in range(40)]
    assert tofu.forget_quality(never, never) == 1.0
    low, high = (tofu.forget_quality([x + by for x in never], never) for by in (-4.0, 4.0))
    # disjoint samples of 40: p = 2 / C(80, 40)
    assert low == high == pytest.approx(2 / math.comb(80, 40))
