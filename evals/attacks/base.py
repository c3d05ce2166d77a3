"""What an attack is: a way to ask for one fact that goes around whatever keeps it back.

An attack is a generator. It yields what it asks (an `Ask`, a `Post` as it is sent, or `Weigh` for the likelihoods of
texts), is sent what came back, and returns what it got out: a text, or of given options the one that it takes for the
right one. It returns None where the case cannot be put that way. All cases of an attack run side by side, so that a
subject is asked for many at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from evals.items import Item
from evals.subjects import Ask, Post, Subject, Withheld, together

TOKENS = 64  # of an answer
_AT_ONCE = 8  # likelihoods asked for

Sort = Literal["plain", "named", "unnamed", "written", "options", "stop", "likelihoods", "ids", "samples"]
"""By what an attack gets at the fact. `named`: other words around a name that stays as it is; `unnamed`: the name is
nowhere, or in parts; `written`: the question is in letters that must be decoded; then what a server tells beside or in
place of an answer: which of given `options` it takes, which `stop` string ended it, `likelihoods`, `ids` of tokens,
several `samples`."""


@dataclass(frozen=True, slots=True)
class Case:
    """One item and what an attacker may know beside it.

    `name` is what the question calls its subject, `follow_up` the question with a pronoun in its place; `aliases` are
    other names, `description` says who or what it is without a name and without the fact. `options` are the right
    answer and wrong ones, in any order, `right` the right one. `about` are other questions and answers about the same
    subject, `others` about anything else that the model knows. Texts are empty where they are not known.
    """

    item: Item
    name: str = ""
    follow_up: str = ""
    aliases: tuple[str, ...] = ()
    description: str = ""
    right: str = ""
    options: tuple[str, ...] = ()
    about: tuple[tuple[str, str], ...] = ()
    others: tuple[tuple[str, str], ...] = ()

    @property
    def question(self) -> str:
        return self.item.turns[-1][1]

    @property
    def before(self) -> tuple[tuple[str, str], ...]:
        """The turns that lead to the question."""
        return self.item.turns[:-1]


@dataclass(frozen=True, slots=True)
class Weigh:
    """Wanted: how likely each text is behind its prompt. Sent back: their mean log-likelihoods."""

    pairs: tuple[tuple[Ask, str], ...]


Wanted = Ask | Post | Weigh
Talk = Generator[Wanted, Any, str | None]


@dataclass(frozen=True, slots=True)
class Attack:
    """`talk` makes the generator for a case; `guesses`: it returns one of the options, so that one who knows nothing is
    right at times. `source` is where it was described, "" for forms of our own."""

    sort: Sort
    talk: Callable[[Case, random.Random], Talk]
    source: str = ""
    guesses: bool = False


async def run(attack: Attack, subject: Subject, cases: Sequence[Case], seed: int) -> list[str | None]:
    """What the attack gets out of each case; None where the case cannot be put that way.

    Raises:
        NotTold: the subject has no such way in.
        ClientError: it cannot be asked at all.
    """
    talks = [attack.talk(case, random.Random(f"{seed}\0{case.item.id}")) for case in cases]
    got: list[str | None] = [None] * len(cases)
    wanted: dict[int, Wanted] = {}

    def go_on(number: int, told: Any) -> None:
        try:
            wanted[number] = talks[number].send(told)
        except StopIteration as end:
            got[number] = end.value

    for number in range(len(cases)):
        go_on(number, None)
    while wanted:
        asked, wanted = wanted, {}
        for number, told in (await _answered(subject, asked)).items():
            go_on(number, told)
    return got


async def _answered(subject: Subject, wanted: dict[int, Wanted]) -> dict[int, Any]:
    told: dict[int, Any] = {}
    asks = {n: one for n, one in wanted.items() if isinstance(one, Ask)}
    posts = {n: one for n, one in wanted.items() if isinstance(one, Post)}
    weighs = {n: one for n, one in wanted.items() if isinstance(one, Weigh)}
    if asks:
        told |= zip(asks, await subject.answers(list(asks.values()), TOKENS), strict=True)
    if posts:
        told |= zip(posts, await subject.posts(list(posts.values())), strict=True)
    if weighs:
        told |= zip(weighs, await together(list(weighs.values()), lambda w: _weighed(subject, w), _AT_ONCE),
                    strict=True)  # fmt: skip
    return told


async def _weighed(subject: Subject, wanted: Weigh) -> list[float]:
    """Nothing where a single one is withheld: a guess needs them all."""
    try:
        return [sum(tokens) / max(len(tokens), 1) for tokens in await subject.likelihoods(wanted.pairs)]
    except Withheld:
        return []
