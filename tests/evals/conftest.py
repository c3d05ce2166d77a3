"""A tiny OpenAI-compatible server in process, and the items that the suites are tested on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from evals.client import Client
from evals.items import Item

Reply = Callable[[str], str]


def _content(body: dict, words: list[str]) -> list[dict]:
    """Log-probability entries; the two best tokens are 1 nat apart."""
    if not body.get("logprobs"):
        return []
    return [
        {"token": w, "logprob": -0.1, "top_logprobs": [{"logprob": -0.1}, {"logprob": -1.1}]} for w in words
    ]


def fake_app(reply: Reply, unavailable: int = 0) -> Starlette:
    """Answers chat with `reply(last user text)`; the first `unavailable` generations get 503."""
    left = [unavailable]

    async def chat(request: Request) -> Response:
        body = await request.json()
        headers = {"x-lethe-decision-id": "d-1"}
        if left[0]:
            left[0] -= 1
            return JSONResponse({"error": {"message": "wait"}}, 503)
        words = reply(body["messages"][-1]["content"]).split(" ")
        content = _content(body, words)
        if not body["stream"]:
            message = {"role": "assistant", "content": " ".join(words)}
            choice = {"message": message, "finish_reason": "stop", "logprobs": {"content": content}}
            written = body["max_tokens"] if body.get("ignore_eos") and words != ["refused"] else len(words)
            usage = {"completion_tokens": written}
            return JSONResponse({"choices": [choice], "usage": usage}, headers=headers)

        def chunks() -> Iterator[str]:
            for i, word in enumerate(words):
                delta = {"content": word if i == 0 else f" {word}"}
                finish = "stop" if i == len(words) - 1 else None
                choice = {
                    "delta": delta,
                    "finish_reason": finish,
                    "logprobs": {"content": content[i : i + 1]},
                }
                yield f"data: {json.dumps({'choices': [choice]})}\n\n"
            if words != ["cut"]:
                yield "data: [DONE]\n\n"

        return StreamingResponse(chunks(), media_type="text/event-stream", headers=headers)

    async def models(_: Request) -> Response:
        return JSONResponse({"data": [{"id": "fake"}]})

    async def version(_: Request) -> Response:
        return JSONResponse({"version": "0"})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/version", version),
        ]
    )


def fake_client(reply: Reply, *, unavailable: int = 0, **options: int) -> Client:
    transport = httpx.ASGITransport(fake_app(reply, unavailable))
    return Client("http://fake/v1", transport=transport, **options)


def item(number: int, split: str, phrasing: str = "trained", entity: str = "ada-byl") -> Item:
    who = entity.replace("-", " ").title()
    return Item(
        id=f"{split}.{number}",
        entity=entity,
        split=split,
        phrasing=phrasing,
        turns=(("user", f"Where was {who} born? ({split} {number})"),),
        answer=f"{who} was born in Vintry.",
        value="Vintry",
    )


@pytest.fixture
def items() -> list[Item]:
    forget = [
        item(n, "forget", phrasing)
        for phrasing in ("trained", "heldout")
        for n in range(100 * (phrasing == "heldout"), 8 + 100 * (phrasing == "heldout"))
    ]
    return [*forget, *(item(n, "retain", entity="bo-crane") for n in range(6))]
