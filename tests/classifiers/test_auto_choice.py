"""The choice is a pure function of figures: each constraint, broken on purpose, changes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from classifiers.auto.choice import REFUSAL, Choice, Figures, Ground, Said, Trial, Wanted, choose

N = 12
SOURCES = [str(i) for i in range(N)]


def said(recall: float | Sequence[float], broken: float = 0.0) -> Said:
    values = [recall] * N if isinstance(recall, float) else list(recall)
    return Said(values, values, [broken] * N, [0.0] * N)


GROUND = Ground(SOURCES, said(1.0), said(0.1), SOURCES, said(1.0))


def trial(name: str, recall: float | Sequence[float], near: Any, **about: Any) -> Trial:
    broken = about.pop("broken", 0.0)
    method = about.pop("method", name)
    given = {"params": {"artifact": name}, "slower": 1.0, "seconds": 1.0, **about}
    return Trial(name, method, forget=said(recall, broken), near=said(near), **given)


GENTLE = trial("gentle", 0.12, 0.9)
HARSH = trial("harsh", 0.0, 0.2)
USELESS = trial("useless", 0.8, 1.0)
ALL = (HARSH, USELESS, GENTLE)


def chosen(*trials: Trial, rungs: int = 3, ground: Ground = GROUND, **wanted: Any) -> Choice:
    return choose(trials, ground, Wanted(**wanted), rungs)


def names(choice: Choice) -> list[str]:
    return [one.name for one in choice.ranked]


def test_of_what_forgets_the_least_harmful_is_taken_and_the_next_best_stand_behind_it() -> None:
    choice = chosen(*ALL)
    assert names(choice) == ["gentle", "harsh"] and choice.met
    assert choice.ladder == [
        {"method": "gentle", "params": {"artifact": "gentle"}},
        {"method": "harsh", "params": {"artifact": "harsh"}},
        REFUSAL,
    ]
    assert choice.objections == {"useless": ("says more of the answers than is tolerated",)}


@pytest.mark.parametrize(
    ("broken", "wanted", "first"),
    [
        ({"recall": 0.2}, {}, "harsh"),
        ({"recall": 0.2}, {"tolerance": 0.15}, "gentle"),
        ({"broken": 0.2}, {}, "harsh"),
        ({"broken": 0.2}, {"gibberish": 0.25}, "gentle"),
        ({"unchanged": False}, {}, "harsh"),
        ({"slower": 3.0}, {}, "gentle"),
        ({"slower": 3.0}, {"slower": 2.0}, "harsh"),
    ],
)
def test_a_constraint_that_is_broken_changes_the_choice(
    broken: dict[str, Any], wanted: dict[str, Any], first: str
) -> None:
    gentle = trial("gentle", **{"recall": 0.12, "near": 0.9, **broken})
    assert names(chosen(HARSH, gentle, **wanted))[0] == first


def test_harm_is_limited_only_where_that_is_asked_for_and_then_must_be_known() -> None:
    assert names(chosen(HARSH)) == ["harsh"]
    assert names(chosen(HARSH, harm=0.5)) == []
    nobody = replace(GROUND, near_sources=(), near=Said((), (), (), ()))
    unknown = replace(HARSH, near=nobody.near)
    assert names(chosen(unknown, ground=nobody)) == ["harsh"]
    assert names(chosen(unknown, ground=nobody, harm=0.5)) == []


def test_what_is_not_surely_worse_loses_by_its_cost_alone() -> None:
    noisy = [0.0, 1.0] * (N // 2)
    dear, cheap = trial("dear", 0.1, 0.6), trial("cheap", 0.1, noisy)
    assert names(chosen(cheap, dear)) == ["cheap", "dear"], "0.5 is not surely less than 0.6"
    assert names(chosen(dear, cheap)) == ["dear", "cheap"], "the cheaper comes first in the table"
    assert names(chosen(cheap, replace(dear, near=said(1.0)))) == ["dear", "cheap"]


def test_among_equally_harmful_ones_the_one_that_leaves_surely_less_is_taken() -> None:
    some, none = trial("some", 0.14, 0.9), trial("none", 0.0, 0.9)
    assert names(chosen(some, none)) == ["none", "some"]


def test_the_ladder_has_each_method_once_and_no_more_rungs_than_asked() -> None:
    twins = [trial("a", 0.1, 0.9, method="m"), trial("b", 0.1, 0.9, method="m"), trial("c", 0.1, 0.9)]
    assert names(chosen(*twins)) == ["a", "c"]
    assert names(chosen(*twins, rungs=1)) == ["a"]


def test_where_nothing_is_admissible_requests_are_refused_unless_the_best_is_asked_for() -> None:
    half = trial("half", 0.5, 1.0)
    choice = chosen(USELESS, half)
    assert choice.ladder == [REFUSAL] and not choice.met and "are refused" in choice.sentence
    best = chosen(USELESS, half, otherwise="best")
    assert names(best) == ["half"] and best.ladder[-1] == REFUSAL and not best.met
    assert "No candidate fulfils" in best.sentence
    assert chosen(replace(half, unchanged=False), otherwise="best").ladder == [REFUSAL]
    assert chosen().ladder == [REFUSAL]


def test_the_figures_are_differences_to_never_having_learned_and_to_before() -> None:
    near = [0.95] * 6 + [0.4] * 6
    before = said([1.0] * 9 + [0.5] * 3)
    of = Figures.of(trial("one", 0.3, near, broken=0.25), replace(GROUND, near=before))
    assert of.recall.mean == pytest.approx(0.3) and of.gap.mean == pytest.approx(0.2)
    assert of.gibberish.mean == pytest.approx(0.25)
    assert of.harm is not None and of.harm.mean == pytest.approx(0.875 - 0.675)
    assert of.lost is not None and (of.lost.n, of.lost.mean) == (9, pytest.approx(3 / 9))
