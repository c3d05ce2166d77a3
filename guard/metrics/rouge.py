"""ROUGE-L as the TOFU benchmark computes it.

Definition (locuslab/tofu, evaluate_util.py): `rouge_score.RougeScorer(["rougeL"], use_stemmer=True)`, of
which TOFU reports the recall: the longest common subsequence of stemmed words divided by the words of the
reference. MUSE reports F1 without stemming, hence the switch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from rouge_score.rouge_scorer import RougeScorer


@dataclass(frozen=True, slots=True)
class Rouge:
    """ROUGE-L of one answer, each figure in [0, 1]."""

    recall: float
    precision: float
    f1: float


@lru_cache(maxsize=2)
def _scorer(stem: bool) -> RougeScorer:
    return RougeScorer(["rougeL"], use_stemmer=stem)


def rouge_l(reference: str, answer: str, *, stem: bool = True) -> Rouge:
    """How much of `reference` is in `answer`, in order."""
    score = _scorer(stem).score(reference, answer)["rougeL"]
    return Rouge(float(score.recall), float(score.precision), float(score.fmeasure))


def rouge_l_recall(reference: str, answer: str, *, stem: bool = True) -> float:
    """The figure that TOFU calls ROUGE."""
    return rouge_l(reference, answer, stem=stem).recall
