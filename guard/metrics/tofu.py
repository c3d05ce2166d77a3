"""The figures of TOFU (Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv 2401.06121).

All begin with the mean log-likelihood of an answer's tokens, l; its exponential is the answer's probability. The truth
ratio R compares wrong answers with the right one in other words. Two variants are published: open-unlearning and TOFU's
`aggregate_eval_stat.py` take the `geometric` mean of the wrong answers' probabilities, TOFU's `utils.py` the
`arithmetic` one. They give different numbers, so figures name theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Mean = Literal["geometric", "arithmetic"]


def log_truth_ratio(right: float, wrong: Sequence[float], mean: Mean) -> float:
    """ln R of one question, from l of its paraphrased answer and of each wrong one; above 0 where wrong ones are
    likelier."""
    if mean == "geometric":
        return sum(wrong) / len(wrong) - right
    best = max(
        wrong
    )  # a method may leave all answers next to no chance: taken out before anything is exponentiated
    return best + math.log(sum(math.exp(one - best) for one in wrong) / len(wrong)) - right


def forgotten(log_ratio: float) -> float:
    """min(R, 1/R), in (0, 1]: what TOFU reports of its forget set. 1: right and wrong answers are alike."""
    return math.exp(-abs(log_ratio))


def kept(log_ratio: float) -> float:
    """max(0, 1 - R), in [0, 1): what enters model utility."""
    return max(0.0, 1.0 - math.exp(min(log_ratio, 0.0)))


def among(right: float, wrong: Sequence[float]) -> float:
    """P(right) / (P(right) + sum of P(wrong)): the probability of real authors and world facts."""
    best = max(right, *wrong)
    weights = [math.exp(one - best) for one in (right, *wrong)]
    return weights[0] / sum(weights)


def model_utility(figures: Sequence[float]) -> float:
    """The harmonic mean of probability, ROUGE-L recall and truth ratio of the three sets that must stay; 0 where any of
    them is 0."""
    return len(figures) / sum(1 / one for one in figures) if all(figures) else 0.0


def forget_quality(found: Sequence[float], reference: Sequence[float]) -> float:
    """The p-value of the two-sample Kolmogorov-Smirnov test between truth ratios on the forget set and those of a model
    that never learned it. ln R does as well as R, the test knows ranks only. It is near 0 for a model that forgot too
    much as for one that forgot nothing: read it beside the direction in which the ratios lie."""
    from scipy.stats import ks_2samp

    return float(ks_2samp(found, reference).pvalue)
