"""What a benchmark measures: a model behind an OpenAI-compatible endpoint, behind a guarded server whose admin API
tells likelihoods, or in this process (`evals.local`). What was told is kept in a journal, so that a long run goes on
where it was stopped.

Where something cannot be told, `NotTold` says why, and a suite shows that in place of a figure.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx

from evals.client import Answer, Client, ClientError, Request, failed

GREEDY: dict[str, Any] = {"temperature": 0}
T = TypeVar("T")


class NotTold(Exception):
    """The subject cannot tell this; why, as part of a sentence."""


class Withheld(NotTold):
    """It could, and does not: the question is matched."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A conversation to be answered, of which `begun` is what the answer begins with; or `text` to be gone on with, as
    base models are asked. Where not `ended`, no likelihood counts the end of the answer's turn."""

    turns: tuple[tuple[str, str], ...] = ()
    begun: str = ""
    text: str = ""
    ended: bool = True

    @classmethod
    def question(cls, text: str, begun: str = "", *, ended: bool = True) -> Ask:
        return cls((("user", text),), begun, ended=ended)

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in self.turns]


@dataclass(frozen=True, slots=True)
class Post:
    """A request as it is sent, for what no `Ask` says; `body` is without the model."""

    path: str
    body: dict[str, Any]


class Subject(Protocol):
    """`name` stands in reports; `ends` says whether the likelihoods of an answer count the end of its turn, as those of
    benchmarks do that run in the model's process. Over HTTP a text has no end."""

    name: str
    ends: bool

    async def answers(self, asked: Sequence[Ask], tokens: int, stop: Sequence[str] = ()) -> list[str]:
        """Greedy, without what they were begun with, of at most so many tokens, ended before any of `stop`.

        Raises:
            NotTold, ClientError
        """
        ...

    async def likelihoods(self, asked: Sequence[tuple[Ask, str]]) -> list[list[float]]:
        """For each text behind its prompt the natural logarithm of each token's likelihood.

        Raises:
            NotTold, ClientError
        """
        ...

    async def ranks(self, asked: Sequence[tuple[Ask, str]]) -> list[list[int]]:
        """For each text behind its prompt the place of each token among all by their likelihood there: 1 is first.

        Raises:
            NotTold, ClientError
        """
        ...

    async def standings(self, texts: Sequence[str]) -> list[list[float]]:
        """For each token of each text that something foretells, by how many standard deviations its log-likelihood lies
        above the mean of all tokens' there, both under the model's own distribution (Min-K%++, arXiv 2404.02936).

        Raises:
            NotTold, ClientError
        """
        ...

    async def recitals(self, texts: Sequence[str], tokens: int) -> list[list[list[int]]]:
        """For each text its first `tokens` tokens, by number, and then for each proper beginning of them, the shortest
        first, with what the model goes on, greedily, to their length at most.

        Raises:
            NotTold, ClientError
        """
        ...

    async def posts(self, asked: Sequence[Post]) -> list[dict[str, Any]]:
        """What is answered to each, as JSON: {} where it is refused.

        Raises:
            NotTold, ClientError
        """
        ...


class Endpoint:
    """Any OpenAI-compatible endpoint. Likelihoods of given texts are those that vLLM tells of prompts; other servers,
    and a guarded one for what its targets forbid, do not tell them. `lenient`: a question that is refused outright has
    the answer "", as attackers take it."""

    ends = False

    def __init__(self, client: Client, name: str, *, concurrency: int = 8, lenient: bool = False) -> None:
        self.name = name
        self._client = client
        self._limit = concurrency
        self._lenient = lenient

    async def answers(self, asked: Sequence[Ask], tokens: int, stop: Sequence[str] = ()) -> list[str]:
        requests = [
            _request(ask, {"max_tokens": tokens, **({"stop": list(stop)} if stop else {})}) for ask in asked
        ]
        found: list[Answer] = await self._client.send_all(requests, concurrency=self._limit, label=self.name)
        if told := failed([one for one in found if not self._lenient or one.status not in _TURNED_AWAY]):
            raise ClientError(
                f"{self.name} failed on {len(told)} of {len(found)} questions; the first: {told[0]}"
            )
        return [answer.text for answer in found]

    async def likelihoods(self, asked: Sequence[tuple[Ask, str]]) -> list[list[float]]:
        model = await self._client.model()
        return await together(asked, lambda one: self._told(model, *one), self._limit)

    async def ranks(self, asked: Sequence[tuple[Ask, str]]) -> list[list[int]]:
        model = await self._client.model()
        told = await together(asked, lambda one: self._weighed(model, *one), self._limit)
        if any(token.get("rank") is None for tokens in told for token in tokens):
            raise NotTold(f"{self.name} tells no ranks of given texts' tokens")
        return [[token["rank"] for token in tokens] for tokens in told]

    async def posts(self, asked: Sequence[Post]) -> list[dict[str, Any]]:
        model = await self._client.model()
        return await together(asked, lambda post: self._posted(model, post), self._limit)

    async def _posted(self, model: str, post: Post) -> dict[str, Any]:
        response = await self._client.call("POST", post.path, json={"model": model, **post.body})
        if response.status_code not in (200, *(_TURNED_AWAY if self._lenient else _NO_SUCH_CALL)):
            raise ClientError(f"{response.url} answered {response.status_code}: {response.text[:300]}")
        return response.json() if response.status_code == 200 else {}

    async def standings(self, texts: Sequence[str]) -> list[list[float]]:
        raise NotTold("an endpoint does not tell whole distributions, as a model in this process does")

    async def recitals(self, texts: Sequence[str], tokens: int) -> list[list[list[int]]]:
        model = await self._client.model()
        owned = await together(texts, lambda one: self._tokens(model, one), self._limit)
        cut = [own["tokens"][:tokens] for own in owned]
        begun = [(own, length) for own in cut for length in range(1, len(own))]
        said = iter(await together(begun, lambda one: self._continued(model, *one), self._limit))
        return [[own, *(next(said) for _ in own[1:])] for own in cut]

    async def _continued(self, model: str, own: list[int], length: int) -> list[int]:
        body = {"model": model, "prompt": own[:length], "max_tokens": len(own) - length, **GREEDY}
        response = await self._client.call("POST", "/v1/completions", json={**body, "return_token_ids": True})
        if response.status_code != 200:
            raise _refused(response, f"{self.name} does not go on behind given tokens")
        ids: list[int] | None = response.json()["choices"][0].get("token_ids")
        if ids is None:
            raise Withheld(f"{self.name} does not tell which tokens it writes")
        return ids

    async def _tokens(self, model: str, text: str, *, special: bool = True) -> dict[str, Any]:
        counted = await self._client.call(
            "POST", "/tokenize", json={"model": model, "prompt": text, "add_special_tokens": special}
        )
        if counted.status_code != 200:
            raise _refused(counted, f"{self.name} tells no tokens of given texts")
        found: dict[str, Any] = counted.json()
        return found

    async def _told(self, model: str, ask: Ask, text: str) -> list[float]:
        return [token["logprob"] for token in await self._weighed(model, ask, text)]

    async def _weighed(self, model: str, ask: Ask, text: str) -> list[dict[str, Any]]:
        counted = await self._tokens(model, text, special=False)
        body = {"model": model, "prompt_logprobs": 0, "max_tokens": 1}
        if ask.turns:
            body["messages"] = [*ask.messages, {"role": "assistant", "content": ask.begun + text}]
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        else:
            body["prompt"] = ask.text + text
        path = "/v1/chat/completions" if ask.turns else "/v1/completions"
        response = await self._client.call("POST", path, json=body)
        if response.status_code != 200:
            raise _refused(response, f"{self.name} tells no likelihoods of given texts")
        answered = response.json()
        told = (answered if ask.turns else answered["choices"][0]).get("prompt_logprobs")
        if not told:
            raise Withheld(f"{self.name} withholds likelihoods of given texts")
        tokens = told[-counted["count"] :]
        return [next(iter(token.values())) for token in tokens if token]  # nothing foretells the first


class Guarded(Endpoint):
    """A Lethe server whose admin API tells likelihoods under exactly the edits that a generation would get."""

    async def ranks(self, asked: Sequence[tuple[Ask, str]]) -> list[list[int]]:
        raise NotTold("the admin API tells likelihoods, and no ranks")

    async def _told(self, model: str, ask: Ask, text: str) -> list[float]:
        if ask.begun:
            raise NotTold("the admin API scores no answers that were begun by the client")
        if not ask.turns and not ask.text:
            raise NotTold("the admin API scores what follows a prompt only")
        asked = {"messages": ask.messages} if ask.turns else {"prompt": ask.text}
        response = await self._client.call("POST", "/admin/v1/score", json={**asked, "continuation": text})
        if response.status_code != 200:
            raise ClientError(f"POST /admin/v1/score answered {response.status_code}: {response.text[:300]}")
        told: list[float] | None = response.json()["logprobs"]
        if told is None:
            raise Withheld(
                "a matched question is answered without the model, so its answer has no likelihood"
            )
        return told


class Kept:
    """A subject whose answers and likelihoods are kept in the file at `path`, one JSON line each: it is asked once.
    `about` says which subject it is, in any words; what another one told is not taken for its own."""

    def __init__(self, subject: Subject, path: Path, about: str) -> None:
        self.name, self.ends = subject.name, subject.ends
        self._about = about
        self._subject = subject
        self._path = path
        self._known: dict[str, Any] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
        for line in lines:
            try:
                key, value = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed
            self._known[key] = value

    async def answers(self, asked: Sequence[Ask], tokens: int, stop: Sequence[str] = ()) -> list[str]:
        keys = [_key(self._about, "answer", ask, tokens, list(stop)) for ask in asked]
        return await self._all(keys, asked, lambda some: self._subject.answers(some, tokens, stop))

    async def likelihoods(self, asked: Sequence[tuple[Ask, str]]) -> list[list[float]]:
        return await self._all(
            [_key(self._about, "likelihood", ask, text) for ask, text in asked],
            asked,
            self._subject.likelihoods,
        )

    async def posts(self, asked: Sequence[Post]) -> list[dict[str, Any]]:
        return await self._all([_key(self._about, "post", one) for one in asked], asked, self._subject.posts)

    async def ranks(self, asked: Sequence[tuple[Ask, str]]) -> list[list[int]]:
        keys = [_key(self._about, "rank", ask, text) for ask, text in asked]
        return await self._all(keys, asked, self._subject.ranks)

    async def standings(self, texts: Sequence[str]) -> list[list[float]]:
        return await self._all(
            [_key(self._about, "standing", text) for text in texts], texts, self._subject.standings
        )

    async def recitals(self, texts: Sequence[str], tokens: int) -> list[list[list[int]]]:
        return await self._all(
            [_key(self._about, "recital", text, tokens) for text in texts],
            texts,
            lambda some: self._subject.recitals(some, tokens),
        )

    async def _all(
        self, keys: Sequence[str], asked: Sequence[T], tell: Callable[[Sequence[T]], Awaitable[list[Any]]]
    ) -> list[Any]:
        missing = {key: one for key, one in zip(keys, asked, strict=True) if key not in self._known}
        waiting = list(missing.items())
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(waiting), _PART):
            part = waiting[start : start + _PART]
            told = await tell([one for _, one in part])
            with self._path.open("a", encoding="utf-8") as file:
                for (key, _), value in zip(part, told, strict=True):
                    self._known[key] = value
                    file.write(json.dumps([key, value]) + "\n")
        return [self._known[key] for key in keys]


_NO_SUCH_CALL = (400, 404, 405, 422, 501)
_TURNED_AWAY = (*_NO_SUCH_CALL, 403, 503)
_PART = 256  # questions between two writes of the journal


def _key(*about: Any) -> str:
    return hashlib.sha256(
        json.dumps([asdict(a) if isinstance(a, Ask | Post) else a for a in about]).encode()
    ).hexdigest()[:24]


def _refused(response: httpx.Response, why: str) -> Exception:
    """A server that has no such call says so; anything else is a failure."""
    if response.status_code in _NO_SUCH_CALL:
        return NotTold(why)
    return ClientError(f"{response.url} answered {response.status_code}: {response.text[:300]}")


def _request(ask: Ask, more: dict[str, Any]) -> Request:
    if not ask.turns:
        return Request("completion", {"prompt": ask.text, **GREEDY, **more})
    body = {"messages": ask.messages, **GREEDY, **more}
    if ask.begun:
        body["messages"] = [*ask.messages, {"role": "assistant", "content": ask.begun}]
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    return Request("chat", body)


async def together(asked: Sequence[T], tell: Callable[[T], Awaitable[Any]], limit: int) -> list[Any]:
    """What each is told, at most `limit` at once."""
    gate = asyncio.Semaphore(limit)

    async def one(what: T) -> Any:
        async with gate:
            return await tell(what)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(what)) for what in asked]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
