"""Whether likelihoods tell which of two answers a model has learned.

A member is the right answer to an item, its stranger the same with the value of another entity. The attacks: loss (Yeom
et al. 2018) takes the mean log-likelihood of the answer's tokens, minimum-K (Shi et al. 2024, arXiv 2310.16789) that of
the fifth that is least likely. The area under the curve is the chance that a member scores above a stranger; 0.5 tells
nothing. A model that never learned the facts has an area of its own, since true values are also likelier ones: what a
guard leaves is what lies above that.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence

import numpy as np

from evals.truth_ratio import Question, Tokens

LEAST = 0.2  # of an answer's tokens, in minimum-K


def loss(tokens: Sequence[float]) -> float:
    return statistics.fmean(tokens)


def minimum(tokens: Sequence[float]) -> float:
    return statistics.fmean(sorted(tokens)[: max(1, round(LEAST * len(tokens)))])


ATTACKS: Mapping[str, Callable[[Sequence[float]], float]] = {"loss": loss, "minimum-K": minimum}
Told = list[tuple[list[float], list[float]] | None]
"""Log-likelihoods of the tokens of member and stranger, None where they are withheld."""


async def told(asked: Sequence[Question], tokens: Tokens, *, concurrency: int) -> Told:
    """What a server tells of both answers to each question."""
    limit = asyncio.Semaphore(concurrency)

    async def one(question: Question, answer: str) -> list[float] | None:
        async with limit:
            return await tokens(question.item, answer)

    async def both(question: Question) -> tuple[list[float], list[float]] | None:
        pair: Sequence[Awaitable[list[float] | None]]
        pair = [one(question, question.item.answer), one(question, question.wrong[0])]
        member, stranger = await asyncio.gather(*pair)
        return None if member is None or stranger is None else (member, stranger)

    return list(await asyncio.gather(*map(both, asked)))


def shares(members: Sequence[float], strangers: Sequence[float]) -> list[float]:
    """What each pair adds to the area under the curve, whose mean is that area: the share of strangers below its
    member and of members above its stranger, ties half, less the area itself. Resampling these accounts for the chance
    in both sets (DeLong et al. 1988)."""
    one, other = np.asarray(members)[:, None], np.asarray(strangers)[None, :]
    above = (one > other) + (one == other) / 2
    found: list[float] = (above.mean(axis=1) + above.mean(axis=0) - above.mean()).tolist()
    return found
