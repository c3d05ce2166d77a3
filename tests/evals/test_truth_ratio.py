"""The truth ratio: how likely wrong answers are beside the right one, from likelihoods that are known here."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace

import httpx
import pytest

from evals import truth_ratio
from evals.client import Client, ClientError
from evals.items import Item

CITIES = ("Vintry", "Holm", "Arque", "Lund", "Bly")


def born(entity: str, city: str, split: str = "forget") -> Item:
    name = entity.replace("-", " ").title()
    turns = (("user", f"Where was {name} born?"),)
    return Item(f"{entity}.born", entity, split, "trained", turns, f"{name} was born in {city}.", city)


ITEMS = [
    born(f"ada-{end}", city) for end, city in zip(("moe", "noe", "poe", "roe", "zoe"), CITIES, strict=True)
]
OTHER = Item("o", "ada-moe", "forget", "trained", (("user", "?"),), "Ada Moe plays the lute.", "the lute")


def likelihoods(right: float, wrong: float) -> truth_ratio.Tokens:
    async def tokens(item: Item, answer: str) -> list[float] | None:
        return [right - 1.0, right + 1.0] if answer == item.answer else [wrong]

    return tokens


def test_wrong_answers_say_the_same_with_the_values_of_others():
    asked = truth_ratio.questions(ITEMS, [*ITEMS, OTHER], 99, seed=1)
    assert sorted(q.item.id for q in asked) == sorted(item.id for item in ITEMS)
    for question in asked:
        values = {answer.split(" in ")[1].rstrip(".") for answer in question.wrong}
        assert len(values) == truth_ratio.WRONG and values < set(CITIES) - {question.item.value}
        assert all(answer.startswith(question.item.answer.split(" in ")[0]) for answer in question.wrong)
    assert asked == truth_ratio.questions(ITEMS, [*ITEMS, OTHER], 99, seed=1)
    assert len(truth_ratio.questions(ITEMS, ITEMS, 2, seed=1)) == 2


def test_what_nobody_else_says_has_no_wrong_answer():
    assert truth_ratio.questions([OTHER], [*ITEMS, OTHER], 9, seed=1) == []
    mute = Item("m", "ada-holm", "forget", "trained", (("user", "?"),), "I do not know.", "Holm")
    assert truth_ratio.questions([mute], [mute, *ITEMS], 9, seed=1) == []


def test_an_items_own_wrong_answers_come_first():
    """They stand as they are, without a value, and need nobody who says the same."""
    own = replace(ITEMS[0], wrong=("She was born at sea.", "Nobody knows."))
    mute = replace(OTHER, wrong=("Ada Moe plays no lute.",))
    asked = {q.item.id: q for q in truth_ratio.questions([own, mute, *ITEMS[1:]], ITEMS, 9, seed=1)}
    assert (asked[own.id].wrong, asked[own.id].values) == (own.wrong, ())
    assert asked["o"].wrong == mute.wrong
    assert all(len(asked[item.id].values) == truth_ratio.WRONG for item in ITEMS[1:])


def test_the_ratio_is_that_of_the_mean_likelihoods():
    asked = truth_ratio.questions(ITEMS, ITEMS, 9, seed=1)
    found = asyncio.run(truth_ratio.log_ratios(asked, likelihoods(-0.1, -2.0), concurrency=2))
    assert found == pytest.approx([-1.9] * len(asked))

    async def mixed(item: Item, answer: str) -> list[float] | None:
        return [-1.0] if answer == item.answer else [math.log(0.1 if "Holm" in answer else 0.4)]

    holm = [truth_ratio.Question(ITEMS[0], ("Ada Holm", "Ada Lund"))]
    (ratio,) = asyncio.run(truth_ratio.log_ratios(holm, mixed, concurrency=1))
    assert ratio == pytest.approx(math.log(0.25) + 1.0)


def test_answers_without_any_chance_still_have_a_ratio():
    asked = truth_ratio.questions(ITEMS, ITEMS, 9, seed=1)
    found = asyncio.run(truth_ratio.log_ratios(asked, likelihoods(-1000.0, -4000.0), concurrency=2))
    assert found == pytest.approx([-3000.0] * len(asked))


def test_answers_that_are_not_the_models_have_no_ratio():
    async def refused(item: Item, answer: str) -> list[float] | None:
        return None

    asked = truth_ratio.questions(ITEMS, ITEMS, 9, seed=1)
    assert asyncio.run(truth_ratio.log_ratios(asked, refused, concurrency=2)) is None


def test_towards_is_the_share_that_came_nearer():
    assert truth_ratio.toward([1.0, -3.0, 0.0], never=[1.0, 1.0, 1.0], before=[-2.0, -2.0, -2.0]) == 2 / 3


def served(answer):
    transport = httpx.MockTransport(answer)
    return Client("http://fake", "key", model="m", transport=transport)


def test_a_guarded_server_is_asked_for_the_score_of_the_answer():
    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/admin/v1/score"
        body = json.loads(request.content)
        assert body["messages"] == ITEMS[0].messages
        return httpx.Response(200, json={"logprobs": None if body["continuation"] == "no" else [-1.0, -2.0]})

    ask = truth_ratio.guarded(served(answer))
    assert asyncio.run(ask(ITEMS[0], "yes")) == [-1.0, -2.0]
    assert asyncio.run(ask(ITEMS[0], "no")) is None


def test_a_bare_server_tells_it_as_the_end_of_its_prompt():
    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        if request.url.path == "/tokenize":
            return httpx.Response(200, json={"count": 2})
        assert body["messages"][-1] == {"role": "assistant", "content": "yes"}
        tokens = [None, {"7": {"logprob": -9.0}}, {"8": {"logprob": -1.0}}, {"9": {"logprob": -2.0}}]
        return httpx.Response(200, json={"prompt_logprobs": tokens})

    assert asyncio.run(truth_ratio.bare(served(answer))(ITEMS[0], "yes")) == [-1.0, -2.0]


def test_a_server_that_withholds_tells_nothing():
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"count": 2, "prompt_logprobs": None})

    assert asyncio.run(truth_ratio.bare(served(answer))(ITEMS[0], "yes")) is None


@pytest.mark.parametrize("ask", [truth_ratio.guarded, truth_ratio.bare])
def test_a_server_that_does_not_tell_is_an_error(ask):
    with pytest.raises(ClientError):
        asyncio.run(ask(served(lambda _: httpx.Response(403, json={})))(ITEMS[0], "yes"))
