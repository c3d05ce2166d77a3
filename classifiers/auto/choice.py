"""Which of the candidates is taken: pure, from what was measured.

A candidate is admissible if it fulfils all that the operator wants. Of those, the ones that surely harm neighbours more
than the least harmful one fall out, then those that surely leave more of the target than the best of the rest; of what
is left the cheapest is taken. "Surely" is where the 95 % interval of the paired difference, over sources, does not
reach 0: a choice by means alone would be a choice by noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from guard.metrics.bootstrap import Interval, mean_interval, paired_difference
from guard.metrics.wilson import wilson

RIGHT = 0.9
"""ROUGE-L recall from which an answer counts as right."""
REFUSAL = {"method": "refusal", "params": {}}


class Wanted(BaseModel):
    """What the operator accepts.

    tolerance: how much more of the true answers may be said (ROUGE-L recall) than a model says that never learned them;
    gibberish: how many more of the answers may be broken language than of that model's; harm: how much recall questions
    near the target may lose where the gate matches one of them by mistake, None for any; slower: how many times the
    untouched model's time an answer may take, None for any; otherwise: what is done where no candidate fulfils all
    that: only `refusal`, or the `best` at forgetting with `refusal` behind it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tolerance: float = Field(0.05, ge=0.0, le=1.0)
    gibberish: float = Field(0.1, ge=0.0, le=1.0)
    harm: float | None = Field(None, ge=0.0, le=1.0)
    slower: float | None = Field(None, gt=0.0)
    otherwise: Literal["refusal", "best"] = "refusal"


@dataclass(frozen=True, slots=True)
class Said:
    """What was said to some questions, one number for each, means over draws of noise: ROUGE-L recall of the right
    answer, its probability (empty where it was not asked for), and the shares of broken answers and of refusals."""

    recall: Sequence[float]
    probability: Sequence[float]
    broken: Sequence[float]
    refused: Sequence[float]


@dataclass(frozen=True, slots=True)
class Ground:
    """What candidates are compared with, on held-out wordings: what the untouched model says about the target and near
    it, and what a model says that never learned the target. Questions of one source ask for one fact."""

    sources: Sequence[str]
    untouched: Said
    never: Said
    near_sources: Sequence[str]
    near: Said


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that was tried: as the rung of a ladder, and what was said under it about the target and near it.
    `slower` is its time over the untouched model's, `seconds` what training took, `size` the artifact's bytes in the
    `folder`; `unchanged`: whether the model said afterwards, without it, what it had said before."""

    name: str
    method: str
    params: Mapping[str, Any]
    forget: Said
    near: Said
    slower: float
    seconds: float
    size: int = 0
    folder: str | None = None
    unchanged: bool = True

    @property
    def rung(self) -> dict[str, Any]:
        return {"method": self.method, "params": dict(self.params)}


@dataclass(frozen=True, slots=True)
class Figures:
    """Means with intervals over sources, and shares with Wilson's. `gap` is recall beyond that of never having learned,
    `gibberish` the same of broken answers, `harm` the recall that neighbours lose, and `lost` the share of those that
    were right before and no longer are; None where there are no neighbours (or none that was right)."""

    recall: Interval
    probability: Interval
    gap: Interval
    gibberish: Interval
    refused: Interval
    slower: float
    harm: Interval | None
    lost: Interval | None

    @classmethod
    def of(cls, trial: Trial, ground: Ground) -> Figures:
        def mean(values: Sequence[float]) -> Interval:
            found = mean_interval(values, groups=ground.sources)
            assert found is not None
            return found

        def beyond(of: Callable[[Said], Sequence[float]]) -> Interval:
            found = paired_difference(of(trial.forget), of(ground.never), groups=ground.sources)
            assert found is not None
            return found

        before, after = ground.near.recall, trial.near.recall
        right = [now for was, now in zip(before, after, strict=True) if was >= RIGHT]
        return cls(
            mean(trial.forget.recall),
            mean(trial.forget.probability),
            beyond(lambda said: said.recall),
            beyond(lambda said: said.broken),
            mean(trial.forget.refused),
            trial.slower,
            paired_difference(before, after, groups=ground.near_sources),
            wilson(sum(now < RIGHT for now in right), len(right)),
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """A limit that `Wanted` may set, and the sentence about a candidate that is beyond it."""

    limit: str
    value: Callable[[Figures], float | None]
    beyond: str


def _mean(interval: Interval | None) -> float | None:
    return None if interval is None else interval.mean


RULES = (
    Rule("tolerance", lambda f: f.gap.mean, "says more of the answers than is tolerated"),
    Rule("gibberish", lambda f: f.gibberish.mean, "breaks too many answers"),
    Rule(
        "harm", lambda f: _mean(f.harm), "harms questions near the target too much, or nobody knows how much"
    ),
    Rule("slower", lambda f: f.slower, "is too slow"),
)


@dataclass(frozen=True, slots=True)
class Choice:
    """The `ranked` candidates of different methods, best first, that the ladder is made of; why the others are not
    admissible, by name; and whether what was wanted could be had."""

    ranked: tuple[Trial, ...]
    met: bool
    objections: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def ladder(self) -> list[dict[str, Any]]:
        """Rungs for a target. The last is `refusal`, which applies where none before it can."""
        return [*(trial.rung for trial in self.ranked), REFUSAL]

    @property
    def sentence(self) -> str:
        if self.met:
            return f"{self.ranked[0].name} is taken; it fulfils all that was asked for."
        if self.ranked:
            return (
                f"No candidate fulfils all that was asked for. {self.ranked[0].name} forgets most and is taken, as "
                "`otherwise` says; look at what it breaks before you rely on it."
            )
        return (
            "No candidate fulfils all that was asked for, so matched requests are refused. Give a larger budget or "
            "more examples, allow more, or set otherwise=best."
        )


def objections(trial: Trial, figures: Figures, wanted: Wanted) -> tuple[str, ...]:
    """Why the candidate is not admissible; none: it is."""
    found = [] if trial.unchanged else ["changes answers to requests that it does not act on"]
    for rule in RULES:
        limit, value = getattr(wanted, rule.limit), rule.value(figures)
        if limit is not None and (value is None or value > limit):
            found.append(rule.beyond)
    return tuple(found)


def choose(trials: Sequence[Trial], ground: Ground, wanted: Wanted, rungs: int = 3) -> Choice:
    """Of `trials`, the cheapest first, at most so many of different methods."""
    why = {trial.name: objections(trial, Figures.of(trial, ground), wanted) for trial in trials}
    admissible = [trial for trial in trials if not why[trial.name]]
    told = {name: reasons for name, reasons in why.items() if reasons}
    if admissible:
        return Choice(tuple(_ranked(admissible, ground, rungs)), True, told)
    sound = [trial for trial in trials if trial.unchanged]
    if wanted.otherwise == "best" and sound:
        return Choice((min(sound, key=lambda trial: fmean(trial.forget.recall)),), False, told)
    return Choice((), False, told)


def _ranked(trials: Sequence[Trial], ground: Ground, rungs: int) -> list[Trial]:
    left, ranked = list(trials), list[Trial]()
    while left and len(ranked) < rungs:
        best = _best(left, ground)
        ranked.append(best)
        left = [trial for trial in left if trial.method != best.method]
    return ranked


def _best(trials: Sequence[Trial], ground: Ground) -> Trial:
    """The first of those that are surely worse than none: by the recall that neighbours keep, then by that of the
    target's answers."""
    left = list(trials)
    if ground.near_sources:
        most = max(left, key=lambda trial: fmean(trial.near.recall))
        left = [t for t in left if not _surely_less(t.near.recall, most.near.recall, ground.near_sources)]
    least = min(left, key=lambda trial: fmean(trial.forget.recall))
    left = [t for t in left if not _surely_less(least.forget.recall, t.forget.recall, ground.sources)]
    return left[0]


def _surely_less(one: Sequence[float], other: Sequence[float], groups: Sequence[str]) -> bool:
    apart = paired_difference(one, other, groups=groups)
    return apart is not None and apart.high < 0
