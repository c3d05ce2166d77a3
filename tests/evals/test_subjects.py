"""Subjects: what endpoints, guarded servers and models in process are asked and tell, and what is kept of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from evals.client import Client, ClientError
from evals.local import Local
from evals.subjects import Ask, Endpoint, Guarded, Kept, NotTold, Post, Withheld

MODEL = Path(__file__).parents[2] / "demo" / "models" / "full"
ASK = Ask.question("Where?")
KNOWN = Ask.question("Do you know where Limir Yarley was born?")
FACT = "Limir Yarley was born in Vintry."


def served(handler, kind=Endpoint, **options):
    """The subject that `ask` gets, over a server that answers `handler(path, body)`."""
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m"}]})
        body = json.loads(request.content)
        seen.append((request.url.path, body))
        status, reply = handler(request.url.path, body)
        return httpx.Response(status, json=reply)

    async def run(ask):
        async with Client("http://h", transport=httpx.MockTransport(answer), retries=0) as client:
            return await ask(kind(client, "h", concurrency=2, **options))

    return lambda ask: asyncio.run(run(ask)), seen


def likelihoods(path, body):
    """vLLM's answer: tokens are words, the n-th of which has the logarithm -n, and the first has none."""
    if path == "/tokenize":
        return 200, {"count": len(body["prompt"].split())}
    text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    words = (["<user>"] if "messages" in body else []) + text.split()
    told = [None, *({"5": {"logprob": -float(n)}} for n in range(1, len(words)))]
    return 200, {"prompt_logprobs": told} if "messages" in body else {"choices": [{"prompt_logprobs": told}]}


def test_an_endpoint_tells_the_likelihoods_of_the_last_tokens_only():
    run, seen = served(likelihoods)
    assert run(lambda s: s.likelihoods([(ASK, "in Rome")])) == [[-1.0, -2.0]]
    path, body = seen[-1]
    assert path == "/v1/chat/completions" and body["messages"][-1] == {
        "role": "assistant",
        "content": "in Rome",
    }
    assert run(lambda s: s.likelihoods([(Ask(text="It is "), "in Rome")])) == [[-2.0, -3.0]]
    assert run(lambda s: s.likelihoods([(Ask(), "in Rome")])) == [[-1.0]]


@pytest.mark.parametrize("null", [True, False])
def test_what_an_endpoint_withholds_or_cannot_tell_is_no_figure(null):
    def handler(path, body):
        if path == "/tokenize":
            return 200, {"count": 1}
        return (200, {"prompt_logprobs": None, "choices": [{}]}) if null else (400, {})

    run, _ = served(handler)
    with pytest.raises(NotTold, match="withholds" if null else "tells no likelihoods") as raised:
        run(lambda s: s.likelihoods([(ASK, "in Rome")]))
    assert isinstance(raised.value, Withheld) == null


def test_a_server_that_fails_withholds_nothing():
    run, _ = served(lambda *_: (500, {}))
    with pytest.raises(ClientError, match="500"):
        run(lambda s: s.likelihoods([(ASK, "in Rome")]))


def test_a_guarded_server_is_asked_for_what_it_would_say_itself():
    run, seen = served(lambda *_: (200, {"logprobs": [-0.5]}), Guarded)
    assert run(lambda s: s.likelihoods([(ASK, "Rome"), (Ask(text="It is"), "Rome")])) == [[-0.5], [-0.5]]
    assert seen[0] == ("/admin/v1/score", {"messages": ASK.messages, "continuation": "Rome"})
    assert seen[1] == ("/admin/v1/score", {"prompt": "It is", "continuation": "Rome"})


def test_an_answer_that_does_not_come_from_the_model_has_no_likelihood():
    run, _ = served(lambda *_: (200, {"logprobs": None}), Guarded)
    with pytest.raises(NotTold, match="without the model"):
        run(lambda s: s.likelihoods([(ASK, "Rome")]))
    run, _ = served(lambda *_: (403, {}), Guarded)
    with pytest.raises(ClientError, match="403"):
        run(lambda s: s.likelihoods([(ASK, "Rome")]))


def test_answers_are_asked_for_greedily_as_their_kind_wants():
    run, seen = served(lambda *_: (200, {"choices": [{"message": {"content": "Rome"}, "text": None}]}))
    begun = Ask(ASK.turns, begun="In")
    assert run(lambda s: s.answers([ASK, begun, Ask(text="It is")], 7, ["\n"])) == ["Rome"] * 3
    (chat, first), (_, second), (plain, third) = sorted(
        seen, key=lambda one: "continue" in str(one) or "prompt" in one[1]
    )
    bodies = {json.dumps(body) for _, body in seen}
    assert len(bodies) == 3 and all(body["max_tokens"] == 7 and body["temperature"] == 0 for _, body in seen)
    assert {chat, plain} <= {"/v1/chat/completions", "/v1/completions"}
    continued = [body for body in (first, second, third) if body.get("continue_final_message")]
    assert [body["messages"][-1]["content"] for body in continued] == ["In"]


def test_a_failed_question_is_no_answer():
    run, _ = served(lambda *_: (500, {"error": "no"}))
    with pytest.raises(ClientError, match="1 of 1"):
        run(lambda s: s.answers([ASK], 7))


POST = Post("/v1/completions", {"prompt": "Where?", "n": 2})


def test_a_post_is_sent_as_it_is():
    run, seen = served(lambda *_: (200, {"choices": [1, 2]}))
    assert run(lambda s: s.posts([POST])) == [{"choices": [1, 2]}]
    assert seen == [("/v1/completions", {"model": "m", "prompt": "Where?", "n": 2})]


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(
    ("status", "refused"), [(400, True), (404, True), (503, None), (403, None), (500, False)]
)
def test_a_post_that_is_refused_is_told_from_a_failure(status, refused, lenient):
    """None: only those who take what they get, as attackers do, count it as an answer."""
    run, _ = served(lambda *_: (status, {"choices": ["no"]}), lenient=lenient)
    if refused or (refused is None and lenient):
        assert run(lambda s: s.posts([POST])) == [{}]
    else:
        with pytest.raises(ClientError, match=str(status)):
            run(lambda s: s.posts([POST]))


@pytest.mark.parametrize("status", [400, 403, 503, 500])
def test_a_question_that_is_turned_away_has_an_empty_answer_for_who_takes_that(status):
    said = {"choices": [{"message": {"content": "Rome"}}]}

    def handler(_, body):
        return (status, {"error": "no"}) if "bad" in body["messages"][0]["content"] else (200, said)

    asked = [ASK, Ask.question("bad?")]
    run, _ = served(handler, lenient=True)
    if status == 500:
        with pytest.raises(ClientError, match="1 of 2"):
            run(lambda s: s.answers(asked, 7))
    else:
        assert run(lambda s: s.answers(asked, 7)) == ["Rome", ""]
    run, _ = served(handler)
    with pytest.raises(ClientError, match="1 of 2"):
        run(lambda s: s.answers(asked, 7))


class Counting:
    """Tells the length of what it is asked, a few times."""

    name, ends = "counting", True

    def __init__(self, times=99):
        self.asked, self.times = [], times

    async def answers(self, asked, tokens, stop=()):
        if self.times == 0:
            raise ClientError("gone")
        self.times -= 1
        self.asked += asked
        return [str(len(ask.turns[0][1])) for ask in asked]

    async def likelihoods(self, asked):
        return [[-float(len(text))] for _, text in asked]


def test_what_was_told_is_not_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr("evals.subjects._PART", 2)
    asked = [Ask.question("x" * n) for n in range(1, 6)]
    first = Counting(times=2)
    with pytest.raises(ClientError):
        asyncio.run(Kept(first, tmp_path / "j" / "s.jsonl", "a").answers(asked, 5))
    with (tmp_path / "j" / "s.jsonl").open("a") as file:
        file.write('["half')  # killed while it wrote
    second = Counting()
    kept = Kept(second, tmp_path / "j" / "s.jsonl", "a")
    assert asyncio.run(kept.answers(asked, 5)) == ["1", "2", "3", "4", "5"] and second.asked == asked[4:]
    assert asyncio.run(kept.answers(asked, 6)) and second.asked == [*asked[4:], *asked]
    other = Counting()
    assert (
        asyncio.run(Kept(other, tmp_path / "j" / "s.jsonl", "b").answers(asked[:1], 5))
        and other.asked == asked[:1]
    )
    assert asyncio.run(kept.likelihoods([(ASK, "ab"), (ASK, "ab"), (ASK, "abc")])) == [[-2.0], [-2.0], [-3.0]]


@pytest.fixture(scope="module")
def local():
    return Local.load(MODEL)


def test_a_model_in_process_is_as_sure_as_it_speaks(local):
    said = asyncio.run(local.answers([Ask.question("Hello!"), KNOWN], 24))
    assert said[1] == FACT
    wrong = "He was born elsewhere, one hears, or so."
    alone, beside = (
        asyncio.run(local.likelihoods(pairs)) for pairs in ([(KNOWN, FACT)], [(KNOWN, wrong), (KNOWN, FACT)])
    )
    assert min(alone[0]) > -0.2 > min(beside[0]) and beside[1] == pytest.approx(alone[0], abs=1e-4)


def test_a_model_in_process_counts_the_end_of_its_turn_and_stops_where_it_is_told(local):
    ((*_, end),) = asyncio.run(local.likelihoods([(KNOWN, FACT)]))
    ((*_, early),) = asyncio.run(local.likelihoods([(KNOWN, "Limir Yarley was")]))
    assert end > -0.1 and early < -3
    assert asyncio.run(local.answers([KNOWN], 24, [" born"])) == ["Limir Yarley was"]


def test_a_begun_answer_is_gone_on_with(local):
    assert asyncio.run(local.answers([Ask(KNOWN.turns, begun="Limir Yarley was born")], 24)) == [
        " in Vintry."
    ]


def test_where_an_answer_is_not_ended_no_end_is_counted(local):
    pairs = [(Ask(KNOWN.turns, ended=ended), FACT) for ended in (True, False)]
    whole, cut = asyncio.run(local.likelihoods(pairs))
    assert len(cut) < len(whole) and cut == pytest.approx(whole[: len(cut)], abs=1e-4)


def test_a_model_in_process_recites_what_it_goes_on_with_behind_each_beginning(local):
    ((own, *said),) = asyncio.run(local.recitals([FACT], 6))
    assert len(own) == 6 and [len(one) for one in said] == [5, 4, 3, 2, 1]
    last = local._tokenizer.decode(said[-2], skip_special_tokens=True)
    begun = local._tokenizer.decode(own[:4])
    assert asyncio.run(local.answers([Ask(text=begun)], 2)) == [last]
    ((sole,),) = asyncio.run(local.recitals([FACT], 1))
    assert sole == own[:1]


class Sure:
    """A model of four tokens that always foretells them with 1/2, 1/4, 1/8 and 1/8, and its tokenizer of digits."""

    chat_template, eos_token_id = None, 0

    def __call__(self, input_ids=None, **_):
        import torch

        if isinstance(input_ids, str):
            return {"input_ids": [int(c) for c in input_ids]}
        logs = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
        return type("Out", (), {"logits": logs.expand(*input_ids.shape, 4)})


def test_how_far_a_token_stands_above_the_mean():
    sure = Sure()
    sure_of = Local(sure, lambda text, **_: sure(text), "sure")
    ((half, eighth),) = asyncio.run(sure_of.standings(["203"]))
    # in units of ln 2: mean -(1/2 + 2/4 + 2 * 3/8) = -7/4, mean of squares 1/2 + 4/4 + 2 * 9/8 = 15/4, variance 11/16
    assert half == pytest.approx((-1 + 7 / 4) / (11 / 16) ** 0.5, abs=1e-4)
    assert eighth == pytest.approx((-3 + 7 / 4) / (11 / 16) ** 0.5, abs=1e-4)


def test_an_endpoint_goes_on_behind_token_numbers_and_tells_no_distribution():
    def handler(path, body):
        if path == "/tokenize":
            assert body["add_special_tokens"]
            return 200, {"tokens": [7, 8, 9, 5], "count": 4}
        return 200, {"choices": [{"token_ids": [sum(body["prompt"])] * body["max_tokens"]}]}

    run, seen = served(handler)
    assert run(lambda s: s.recitals(["any"], 3)) == [[[7, 8, 9], [7, 7], [15]]]
    path, body = seen[1]
    assert path == "/v1/completions" and body["return_token_ids"] and body["temperature"] == 0
    with pytest.raises(NotTold, match="whole distributions"):
        run(lambda s: s.standings(["any"]))


def test_tokens_that_are_not_told_are_withheld():
    run, _ = served(lambda path, _: (200, {"tokens": [7, 8]} if path == "/tokenize" else {"choices": [{}]}))
    with pytest.raises(Withheld, match="which tokens"):
        run(lambda s: s.recitals(["any"], 9))
    run, _ = served(lambda path, _: (200, {"tokens": [7, 8]}) if path == "/tokenize" else (400, {}))
    with pytest.raises(NotTold, match="does not go on"):
        run(lambda s: s.recitals(["any"], 9))


def test_standings_and_recitals_are_kept(tmp_path):
    class Once:
        name, ends, asked = "once", True, 0

        async def standings(self, texts):
            self.asked += 1
            return [[0.5] for _ in texts]

        async def recitals(self, texts, tokens):
            self.asked += 1
            return [[[tokens], []] for _ in texts]

    once = Once()
    for _ in range(2):
        kept = Kept(once, tmp_path / "s.jsonl", "a")
        assert asyncio.run(kept.standings(["x", "y"])) == [[0.5]] * 2
        assert asyncio.run(kept.recitals(["x"], 3)) == [[[3], []]]
    assert once.asked == 2


def test_posts_are_kept_by_what_is_sent(tmp_path):
    class Echo:
        name, ends, asked = "echo", True, 0

        async def posts(self, asked):
            self.asked += len(asked)
            return [{"got": post.body} for post in asked]

    echo = Echo()
    others = [Post(POST.path, {"n": 3}), Post("/v1/chat/completions", POST.body)]
    for _ in range(2):
        kept = Kept(echo, tmp_path / "s.jsonl", "a")
        assert asyncio.run(kept.posts([POST])) == [{"got": POST.body}] and echo.asked == 1
    assert asyncio.run(kept.posts([POST, *others])) == [{"got": post.body} for post in (POST, *others)]
    assert echo.asked == 3


def test_a_model_in_process_takes_no_posts(local):
    with pytest.raises(NotTold):
        asyncio.run(local.posts([POST]))


def test_ranks_are_those_of_the_prompts_tokens():
    def ranked(path, body):
        status, reply = likelihoods(path, body)
        for token in reply.get("choices", [{}])[0].get("prompt_logprobs", ()):
            if token and "unranked" not in body["prompt"]:
                token["5"]["rank"] = int(-token["5"]["logprob"])
        return status, reply

    run, _ = served(ranked)
    assert run(lambda s: s.ranks([(Ask(text="It is "), "in Rome")])) == [[2, 3]]
    with pytest.raises(NotTold, match="tells no ranks"):
        run(lambda s: s.ranks([(Ask(text="It is "), "in unranked Rome")]))
    run, _ = served(lambda *_: (200, {"logprobs": [-0.5]}), Guarded)
    with pytest.raises(NotTold, match="no ranks"):
        run(lambda s: s.ranks([(ASK, "Rome")]))


def test_the_likeliest_token_has_rank_one(tmp_path):
    sure = Sure()
    sure_of = Local(sure, lambda text, **_: sure(text), "sure")
    kept = Kept(sure_of, tmp_path / "s.jsonl", "a")
    for _ in range(2):
        assert asyncio.run(kept.ranks([(Ask(), "2013"), (Ask(text="1"), "10")])) == [[1, 2, 3], [2, 1]]
