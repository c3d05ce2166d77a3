"""The background set: ordinary prompts that no target should match, made from templates with a fixed seed.

It stands for everybody else's traffic when thresholds are calibrated and over-general names are refused. All
people, companies, products and works in it are invented. Its hash is part of every calibration's identity.
"""

from __future__ import annotations

import hashlib
import random
import re
from functools import cache

from guard.detection.background_templates import FAMILIES
from guard.detection.background_words import COMPANY_ENDS, COMPANY_STEMS, POOLS, TITLE_HEADS, TITLE_TAILS

SEED = 1
SIZE = 2_400
_SLOT = re.compile(r"\{(\w+)\}")


@cache
def _set() -> tuple[tuple[str, int], ...]:
    """(prompt, number of its template), without repetition, in an order that is random but always the
    same."""
    rng = random.Random(SEED)
    templates = [template for family in FAMILIES.values() for template in family]
    prompts: dict[str, int] = {}
    while len(prompts) < SIZE:
        for number, template in enumerate(templates):
            prompts.setdefault(_style(fill(template, rng).strip(), rng), number)
    ordered = list(prompts.items())
    rng.shuffle(ordered)
    return tuple(ordered[:SIZE])


@cache
def background() -> tuple[str, ...]:
    """The prompts."""
    return tuple(prompt for prompt, _ in _set())


@cache
def background_groups() -> tuple[int, ...]:
    """For each prompt the number of its template: prompts of one template ask the same sort of thing."""
    return tuple(number for _, number in _set())


@cache
def background_hash() -> str:
    """Identity of the set: 16 hex digits over its prompts in order."""
    return hashlib.sha256("\x00".join(background()).encode()).hexdigest()[:16]


def fill(template: str, rng: random.Random) -> str:
    """`template` with each {slot} replaced by a word of its pool; equal slots get different words."""
    return _SLOT.sub(lambda match: slot(match.group(1), rng), template)


def slot(name: str, rng: random.Random) -> str:
    """One value for a slot: a composed name, title, date or number, or a word of the pool of that name."""
    if name == "person":
        middle = f" {rng.choice(POOLS['first'])}" if rng.random() < 0.1 else ""
        return f"{rng.choice(POOLS['first'])}{middle} {rng.choice(POOLS['last'])}"
    if name == "company":
        return f"{rng.choice(COMPANY_STEMS)} {rng.choice(COMPANY_ENDS)}"
    if name == "title":
        return f"The {rng.choice(TITLE_HEADS)} {rng.choice(TITLE_TAILS)}"
    if name == "year":
        return str(rng.randint(1890, 2024))
    if name == "n":
        return str(rng.randint(2, 60))
    if name == "date":
        return f"{rng.choice(POOLS['month'])} {rng.randint(1, 28)}, {rng.randint(1920, 2005)}"
    return rng.choice(POOLS[name])


def _style(prompt: str, rng: random.Random) -> str:
    """Some people write without capitals or full stops, some say hello first."""
    draw = rng.random()
    if draw < 0.08:
        return prompt.lower().rstrip("?.!")
    if draw < 0.11:
        return f"Hi! {prompt}"
    if draw < 0.14:
        return f"{prompt} Please keep it short."
    return prompt
