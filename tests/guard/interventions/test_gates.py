"""The gate's statistics are not diluted, do not depend on chunks, and are calibrated on pooled windows."""

from __future__ import annotations

import numpy as np
import pytest

from guard.interventions.gates import Gate, Limits, calibrate, window_rates

NEVER = 1e9


def flips(rate: float, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < rate


def statistics(hot: np.ndarray, window: int, drift: float) -> list[tuple[float, float]]:
    """Rate and sum after each token, as they are defined."""
    found, total = [], 0.0
    for t in range(1, len(hot) + 1):
        total = max(0.0, total + (1 - drift if hot[t - 1] else -drift))
        last = hot[max(t - window, 0) : t]
        found.append((last.sum() / max(len(last), window / 4), total))
    return found


def fired_at(hot: np.ndarray, limits: Limits, cuts: tuple[int, ...] = ()) -> int | None:
    gate = Gate(limits)
    for start, end in zip((0, *cuts), (*cuts, len(hot)), strict=True):
        gate.observe(start, hot[start:end])
    return gate.fired_at


@pytest.mark.parametrize("window", [1, 8, 32])
@pytest.mark.parametrize("cuts", [(), (1, 2, 3), (5, 60, 61), tuple(range(1, 200))])
def test_it_fires_where_a_statistic_first_passes_its_limit(window: int, cuts: tuple[int, ...]) -> None:
    hot = flips(0.4, 200)
    by_hand = statistics(hot, window, 0.25)
    for i, limits in ((0, Limits(window, 0.5, 0.25, NEVER)), (1, Limits(window, NEVER, 0.25, 9.5))):
        limit = limits.rate if i == 0 else limits.cusum
        expected = next((t for t, found in enumerate(by_hand) if found[i] > limit), None)
        assert expected is not None
        assert fired_at(hot, limits, cuts) == expected


def test_window_rates_are_those_of_the_definition() -> None:
    hot = flips(0.4, 100)
    assert window_rates(hot, 8).tolist() == [rate for rate, _ in statistics(hot, 8, 0.5)]


def test_it_fires_once() -> None:
    gate = Gate(Limits(4, 0.5, 0.5, NEVER))
    hot = np.ones(10, np.bool_)
    assert gate.observe(0, hot)
    assert not gate.observe(10, hot)
    assert gate.fired_at == 0


def test_tokens_that_are_computed_again_do_not_count_twice() -> None:
    limits = Limits(8, NEVER, 0.25, 9.5)
    hot = flips(0.4, 200)
    gate = Gate(limits)
    for start, end in ((0, 10), (0, 30), (4, 12), (20, 200)):
        gate.observe(start, hot[start:end])
    assert gate.fired_at == fired_at(hot, limits)


def test_what_it_keeps_of_a_long_text_is_bounded() -> None:
    gate = Gate(Limits(8, NEVER, 0.25, NEVER))
    for start in range(0, 1_000, 100):
        gate.observe(start, flips(0.4, 100))
    assert len(gate._last) == 7


def test_skipped_tokens_count_for_nothing() -> None:
    limits = Limits(4, NEVER, 0.5, 1.6)
    gate = Gate(limits)
    hot = np.ones(2, np.bool_)
    assert not gate.observe(0, hot)
    assert gate.observe(500, np.ones(2, np.bool_))
    assert gate.fired_at == 501


def test_harmless_text_around_does_not_hide_a_question() -> None:
    clean = [flips(0.1, 400, seed) for seed in range(40)]
    armed = [flips(0.7, 40, seed) for seed in range(100, 120)]
    limits = calibrate(clean, armed, level=0.0005)
    diluted = np.concatenate([flips(0.1, 2_000, 7), flips(0.7, 40, 8), flips(0.1, 2_000, 9)])
    assert diluted.mean() < 0.12  # a rate over the whole text sees nothing
    assert 2_000 <= (fired_at(diluted, limits) or 0) < 2_040
    assert fired_at(np.delete(diluted, slice(2_000, 2_040)), limits) is None


def test_limits_are_those_of_the_pooled_windows() -> None:
    clean = [flips(0.1, n, seed) for seed, n in enumerate((50, 3_000, 400, 20))]
    armed = [flips(0.6, 200)]
    limits = calibrate(clean, armed, window=16, level=0.02)
    rates = np.concatenate([window_rates(hot, 16) for hot in clean])
    assert (rates > limits.rate).mean() <= 0.02 < (rates >= limits.rate).mean()
    assert limits.rate < 1.0
    assert 0.1 < limits.drift < 0.6
    higher = calibrate(clean, armed, window=16, level=0.2)
    assert higher.rate < limits.rate
    assert higher.cusum < limits.cusum


def test_features_that_tell_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="armed"):
        calibrate([flips(0.5, 100)], [flips(0.1, 100)])
