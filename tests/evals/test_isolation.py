"""The comparator: a planted difference is caught, a near-tie is not blamed."""

from __future__ import annotations

from dataclasses import replace

from evals.client import Answer
from evals.items import Item
from evals.report import Report
from evals.suites.isolation import compare, judge
from evals.workload import isolation_requests, mixed

BASE = Answer(
    text="a b c",
    tokens=["1", "2", "3"],
    logprobs=[-0.1, -0.7, -0.2],
    tops=[(-0.1, -2.5), (-0.7000, -0.7004), (-0.2, -2.0)],
    finish_reason="stop",
)


def changed(position: int) -> Answer:
    return replace(BASE, tokens=[t if i < position else "9" for i, t in enumerate(BASE.tokens)])


def verdict(guarded: list[Answer], control: list[Answer]) -> bool | None:
    report = Report("isolation")
    judge(guarded, [BASE] * len(guarded), control).judge(report)
    return report.passed


def test_equal_answers_pass():
    assert compare(BASE, BASE).difference is None
    assert verdict([BASE] * 3, [BASE] * 3)


def test_a_difference_at_a_large_gap_is_a_violation_even_if_the_control_differs_too():
    difference = compare(BASE, changed(2)).difference
    assert difference.position == 2
    assert not difference.explained(1e-3)
    assert verdict([changed(2), BASE], [changed(1), changed(1)]) is False


def test_a_difference_at_a_near_tie_passes_if_the_control_has_as_many():
    difference = compare(BASE, changed(1)).difference
    assert difference.position == 1
    assert difference.explained(1e-3)
    assert verdict([changed(1), BASE], [BASE, changed(1)])
    assert verdict([changed(1), changed(1)], [BASE, changed(1)]) is False


def test_an_answer_that_goes_on_is_judged_at_the_end_of_the_other():
    longer = replace(BASE, tokens=[*BASE.tokens, "4"], logprobs=[*BASE.logprobs, -0.3],
                     tops=[*BASE.tops, (-0.3, -3.0)])  # fmt: skip
    assert compare(BASE, longer).difference.position == 3
    assert compare(BASE, longer).difference.gap == 2.7
    assert verdict([longer], [BASE]) is False


def test_equal_tokens_with_another_text_or_end_are_a_violation():
    assert verdict([replace(BASE, text="a b d")], [changed(1)]) is False
    assert verdict([replace(BASE, finish_reason="length")], [changed(1)]) is False


def test_a_failure_on_one_side_is_a_violation():
    assert verdict([Answer(status=500, error="boom")], [changed(1)]) is False


def test_a_shifted_distribution_is_seen_before_any_token_changes():
    shifted = replace(BASE, logprobs=[-0.2, -0.7, -0.2], tops=[(-0.2, -2.4), *BASE.tops[1:]])
    assert compare(BASE, shifted).difference is None
    assert compare(BASE, shifted).max_delta > 0.09
    assert verdict([shifted], [BASE]) is False
    # Noise that bare itself shows is no violation.
    assert verdict([shifted], [shifted])


def test_loads_hold_the_same_requests_in_other_orders(items: list[Item]):
    clean, matched = isolation_requests(items, n=40, beside=1 / 3, seed=1, max_tokens=16)
    assert (len(clean), len(matched)) == (40, 20)
    assert {request.stream for request in clean} == {True, False}
    assert {request.kind for request in clean} == {"chat", "completion"}
    first, other = (mixed(clean, matched, seed=seed, concurrency=4) for seed in (2, 3))
    assert [first.requests[k] for k in first.unmatched] == clean
    assert [other.requests[k] for k in other.unmatched] == clean
    assert first.unmatched != other.unmatched
    assert isolation_requests(items, n=40, beside=1 / 3, seed=1, max_tokens=16)[0] == clean
