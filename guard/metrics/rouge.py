"""ROUGE-L as the TOFU benchmark computes it, and as RWKU does.

Definition (locuslab/tofu, evaluate_util.py): `rouge_score.RougeScorer(["rougeL"], use_stemmer=True)`, of
which TOFU reports the recall: the longest common subsequence of stemmed words divided by the words of the
reference. MUSE reports F1 without stemming, hence the switch. RWKU takes another package, `rouge`, which counts
differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from rouge import Rouge as SetRouge
from rouge_score.rouge_scorer import RougeScorer


@dataclass(frozen=True, slots=True)
class Rouge:
    """ROUGE-L of one answer, each figure in [0, 1]."""

    recall: float
    precision: float
    f1: float


@lru_cache(maxsize=4)
def _scorer(kind: str, stem: bool) -> RougeScorer:
    return RougeScorer([kind], use_stemmer=stem)


def rouge_l(reference: str, answer: str, *, stem: bool = True) -> Rouge:
    """How much of `reference` is in `answer`, in order."""
    score = _scorer("rougeL", stem).score(reference, answer)["rougeL"]
    return Rouge(float(score.recall), float(score.precision), float(score.fmeasure))


def rouge_l_recall(reference: str, answer: str, *, stem: bool = True) -> float:
    """The figure that TOFU calls ROUGE."""
    return rouge_l(reference, answer, stem=stem).recall


def rouge_1_recall(reference: str, answer: str) -> float:
    """The share of the stemmed words of `reference` that are in `answer`, in any order."""
    return float(_scorer("rouge1", True).score(reference, answer)["rouge1"].recall)


def rouge_l_words(reference: str, answer: str) -> float:
    """ROUGE-L recall as the package `rouge` computes it and RWKU reports it: case and endings count, a word that
    repeats counts once, and sentences (ended by full stops) are matched each with each. Where a text is made of full
    stops alone the package raises; that is 0 here."""
    if not reference.strip(".") or not answer.strip("."):
        return 0.0
    (score,) = SetRouge(metrics=["rouge-l"], stats=["r"]).get_scores(answer, reference)
    return float(score["rouge-l"]["r"])
