import numpy as np
import pytest

from guard.detection.calibrate import calibrate, conformal


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.2])
def test_new_scores_of_the_same_sort_reach_the_threshold_at_the_promised_rate(fpr: float) -> None:
    rng = np.random.default_rng(0)
    rates = [(rng.normal(size=1_000) >= conformal(rng.normal(size=999), fpr)).mean() for _ in range(50)]
    assert np.mean(rates) == pytest.approx(fpr, rel=0.25)


def test_too_few_scores_give_a_threshold_above_most_of_them() -> None:
    scores = np.linspace(0.1, 0.3, 20)
    assert 0.3 < conformal(scores, 0.01) < 0.5


def test_the_hard_stratum_decides_although_it_is_small() -> None:
    easy, hard = np.linspace(0.0, 0.2, 2_000), np.full(40, 0.7)
    made = calibrate(
        {"background": easy, "near": hard}, np.array([0.9, 0.95]), {"background": 0.01, "near": 0.01}
    )
    assert 0.7 < made.threshold < 0.9
    assert made.report["negatives"]["near"] == {"n": 40, "false_positive_rate": 0.0}


def test_where_own_texts_are_far_above_the_threshold_keeps_a_distance() -> None:
    easy = np.linspace(0.0, 0.2, 2_000)
    assert 0.4 < calibrate({"background": easy}, np.full(10, 0.9), {"background": 0.01}).threshold < 0.7
    assert calibrate({"background": easy}, np.full(10, 0.1), {"background": 0.01}).threshold < 0.21


def test_a_fixed_threshold_is_reported_with_what_it_lets_through() -> None:
    made = calibrate({"background": np.array([0.1, 0.6])}, np.array([0.4]), {}, fixed=0.5)
    assert made.threshold == 0.5
    assert made.report["negatives"]["background"]["false_positive_rate"] == 0.5
    assert made.report["recall"]["rate"] == 0.0
