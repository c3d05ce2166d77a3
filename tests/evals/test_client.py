"""The client against a fake server in process."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from evals.cli import main
from evals.client import Answer, Client, ClientError, chat
from evals.pace import LONGEST, Pace, asked_rest
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


@pytest.mark.parametrize(("status", "calls_made"), [(503, 3), (500, 1)])
def test_a_call_that_may_be_tried_again_is(monkeypatch: pytest.MonkeyPatch, status: int, calls_made: int):
    calls = []
    monkeypatch.setattr("evals.client._PAUSE", 0)

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return httpx.Response(status if len(calls) <= 2 else 200, json={})

    async def work() -> tuple[int, int]:
        async with Client("http://fake", transport=httpx.MockTransport(answer)) as client:
            return (await client.call("POST", "/admin/v1/score", json={})).status_code, client.retried

    assert asyncio.run(work()) == ((200, 2) if status == 503 else (500, 0))
    assert len(calls) == calls_made


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


# --- how fast


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self):
        self.now = 1000.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        wake = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, wake)

    def pace(self, rate: float | None = None) -> Pace:
        return Pace(rate, clock=lambda: self.now, sleep=self.sleep)


def timed(clock: Clock, client: Client, n: int, seen: list[float]) -> list[Answer]:
    """The answers to `n` requests; when each was sent goes to `seen`."""
    client.pace = clock.pace(rate=4)

    async def note(_: httpx.Request) -> None:
        seen.append(clock.now - 1000.0)

    client._http.event_hooks["request"].append(note)

    async def work():
        async with client:
            return await client.send_all([chat(ASK, max_tokens=2)] * n, concurrency=1)

    return asyncio.run(work())


def test_requests_keep_the_rate():
    seen: list[float] = []
    answers = timed(Clock(), fake_client(str.upper), 6, seen)
    assert len(answers) == 6 and all(a.ok for a in answers)
    assert seen == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5])  # the first asks for the model's name


def test_the_rate_of_the_command_line_reaches_the_pace():
    client = fake_client(str.upper, rate=5)
    assert client.pace._gap == pytest.approx(0.2) and fake_client(str.upper).pace._gap == 0.0


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("evals.cli", ["targets", "--base-url", "http://a"]),
        ("evals.opening", ["tofu", "--base-url", "http://a", "--data"]),
        ("evals.opening", ["attacks", "--base-url", "http://a"]),
    ],
)
def test_a_rate_on_the_command_line_is_the_clients(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, words: list[str]
):
    def client(*_: object, **options: object) -> None:
        raise ClientError(f"the rate is {options['rate']}")

    for name in ("forget10", "retain", "real_authors", "world_facts"):
        row = {"question": "q", "answer": "a", "perturbed_answer": ["b"]}
        (tmp_path / f"{name}_perturbed.json").write_text(json.dumps(row))
    monkeypatch.setattr(f"{module}.Client", client)
    given = [*words, str(tmp_path)] if words[-1] == "--data" else words
    result = CliRunner().invoke(main, [*given, "--rate", "2.5", "--out", str(tmp_path / "r.json")])
    assert result.exit_code == 1 and "the rate is 2.5" in result.output


def test_without_a_rate_nothing_waits():
    clock = Clock()
    pace = clock.pace()

    async def work():
        for _ in range(50):
            await pace.turn()

    asyncio.run(work())
    assert clock.slept == []


def busy(times: int, headers: dict[str, str], calls: list[str]) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request.url.path)
        if len(calls) <= times:
            return httpx.Response(429, headers=headers, json={"error": {"message": "slower"}})
        return httpx.Response(200, json={"choices": [{"text": "x"}], "data": [{"id": "m"}]})

    return httpx.MockTransport(answer)


@pytest.mark.parametrize(("asked", "rest"), [("7", 7.0), ("86400", LONGEST), ("0", 0.0), ("soon", 0.0)])
def test_a_429_is_tried_again_after_the_rest_that_it_asks_for(
    monkeypatch: pytest.MonkeyPatch, asked: str, rest: float
):
    clock, calls = Clock(), []
    monkeypatch.setattr("evals.client._PAUSE", 0)

    async def work():
        transport = busy(2, {"retry-after": asked}, calls)
        async with Client("http://fake", model="m", transport=transport) as client:
            client.pace = clock.pace()
            return await client.send(chat(ASK, max_tokens=2)), await client.call("GET", "/x"), client.retried

    answer, response, retried = asyncio.run(work())
    assert answer.ok and response.status_code == 200 and retried == 2 and len(calls) == 4
    assert clock.slept == ([pytest.approx(rest)] * 2 if rest else [])


def test_a_server_that_stays_busy_is_the_answer(monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []
    monkeypatch.setattr("evals.client._PAUSE", 0)

    async def work():
        async with Client("http://fake", model="m", retries=2, transport=busy(99, {}, calls)) as client:
            return await client.send(chat(ASK, max_tokens=2)), await client.call("GET", "/x")

    answer, response = asyncio.run(work())
    assert answer.status == response.status_code == 429 and len(calls) == 6


def test_a_rest_holds_those_who_already_wait_and_keeps_the_rate_behind_it():
    clock = Clock()
    pace, seen = clock.pace(rate=10), []

    async def one(i: int) -> None:
        await pace.turn()
        seen.append(round(clock.now - 1000.0, 2))
        await asyncio.sleep(0)  # the others have their turns by now
        if i == 0:
            pace.heed(httpx.Response(429, headers={"retry-after": "5"}))

    async def work():
        await asyncio.gather(*(one(i) for i in range(4)))

    asyncio.run(work())
    assert seen[0] == 0.0 and min(seen[1:]) >= 5.0
    assert all(b - a >= 0.09 for a, b in pairwise(seen[1:]))


def test_only_429_makes_all_rest():
    clock = Clock()
    pace = clock.pace()
    pace.heed(httpx.Response(503, headers={"retry-after": "5"}))
    asyncio.run(pace.turn())
    assert clock.slept == []


def test_both_forms_of_retry_after_are_read():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert asked_rest("3", now) == 3.0 and asked_rest("-3", now) == 0.0
    assert asked_rest("Thu, 01 Jan 2026 00:00:30 GMT", now) == 30.0
    assert asked_rest("Wed, 31 Dec 2025 00:00:00 GMT", now) == 0.0
    assert asked_rest("Thu, 01 Jan 2026 00:00:30 -0000", now) == 30.0
    assert asked_rest(None, now) is asked_rest("later", now) is None
