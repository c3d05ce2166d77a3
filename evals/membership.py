"""Whether likelihoods tell an answer that a model has learned from one that nobody has ever seen.

A member is the right answer to an item. Its stranger is the same question and answer about an invented name, with the
value of another entity, so that no model has learned it. The attacks: loss (Yeom
et al. 2018) takes the mean log-likelihood of the answer's tokens, minimum-K (Shi et al. 2024, arXiv 2310.16789) that of
the fifth that is least likely. The area under the curve is the chance that a member scores above a stranger; 0.5 tells
nothing. A model that never learned the members has an area of its own, as far as their names and values are likelier
ones: what a guard leaves is what lies above that.
"""

from __future__ import annotations

import asyncio
import random
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evals.items import Item
from evals.truth_ratio import Question, Tokens
from guard.detection.names import like

LEAST = 0.2  # of an answer's tokens, in minimum-K


def loss(tokens: Sequence[float]) -> float:
    return statistics.fmean(tokens)


def minimum(tokens: Sequence[float]) -> float:
    return statistics.fmean(sorted(tokens)[: max(1, round(LEAST * len(tokens)))])


ATTACKS: Mapping[str, Callable[[Sequence[float]], float]] = {"loss": loss, "minimum-K": minimum}
Told = list[tuple[list[float], list[float]] | None]
"""Log-likelihoods of the tokens of member and stranger, None where they are withheld."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A learned answer, and one that was never seen, each to its own item."""

    member: Item
    stranger: Item


def pairs(asked: Sequence[Question], names: Mapping[str, Sequence[str]], seed: int) -> list[Pair]:
    """Of the questions that say one of the `names` of their item's entity."""
    rng = random.Random(seed)
    found = []
    for question in asked:
        item = question.item
        invented = {name: like(name, rng) for name in names.get(item.entity, ())}
        turns = tuple((role, renamed(text, invented)) for role, text in item.turns)
        if turns != item.turns:
            answer = renamed(question.wrong[0], invented)
            found.append(Pair(item, replace(item, turns=turns, answer=answer)))
    return found


def renamed(text: str, invented: Mapping[str, str]) -> str:
    """`text` with other names, the longest ones first."""
    for name in sorted(invented, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", invented[name], text, flags=re.IGNORECASE)
    return text


async def told(asked: Sequence[Pair], tokens: Tokens, *, concurrency: int) -> Told:
    """What a server tells of both answers of each pair."""
    limit = asyncio.Semaphore(concurrency)

    async def one(item: Item) -> list[float] | None:
        async with limit:
            return await tokens(item, item.answer)

    async def both(pair: Pair) -> tuple[list[float], list[float]] | None:
        member, stranger = await asyncio.gather(one(pair.member), one(pair.stranger))
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
