"""What detectors are trained and calibrated on: windows of prompts that speak of the target, and of others.

Windows are those that serving judges. What serving leaves out of account (for some detectors: windows that name
somebody whom the examples do not know) is left out here, too. Prompts that must not match are of four sorts: near
misses, made from the examples with other names in the place of theirs; those in which half of the name is left; the
retain examples; and the background."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classifiers.base import Task
from classifiers.data import Example
from guard.detection.background import background, background_groups
from guard.detection.background_vectors import load_background
from guard.detection.base import Terms, window_chars
from guard.detection.calibrate import Stratum, conformal, share
from guard.detection.encoder import Encoder
from guard.detection.evidence import terms
from guard.detection.heads import of_others
from guard.detection.swaps import halved, mentions, near_misses, replace, swap_slots
from guard.detection.windows import windows
from guard.errors import BadRequest
from guard.targets import TargetSpec
from guard.types import Kind

FEWEST = 3  # sources; without one of two, a single fact is left
# Windows of an ordinary long prompt that differ: each can fire, and the promised rate is that of a prompt.
_WINDOWS = 10


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts of one sort as windows: `texts`, the number of each one's prompt in `sources` [windows], and whether it
    counts in serving, `judged` [windows]. `groups` [prompts]: those of one group are variants of one text."""

    texts: tuple[str, ...]
    sources: np.ndarray
    judged: np.ndarray
    groups: np.ndarray

    def highest(self, scores: np.ndarray, lowest: float) -> np.ndarray:
        """[prompts] the score of each one's best window, `lowest` without any that counts."""
        best = np.full(len(self.groups), lowest, np.float64)
        np.maximum.at(best, self.sources[self.judged], scores[self.judged])
        return best

    def folds(self, count: int, seed: int) -> np.ndarray:
        """[windows] the number of each one's prompt (`shares`)."""
        result: np.ndarray = self.shares(count, seed)[self.sources]
        return result

    def shares(self, count: int, seed: int) -> np.ndarray:
        """[prompts] a number below `count` for each: those of one group have the same, and the numbers are about
        equally frequent among the groups; each group has one of its own where there are fewer."""
        groups, place = np.unique(self.groups, return_inverse=True)
        numbers: np.ndarray = np.random.default_rng(seed).permutation(len(groups)) % count
        return numbers[place] if len(groups) else np.zeros(0, np.int64)

    def only(self, kept: np.ndarray) -> Prompts:
        """The prompts that are `kept` [prompts]."""
        windows = kept[self.sources]
        texts = tuple(text for text, keep in zip(self.texts, windows, strict=True) if keep)
        sources = (np.cumsum(kept) - 1)[self.sources[windows]]
        return Prompts(texts, sources, self.judged[windows], self.groups[kept])


@dataclass(frozen=True, eq=False)
class Material:
    """`own` prompts must match, `others` must not, by sort; new ones of each sort may at the `rates`."""

    own: Prompts
    others: Mapping[str, Prompts]
    rates: Mapping[str, float]

    @property
    def sorts(self) -> dict[str, Prompts]:
        """All by name, the `own` among them."""
        return {"own": self.own, **self.others}

    def share(self, numbers: Collection[int], of: int, seed: int) -> Material:
        """Those prompts of each sort whose shares out of so many have these numbers."""
        kept = {
            name: one.only(np.isin(one.shares(of, seed), list(numbers))) for name, one in self.sorts.items()
        }
        return Material(kept.pop("own"), kept, self.rates)

    def strata(self, scores: Mapping[str, np.ndarray]) -> dict[str, Stratum]:
        """By the scores of windows, sort for sort."""
        lowest = min(float(of.min()) for of in scores.values() if len(of))
        return {
            name: Stratum(of.highest(scores[name], lowest), self.rates[name], len(of.groups))
            for name, of in self.others.items()
            if len(of.groups)
        }


@dataclass(frozen=True, eq=False)
class Made:
    """What goes into a detector's artifact, beside the files that are in its folder already."""

    tensors: Mapping[str, Any] | None
    facts: Mapping[str, Any]
    measured: Mapping[str, Any]


def gather(
    task: Task, encoder: Encoder, *, fpr: float, near: int, seed: int, kind: Kind | None = None
) -> Material:
    """All prompts, with at most `near` near misses. A prompt of any sort may match at the rate `fpr`. With `kind`,
    windows that are about somebody else than a target of that kind do not count."""
    spec = _spec(task)
    of = terms(spec, [])

    def cut(prompts: Sequence[str], groups: Sequence[Any] | None = None, *, own: bool = False) -> Prompts:
        found = [
            (window.text, i)
            for i, prompt in enumerate(prompts)
            for window in windows(prompt, max_chars=window_chars(encoder))
        ]
        return Prompts(
            tuple(text for text, _ in found),
            np.array([source for _, source in found], np.int64),
            own | ~_vetoed([text for text, _ in found], kind, of),
            np.array(range(len(prompts)) if groups is None else groups),
        )

    everyday = background()
    rng = random.Random(seed)
    own = cut(spec.examples, [example.origin for example in task.forget], own=True)
    others = {
        "near": cut(near_misses(spec, own.texts, [], near, rng)),
        "half": cut(_of_namesakes(spec, own.texts, near // 2, rng)),
        "retain": cut([text_of(example) for example in task.retain]),
        "background": Prompts(  # short: each is one window
            everyday, np.arange(len(everyday)), ~_vetoed(everyday, kind, of), np.array(background_groups())
        ),
    }
    return Material(own, others, {"near": fpr, "half": fpr, "retain": fpr, "background": fpr / _WINDOWS})


def embedded(material: Material, encoder: Encoder, folder: Path) -> dict[str, np.ndarray]:
    """[windows, dim] of each sort, and of the `own`. Those of the background are kept in `folder`."""
    texts = {"own": material.own.texts} | {name: of.texts for name, of in material.others.items()}
    ordinary = load_background(encoder, folder).vectors
    return {name: ordinary if name == "background" else encoder.encode(of) for name, of in texts.items()}


def _of_namesakes(spec: TargetSpec, own: Sequence[str], most: int, rng: random.Random) -> list[str]:
    """The same of people who share one word of the name: a sort of their own, because among all near misses they are
    the few hard ones."""
    named = [(text, name) for text in own for name in spec.names() if " " in name and mentions(text, name)]
    found = {
        swap_slots(replace(text, name, half), (half,), rng)
        for text, name in (rng.choice(named) for _ in range(most if named else 0))
        for half in (halved(name, rng),)
    }
    return sorted(found)


def _vetoed(texts: Sequence[str], kind: Kind | None, of: Terms) -> np.ndarray:
    return np.array([kind is not None and of_others(text, kind, of) for text in texts], bool)


def require_sources(task: Task) -> None:
    """Raises BadRequest: the forget examples have so few sources that none can be left out."""
    count = len({example.origin for example in task.forget})
    if count < FEWEST:
        raise BadRequest(f"A detector needs forget examples of at least {FEWEST} facts; here are {count}.")


def text_of(example: Example) -> str:
    """All that the example's turns say."""
    return "\n".join(content for _, content in example.turns)


def threshold_of(strata: Mapping[str, Stratum]) -> float:
    """The score that keeps every sort at its rate (split-conformal)."""
    return max(conformal(stratum.scores, stratum.fpr) for stratum in strata.values())


def measured(
    strata: Mapping[str, Stratum], own: np.ndarray, threshold: float, shown: Callable[[float], float]
) -> dict[str, Any]:
    """What the threshold lets through, with n of each sort; the threshold as users see it, by `shown`."""
    return {
        "threshold": round(shown(threshold), 6),
        "negatives": {
            name: {
                "n": len(of.scores),
                "allowed": of.fpr,
                "false_positive_rate": share(of.scores, threshold),
            }
            for name, of in strata.items()
        },
        "recall": {"n": len(own), "rate": share(own, threshold), "how": "left out by source"},
    }


def _spec(task: Task) -> TargetSpec:
    """The target as far as the task tells."""
    prompts = tuple(text_of(example) for example in task.forget)
    nobody = "x" + hashlib.blake2b("\x00".join(prompts).encode(), digest_size=8).hexdigest()
    name, *aliases = task.names or (nobody,)
    answers = tuple(example.answer for example in task.forget if example.answer)
    return TargetSpec.model_construct(name=name, aliases=tuple(aliases), examples=prompts, answers=answers)
