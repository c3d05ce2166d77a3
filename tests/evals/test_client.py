"""The client against a fake server in process."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from evals.client import Client, ClientError, chat
from tests.evals.conftest import fake_client

ASK = [{"role": "user", "content": "hello there"}]


@pytest.mark.parametrize("stream", [False, True])
def test_whole_and_streamed_answers_read_alike(stream: bool):
    async def work():
        async with fake_client(str.upper) as client:
            return await client.send(chat(ASK, max_tokens=4, logprobs=True, stream=stream))

    answer = asyncio.run(work())
    assert answer.ok
    assert (answer.text, answer.tokens, answer.finish_reason) == ("HELLO THERE", ["HELLO", "THERE"], "stop")
    assert answer.tops == [(-0.1, -1.1)] * 2
    assert answer.decision_id == "d-1"


def test_only_503_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    async def no_wait(_: float) -> None:
        return

    async def work(unavailable: int, retries: int):
        async with fake_client(str.upper, unavailable=unavailable, retries=retries) as client:
            answer = await client.send(chat(ASK, max_tokens=4))
            return answer.status, client.retried

    monkeypatch.setattr("evals.client.asyncio.sleep", no_wait)
    assert asyncio.run(work(2, 4)) == (200, 2)
    assert asyncio.run(work(3, 1)) == (503, 1)


def test_a_stream_without_its_end_is_an_error():
    async def work():
        async with fake_client(lambda _: "cut") as client:
            return await client.send(chat(ASK, max_tokens=4, stream=True))

    answer = asyncio.run(work())
    assert not answer.ok
    assert "DONE" in answer.error


def test_answers_keep_the_order_of_the_requests():
    async def work():
        async with fake_client(str.upper) as client:
            asked = [chat([{"role": "user", "content": f"w{i}"}], max_tokens=2) for i in range(20)]
            return [a.text for a in await client.send_all(asked, concurrency=5)]

    assert asyncio.run(work()) == [f"W{i}" for i in range(20)]


def test_a_server_that_is_not_there_is_one_sentence():
    async def work():
        async with Client("http://127.0.0.1:9") as client:
            await client.model()

    with pytest.raises(ClientError, match="does not answer"):
        asyncio.run(work())


@pytest.mark.parametrize("closed", [1, 2])
def test_a_call_whose_connection_was_closed_is_made_once_more(closed: int):
    calls = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        if len(calls) <= closed:
            raise httpx.ReadError("closed")
        return httpx.Response(200, json={})

    async def work() -> int:
        async with Client("http://fake", transport=httpx.MockTransport(answer)) as client:
            return (await client.call("POST", "/tokenize", json={})).status_code

    if closed == 1:
        assert asyncio.run(work()) == 200
    else:
        with pytest.raises(httpx.ReadError):
            asyncio.run(work())
    assert len(calls) == 2
