import math

import numpy as np
import pytest

from guard.detection.calibrate import (
    Measured,
    Pool,
    Stratum,
    conformal,
    of_evidence,
    of_similarity,
    report,
)


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


def measured(near: np.ndarray, rows: int = 5, ceiling: float = 0.7, **more: Stratum) -> Measured:
    strata = {"near": stratum(near), **more}
    return Measured(1, strata, strata, np.full(rows, ceiling, np.float32), np.zeros(rows, bool))


def filled(*found: Measured) -> Pool:
    pool = Pool()
    for one in found:
        pool.add(one)
    return pool


FIVE, RATES = np.zeros(5, bool), {"near": 0.01, "background": 0.001, "retain": 0.01}


@pytest.mark.parametrize("fpr", [0.01, 0.05])
def test_pooled_thresholds_keep_the_rate_over_targets_that_were_not_measured(fpr: float) -> None:
    rng = np.random.default_rng(0)

    def scores(n: int) -> np.ndarray:
        return rng.normal(rng.normal(), 1.0, n)  # every target is different

    rates = []
    for _ in range(200):
        known = filled(*(measured(scores(96)) for _ in range(32))).like(FIVE, {"near": fpr})
        assert known is not None and known.targets == 32
        near = known.meaning["near"]
        threshold = conformal(near.scores, near.fpr, near.of)
        rates.append(np.mean([(scores(96) >= threshold).mean() for _ in range(20)]))
    assert np.mean(rates) == pytest.approx(fpr, rel=0.4)  # it is that of an endless number of targets


def test_only_targets_with_as_many_texts_of_the_same_sort_stand_for_a_target_and_no_fewer_than_eight() -> (
    None
):
    pool = filled(*(measured(np.arange(3.0)) for _ in range(7)))
    assert pool.like(FIVE, RATES) is None
    pool.add(measured(np.arange(3.0), rows=7))
    known = pool.like(FIVE, RATES)
    assert known is not None and known.targets == 8
    assert pool.like(np.zeros(9, bool), RATES) is None and pool.like(np.ones(5, bool), RATES) is None


def test_of_what_was_measured_the_highest_scores_of_the_latest_targets_are_kept() -> None:
    low, many = measured(np.full(90, -9.0)), np.arange(2_000.0)
    pool = filled(low, *(measured(np.zeros(90), background=stratum(many)) for _ in range(32)))
    known = pool.like(FIVE, RATES)
    assert known is not None and known.targets == 32
    background, near = known.evidence["background"], known.evidence["near"]
    assert (background.of, len(background.scores), background.scores.min()) == (64_000, 32 * 128, 1_872)
    assert background.fpr == 0.001 and near.scores.min() == 0.0


def test_what_one_target_must_keep_answerable_says_nothing_of_others() -> None:
    known = filled(*(measured(np.zeros(9), retain=stratum(np.ones(9))) for _ in range(8))).like(FIVE, RATES)
    assert known is not None and set(known.meaning) == {"near"}


def test_the_typical_ceiling_of_each_sort_of_texts_stands_for_those_that_were_not_measured() -> None:
    plain = np.array([True, False, False])
    known = Measured(8, {}, {}, np.array([0.5, 0.8, 0.9]), plain)
    assert known.ceilings_for(~plain).tolist() == pytest.approx([0.85, 0.5, 0.5])


def test_a_target_without_texts_needs_nothing_of_others() -> None:
    known = Pool().like(np.zeros(0, bool), RATES)
    assert known is not None and (known.targets, known.meaning) == (0, {})
