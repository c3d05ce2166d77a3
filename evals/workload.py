"""Requests for the isolation suite: unmatched ones in several shapes, matched ones beside them, seeded
orders."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from evals.client import Request, chat, completion
from evals.items import FORGET, UNMATCHED, Item, ItemError


@dataclass(frozen=True, slots=True)
class Load:
    """Requests in the order to send. `unmatched[k]` is the place in `requests` of the k-th unmatched one."""

    requests: list[Request]
    unmatched: list[int]
    concurrency: int


def _shape(first: Item, second: Item, rng: random.Random, max_tokens: int) -> Request:
    """One request: a lone question, the same after another question and its answer, or a bare completion."""
    shape, stream = rng.choice(("chat", "chat", "turns", "completion")), rng.random() < 0.5
    length = rng.randint(max(1, max_tokens // 2), max_tokens)
    if shape == "completion":
        return completion(first.turns[-1][1], max_tokens=length, logprobs=True, stream=stream)
    messages = first.messages
    if shape == "turns" and messages[0]["role"] != "system":
        messages = [*second.messages, {"role": "assistant", "content": second.answer or "Yes."}, *messages]
    return chat(messages, max_tokens=length, logprobs=True, stream=stream)


def draw(items: Sequence[Item], n: int, rng: random.Random, *, max_tokens: int) -> list[Request]:
    """`n` requests made of `items`, distinct as far as there are enough of them."""
    if not items:
        raise ItemError("no items to make requests of: unmatched and forget items are both needed")
    drawn, seen, tries = [], set(), 0
    while len(drawn) < n:
        request = _shape(rng.choice(items), rng.choice(items), rng, max_tokens)
        key, tries = json.dumps([request.kind, request.body], sort_keys=True), tries + 1
        if key in seen and tries < 20 * n:
            continue
        seen.add(key)
        drawn.append(request)
    return drawn


def mixed(unmatched: Sequence[Request], beside: Sequence[Request], *, seed: int, concurrency: int) -> Load:
    """Both kinds in one seeded random order."""
    order = list(range(len(unmatched) + len(beside)))
    random.Random(seed).shuffle(order)
    both = [*unmatched, *beside]
    place = {request: i for i, request in enumerate(order)}
    return Load([both[k] for k in order], [place[k] for k in range(len(unmatched))], concurrency)


def isolation_requests(
    items: Sequence[Item], *, n: int, beside: float, seed: int, max_tokens: int
) -> tuple[list[Request], list[Request]]:
    """`n` unmatched requests, and matched ones to make up the share `beside` of all."""
    rng = random.Random(seed)
    clean = draw([item for item in items if item.split in UNMATCHED], n, rng, max_tokens=max_tokens)
    count = round(n * beside / (1 - beside))
    forget = [item for item in items if item.split == FORGET]
    return clean, draw(forget, count, rng, max_tokens=max_tokens) if count else []
