"""TOFU (Maini et al., arXiv 2401.06121) as published: its files, what is measured on them, and its aggregates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from guard.metrics import tofu
from guard.metrics.rouge import rouge_l_recall

KEPT = ("retain", "real_authors", "world_facts")
RETAINED = 300  # rows of the retain set that TOFU scores


class TofuError(ValueError):
    """A file of the benchmark cannot be read; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Row:
    """One question. `paraphrased` is the right answer in other words (the answer itself where none was published),
    `wrong` are answers of the same form that are not true; empty where the file has none."""

    question: str
    answer: str
    paraphrased: str
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scored:
    """One question under one model: mean log-likelihoods of the tokens of its answer, its paraphrased answer and its
    wrong ones, and ROUGE-L recall of its answer in what the model says."""

    answer: float
    paraphrased: float
    wrong: tuple[float, ...]
    recall: float

    def log_ratio(self, mean: tofu.Mean) -> float:
        return tofu.log_truth_ratio(self.paraphrased, self.wrong, mean)


Log = Mapping[str, Sequence[Scored]]
"""Every set of the benchmark, `forget` and those of KEPT, as a model did on it."""


class Model(Protocol):
    """Whatever is measured."""

    def likelihoods(self, asked: Sequence[tuple[str, str]]) -> list[float]:
        """Mean log-likelihood of the tokens of each answer to its question, the end of the turn among them."""
        ...

    def answers(self, questions: Sequence[str]) -> list[str]:
        """Greedy, at most 200 tokens."""
        ...


def rows(path: Path) -> list[Row]:
    """Raises TofuError: it is no file of the benchmark."""
    found = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            wrong = tuple(row.get("perturbed_answer", ()))
            found.append(
                Row(row["question"], row["answer"], row.get("paraphrased_answer", row["answer"]), wrong)
            )
    except OSError:
        raise TofuError(f"TOFU's {path.name} is not in {path.parent}.") from None
    except (ValueError, KeyError, TypeError):
        raise TofuError(f"Line {len(found) + 1} of {path.name} is no row of TOFU.") from None
    return found


def sets(folder: Path, forget: str) -> dict[str, list[Row]]:
    """What is measured: the forget set (`forget05`), and the sets that must stay.

    Raises:
        TofuError: a file is missing or is none of the benchmark's.
    """
    names = {"forget": forget, **{name: name for name in KEPT}}
    found = {name: rows(folder / f"{file}_perturbed.json") for name, file in names.items()}
    return {**found, "retain": found["retain"][:RETAINED]}


def log(model: Model, asked: Mapping[str, Sequence[Row]]) -> Log:
    found = {}
    for name, questions in asked.items():
        texts = [
            (row.question, text) for row in questions for text in (row.answer, row.paraphrased, *row.wrong)
        ]
        told = iter(model.likelihoods(texts))
        said = model.answers([row.question for row in questions])
        found[name] = [
            Scored(
                next(told), next(told), tuple(next(told) for _ in row.wrong), rouge_l_recall(row.answer, text)
            )
            for row, text in zip(questions, said, strict=True)
        ]
    return found


def nine(found: Log, mean: tofu.Mean) -> dict[str, float]:
    """The nine figures of model utility, by set and metric."""
    figures = {}
    for name in KEPT:
        scored = found[name]
        own = [math.exp(s.answer) if name == "retain" else tofu.among(s.answer, s.wrong) for s in scored]
        figures[f"{name} probability"] = sum(own) / len(own)
        figures[f"{name} recall"] = sum(s.recall for s in scored) / len(scored)
        figures[f"{name} truth ratio"] = sum(tofu.kept(s.log_ratio(mean)) for s in scored) / len(scored)
    return figures
