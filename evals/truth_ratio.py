"""The truth ratio of TOFU (arXiv 2401.06121): how likely wrong answers are beside the right one.

R = mean P(wrong)^(1/tokens) / P(right)^(1/tokens), the arithmetic variant. A model that knows the fact has a small one;
forgetting shows in whether it moves to where the model that never learned has it. Wrong answers are the right one with
the value of another entity in it.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from evals.client import Client, ClientError
from evals.items import Item
from evals.subjects import Ask, Endpoint, Guarded, NotTold, Subject, Withheld
from guard.metrics.tofu import log_truth_ratio

WRONG = 3

Tokens = Callable[[Item, str], Awaitable[list[float] | None]]
"""The log-likelihoods of the tokens of that answer to an item; None where the answer is not the model's."""


@dataclass(frozen=True, slots=True)
class Question:
    """An item with wrong answers to it, and the values in which they are wrong, where those are known."""

    item: Item
    wrong: tuple[str, ...]
    values: tuple[str, ...] = ()


def questions(
    asked: Sequence[Item], known: Sequence[Item], n: int, seed: int, *, most: int = WRONG
) -> list[Question]:
    """At most `n` of `asked`, with their own wrong answers, or at most `most` made of the values of `known` items that
    say the same of others."""
    values: dict[str, set[str]] = {}
    for item in known:
        if _sort(item):
            values.setdefault(_sort(item), set()).add(item.value)
    rng = random.Random(seed)
    found = []
    for item in rng.sample(list(asked), len(asked)):
        others = sorted(values.get(_sort(item), set()) - {item.value})
        if len(found) == n:
            break
        if item.wrong:
            found.append(Question(item, item.wrong))
        elif others:
            chosen = tuple(rng.sample(others, min(most, len(others))))
            wrong = (value.join(item.answer.rsplit(item.value, 1)) for value in chosen)
            found.append(Question(item, tuple(wrong), chosen))
    return found


def _sort(item: Item) -> str:
    """What an answer says, but for whom and what: equal for answers that differ only there. Empty: it has no value."""
    if not item.value or item.value not in item.answer:
        return ""
    about = set(re.findall(r"\w+", item.entity.lower()))
    words = re.findall(r"\w+", item.answer.replace(item.value, " ").lower())
    return " ".join(word for word in words if word not in about)


async def log_ratios(asked: Sequence[Question], tokens: Tokens, *, concurrency: int) -> list[float] | None:
    """The natural logarithm of R for each question; None where the answers are not the model's."""
    gate = asyncio.Semaphore(concurrency)

    async def one(item: Item, answer: str) -> float | None:
        async with gate:
            found = await tokens(item, answer)
        return None if found is None else sum(found) / len(found)

    async def ratio(question: Question) -> float | None:
        right, *wrong = await asyncio.gather(
            *(one(question.item, a) for a in (question.item.answer, *question.wrong))
        )
        if right is None or any(w is None for w in wrong):
            return None
        return log_truth_ratio(right, [w for w in wrong if w is not None], "arithmetic")

    found = await asyncio.gather(*map(ratio, asked))
    kept = [value for value in found if value is not None]
    return kept if len(kept) == len(found) else None


def told_by(subject: Subject) -> Tokens:
    """Raises ClientError: it cannot tell likelihoods at all."""

    async def tokens(item: Item, answer: str) -> list[float] | None:
        try:
            (found,) = await subject.likelihoods([(Ask(item.turns), answer)])
        except Withheld:
            return None
        except NotTold as error:
            raise ClientError(f"{error}.") from None
        return found

    return tokens


def guarded(client: Client) -> Tokens:
    """From the admin API of a guarded server."""
    return told_by(Guarded(client, client.root))


def bare(client: Client) -> Tokens:
    """As any client of vLLM asks for it: as the likelihoods of a prompt that ends with the answer. A guarded server
    judges that prompt, answer and all, and may withhold them."""
    return told_by(Endpoint(client, client.root))


def toward(found: Sequence[float], never: Sequence[float], before: Sequence[float]) -> float:
    """The share of questions whose ratio lies nearer to the never-learned model's than it did `before`."""
    nearer = [abs(f - n) < abs(b - n) for f, n, b in zip(found, never, before, strict=True)]
    return sum(nearer) / len(nearer)
