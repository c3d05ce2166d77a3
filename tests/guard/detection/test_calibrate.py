import math

import numpy as np
import pytest

from guard.detection.calibrate import Stratum, conformal, of_evidence, of_similarity, report


def stratum(scores: np.ndarray, fpr: float = 0.01) -> Stratum:
    return Stratum(scores, fpr, len(scores))


@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.2])
def test_new_scores_of_the_same_sort_reach_the_threshold_at_the_promised_rate(fpr: float) -> None:
    rng = np.random.default_rng(0)
    rates = [(rng.normal(size=1_000) >= conformal(rng.normal(size=999), fpr)).mean() for _ in range(50)]
    assert np.mean(rates) == pytest.approx(fpr, rel=0.25)


def test_the_highest_of_many_scores_give_the_threshold_of_all() -> None:
    scores = np.random.default_rng(0).normal(size=2_000)
    assert conformal(np.sort(scores)[-100:], 0.01, 2_000) == conformal(scores, 0.01)


def test_too_few_scores_give_a_threshold_above_most_of_them() -> None:
    scores = np.linspace(0.1, 0.3, 20)
    assert 0.3 < conformal(scores, 0.01) < 0.5


def test_a_rate_that_few_scores_cannot_promise_costs_a_nat_for_each_factor_e() -> None:
    nats = np.linspace(0.0, 3.0, 9)
    assert conformal(nats, 0.01, nats=True) == pytest.approx(3.0 + math.log(10.0))
    assert conformal(nats, 0.01 / math.e, nats=True) == pytest.approx(4.0 + math.log(10.0))


def test_the_hard_stratum_decides_although_it_is_small() -> None:
    easy, hard = np.linspace(0.0, 0.2, 2_000), np.full(40, 0.7)
    made = of_similarity({"background": stratum(easy), "near": stratum(hard)}, np.array([0.9, 0.95]))
    assert 0.7 < made < 0.9
    assert of_evidence({"background": stratum(easy), "near": stratum(hard + 9)}) > 9.7


def test_where_own_texts_are_far_above_the_threshold_keeps_a_distance() -> None:
    easy = {"background": stratum(np.linspace(0.0, 0.2, 2_000))}
    assert 0.4 < of_similarity(easy, np.full(10, 0.9)) < 0.7
    assert of_similarity(easy, np.full(10, 0.1)) < 0.21


def test_evidence_is_never_asked_to_be_less_than_what_chance_gives_at_that_rate() -> None:
    weak = np.linspace(-2.0, 1.0, 2_000)
    assert of_evidence({"background": stratum(weak, 0.001), "near": stratum(weak)}) == math.log(1_000)
    assert of_evidence({}) == math.inf


def test_the_report_tells_how_many_were_looked_at_and_what_passes() -> None:
    strata = {"others": Stratum(np.array([0.1, 0.6]), 0.02, 50)}
    made = report(strata, np.array([0.4]), 0.5)
    assert made["negatives"]["others"] == {"n": 2, "of": 50, "allowed": 0.02, "false_positive_rate": 0.5}
    assert made["recall"]["rate"] == 0.0
    assert report(strata, np.array([0.4]), 0.3, lambda x: np.asarray(x) / 2)["threshold"] == 0.15
