"""A small async client of the OpenAI-compatible API, as the suites need it.

It sends bounded numbers of requests at once, in the order given, and at most `rate` a second; asks greedily with token
ids in the place of token texts; reads streams and whole answers into the same `Answer`; keeps `x-lethe-decision-id`;
and retries only 503, which the guard promises is safe, 429, after the rest that it asks for (a minute at most), and
connections that idled too long, since any other retry could hide the very difference that is looked for.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx
from tqdm import tqdm

from evals.pace import BUSY, Pace

DECISION_HEADER = "x-lethe-decision-id"
GREEDY: dict[str, Any] = {"temperature": 0}
_CLOSED = (httpx.ReadError, httpx.RemoteProtocolError)
_PAUSE = 0.2  # seconds before the first retry
WITH_LOGPROBS: dict[str, Any] = {"return_tokens_as_token_ids": True}


class ClientError(RuntimeError):
    """The endpoint cannot be used; one plain sentence."""


@dataclass(frozen=True, slots=True)
class Request:
    """One generation: `kind` chat or completion, and the body without `model` and `stream`."""

    kind: str
    body: dict[str, Any]
    stream: bool = False

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.kind == "chat" else "/v1/completions"


@dataclass(slots=True)
class Answer:
    """What came back. `tops[i]` are the best log-probabilities at token i, best first; `completion_tokens` are as
    the server counted them, for whole answers; `first_s` are the seconds to the first text of a stream."""

    status: int = 200
    text: str = ""
    tokens: list[str] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    tops: list[tuple[float, ...]] = field(default_factory=list)
    finish_reason: str | None = None
    completion_tokens: int = 0
    first_s: float = 0.0
    decision_id: str | None = None
    error: str | None = None

    @property
    def ok(self) -> bool:
        return self.status == 200 and self.error is None


def chat(
    messages: Sequence[dict[str, str]], *, max_tokens: int, logprobs: bool = False, stream: bool = False
) -> Request:
    """A greedy chat request, with the two best log-probabilities per token if asked."""
    body = {"messages": list(messages), "max_tokens": max_tokens, **GREEDY}
    if logprobs:
        body |= {"logprobs": True, "top_logprobs": 2, **WITH_LOGPROBS}
    return Request("chat", body, stream)


def completion(prompt: str, *, max_tokens: int, logprobs: bool = False, stream: bool = False) -> Request:
    """A greedy completion request, with the two best log-probabilities per token if asked."""
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": max_tokens, **GREEDY}
    if logprobs:
        body |= {"logprobs": 2, **WITH_LOGPROBS}
    return Request("completion", body, stream)


def _take(answer: Answer, choice: dict[str, Any]) -> None:
    """Adds one choice, or one chunk of it, to the answer."""
    part = choice.get("message") or choice.get("delta") or {}
    answer.text += (part.get("content") or "") + (choice.get("text") or "")
    answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    logprobs = choice.get("logprobs") or {}
    for token in logprobs.get("content") or ():
        answer.tokens.append(token["token"])
        answer.logprobs.append(token["logprob"])
        answer.tops.append(tuple(sorted((t["logprob"] for t in token["top_logprobs"]), reverse=True)))
    for i, token in enumerate(logprobs.get("tokens") or ()):
        answer.tokens.append(token)
        answer.logprobs.append(logprobs["token_logprobs"][i])
        answer.tops.append(tuple(sorted((logprobs["top_logprobs"][i] or {}).values(), reverse=True)))


async def events(response: httpx.Response) -> AsyncIterator[str]:
    """The data of each server-sent event, `[DONE]` included."""
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            yield line[5:].strip()


class Client:
    """One endpoint. `base_url` is with or without the trailing `/v1`; `rate` is in requests per second, all kinds of
    them counted."""

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        *,
        model: str | None = None,
        timeout: float = 300.0,
        retries: int = 4,
        rate: float | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self.root = base_url.rstrip("/").removesuffix("/v1")
        self.retried = 0
        self.pace = Pace(rate)
        self._model = model
        self._retries = retries
        self._http = httpx.AsyncClient(
            base_url=self.root,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=10.0),
            # Shorter than servers keep idle connections: a connection closed under a request is an error here.
            limits=httpx.Limits(max_connections=None, keepalive_expiry=1.0),
            event_hooks={"request": [self._turn], "response": [self._heed]},
            transport=transport,
        )

    async def _turn(self, _: httpx.Request) -> None:
        await self.pace.turn()

    async def _heed(self, response: httpx.Response) -> None:
        self.pace.heed(response)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def model(self) -> str:
        """The model named at the start, else the first one that the endpoint serves."""
        if self._model is None:
            response = await self.call("GET", "/v1/models")
            if response.status_code != 200:
                raise ClientError(f"{self.root}/v1/models answered {response.status_code}; is a key needed?")
            self._model = response.json()["data"][0]["id"]
        return self._model

    async def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One plain call, tried again once where the server closed the connection under it, and after a rest where it
        is too busy (429) or says that it may be tried again (503)."""
        for attempt in range(self._retries + 1):
            response = await self._call(method, path, **options)
            if response.status_code not in (BUSY, 503) or attempt == self._retries:
                break
            self.retried += 1
            await asyncio.sleep(_PAUSE * 2**attempt)
        return response

    async def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            try:
                return await self._http.request(method, path, **options)
            except _CLOSED:
                return await self._http.request(method, path, **options)
        except httpx.ConnectError as error:
            raise ClientError(
                f"{self.root} does not answer; start the server or correct the address"
            ) from error

    async def version(self) -> str | None:
        """The engine's own version, where the endpoint tells it."""
        response = await self.call("GET", "/version")
        return response.json().get("version") if response.status_code == 200 else None

    async def send(self, request: Request) -> Answer:
        """One generation; 503 and 429 are tried again after a growing pause, and a connection that the server closed
        under the request once; every other failure is the answer."""
        body = {"model": await self.model(), **request.body, "stream": request.stream}
        for attempt in range(self._retries + 1):
            try:
                answer = await (self._stream if request.stream else self._whole)(request.path, body)
            except httpx.HTTPError as error:
                answer = Answer(status=0, error=f"{type(error).__name__}: {error}")
                if attempt or not isinstance(error, _CLOSED):
                    break
            else:
                if answer.status not in (BUSY, 503):
                    break
            if attempt == self._retries:
                break
            self.retried += 1
            await asyncio.sleep(_PAUSE * 2**attempt)
        return answer

    async def _whole(self, path: str, body: dict[str, Any]) -> Answer:
        response = await self._http.post(path, json=body)
        answer = Answer(status=response.status_code, decision_id=response.headers.get(DECISION_HEADER))
        if response.status_code != 200:
            answer.error = response.text[:500]
        else:
            _take(answer, response.json()["choices"][0])
            answer.completion_tokens = (response.json().get("usage") or {}).get("completion_tokens", 0)
        return answer

    async def _stream(self, path: str, body: dict[str, Any]) -> Answer:
        started = time.perf_counter()
        async with self._http.stream("POST", path, json=body) as response:
            answer = Answer(status=response.status_code, decision_id=response.headers.get(DECISION_HEADER))
            if response.status_code != 200:
                answer.error = (await response.aread()).decode(errors="replace")[:500]
                return answer
            answer.error = "the stream ended without [DONE]"
            async with aclosing(events(response)) as datas:
                async for data in datas:
                    if data == "[DONE]":
                        answer.error = (
                            None if answer.error == "the stream ended without [DONE]" else answer.error
                        )
                        continue
                    chunk = json.loads(data)
                    if "error" in chunk:
                        answer.error = str(chunk["error"])[:500]
                    for choice in chunk.get("choices") or ():
                        _take(answer, choice)
                    if answer.text and not answer.first_s:
                        answer.first_s = time.perf_counter() - started
            return answer

    async def send_all(
        self,
        requests: Sequence[Request],
        *,
        concurrency: int = 8,
        label: str = "",
        on_answer: Callable[[int, Answer], None] | None = None,
    ) -> list[Answer]:
        """All requests, started in their order, at most `concurrency` at once; answers in the same order."""
        answers: list[Answer | None] = [None] * len(requests)
        queue = iter(enumerate(requests))
        await self.model()
        with tqdm(total=len(requests), desc=label or self.root, unit="req", disable=None) as bar:

            async def worker() -> None:
                for i, request in queue:
                    answer = answers[i] = await self.send(request)
                    bar.update()
                    if on_answer:
                        on_answer(i, answer)

            await asyncio.gather(*(worker() for _ in range(min(concurrency, len(requests)))))
        return [answer for answer in answers if answer is not None]


def failed(answers: Sequence[Answer]) -> list[str]:
    """What the answers that failed said, for one plain sentence about them."""
    return [f"{answer.status}: {answer.error}" for answer in answers if not answer.ok]
