"""Envoy, as `deploy/compose` sets it up, in front of two servers that answer like Lethe."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from guard.errors import GuardUnavailable
from server import errors
from server.routes import TABLE, Access
from tests.envoy import gateway

pytestmark = pytest.mark.system
INTERVAL = 2.0  # of health checks
CHAT = "/v1/chat/completions"


class Upstream:
    """A server whose readiness, failures and streams the test decides; `seen` holds the requests that reached it."""

    def __init__(self):
        self.ready = True
        self.status = 200
        self.breaks = False  # its streams end in the middle
        self.pause = threading.Event()  # its streams wait for it behind the first event
        self.left = threading.Event()  # a client went away
        self.seen = []
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        routes = [
            Route("/readyz", self.readyz),
            Route("/{path:path}", self.answer, methods=["GET", "POST", "PUT"]),
        ]
        config = uvicorn.Config(Starlette(routes=routes), log_level="critical", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.sock]}, daemon=True)

    async def readyz(self, request):
        return JSONResponse({}, 200 if self.ready else 503)

    async def answer(self, request):
        self.seen.append((request.url.path, dict(request.headers), await request.body()))
        if self.status == 503:
            return errors.response(GuardUnavailable("The prompt was not judged in time.", reason="timeout"))
        if request.url.path != CHAT:
            return JSONResponse({"port": self.port})
        return StreamingResponse(self.events(), media_type="text/event-stream")

    async def events(self):
        try:
            yield b"data: first\n\n"
            await asyncio.to_thread(self.pause.wait)
            if self.breaks:
                raise ConnectionResetError
            yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.left.set()
            raise

    @contextmanager
    def serving(self):
        self.thread.start()
        try:
            yield self
        finally:
            self.stop()

    def stop(self):
        self.pause.set()
        self.server.should_exit = True
        self.thread.join(20)


@pytest.fixture
def pair():
    with Upstream().serving() as one, Upstream().serving() as other:
        yield one, other


@pytest.fixture
def envoy(pair, tmp_path):
    with gateway(*(upstream.port for upstream in pair), folder=tmp_path) as running:
        assert running.healthy() == 2
        yield running


@pytest.fixture
def client(envoy):
    with httpx.Client(base_url=envoy.url, timeout=30) as made:
        yield made


def until(holds, seconds):
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.05)


def asked(pair):
    return [len(upstream.seen) for upstream in pair]


def test_a_server_that_turns_unready_is_shed_within_a_health_interval_and_comes_back(pair, envoy, client):
    one, other = pair
    one.ready = False
    until(lambda: envoy.healthy() == 1, INTERVAL + 1)
    assert {client.post("/v1/completions").json()["port"] for _ in range(20)} == {other.port}
    one.ready = True
    until(lambda: envoy.healthy() == 2, INTERVAL + 1)
    assert {client.post("/v1/completions").json()["port"] for _ in range(20)} == {one.port, other.port}


def test_streams_of_a_server_that_turns_unready_go_on(pair, envoy, client):
    with client.stream("POST", CHAT) as answer:
        events = answer.iter_lines()
        assert next(events) == "data: first"
        for upstream in pair:
            upstream.ready = False
        until(lambda: envoy.healthy() == 0, INTERVAL + 1)
        for upstream in pair:
            upstream.pause.set()
        assert "data: [DONE]" in list(events)


def test_where_no_server_is_ready_none_is_asked(pair, envoy, client):
    assert client.get("/readyz").status_code == 200
    for upstream in pair:
        upstream.ready = False
    until(lambda: envoy.healthy() == 0, INTERVAL + 1)
    assert client.get("/readyz").status_code == 503
    answer = client.post(CHAT, json={})
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["error"]["code"] == "guard_unavailable" and asked(pair) == [0, 0]


def test_a_503_of_the_guard_is_tried_again_on_the_other_server(pair, client):
    one, other = pair
    one.status = 503
    body = b"x" * (4 * 2**20 - 1)  # nearly server.max_body_bytes
    answers = [client.post("/v1/completions", content=body) for _ in range(10)]
    assert {answer.status_code for answer in answers} == {200}
    assert one.seen and len(other.seen) == 10
    assert {received for _, _, received in other.seen} == {body}


def test_requests_with_one_key_find_their_stored_responses_at_one_server(pair, client):
    def asked_with(path, **headers):
        answers = [client.post(path, headers=headers).json()["port"] for _ in range(10)]
        return set(answers)

    places = [asked_with("/v1/responses", authorization=f"Bearer {key}") for key in range(20)]
    assert {len(place) for place in places} == {1} and len(set.union(*places)) == 2
    for key, place in enumerate(places):
        assert asked_with("/v1/responses/resp_1", authorization=f"Bearer {key}") == place
    pair[0].status = 503
    assert asked_with("/v1/responses", authorization="Bearer 1") == {pair[1].port}


def test_a_503_of_both_servers_reaches_the_client_after_one_more_try(pair, client):
    for upstream in pair:
        upstream.status = 503
    answer = client.post(CHAT, json={})
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["message"] == "The prompt was not judged in time."
    assert asked(pair) == [1, 1]


def test_a_body_that_is_too_long_to_be_kept_is_sent_once(pair, client):
    for upstream in pair:
        upstream.status = 503
    answer = client.post("/v1/completions", content=b"x" * (5 * 2**20))
    assert answer.json()["error"]["message"] == "The prompt was not judged in time."
    assert sum(asked(pair)) == 1


def test_servers_that_answer_503_stay(pair, envoy, client):
    for upstream in pair:
        upstream.status = 503
    for _ in range(30):
        client.post(CHAT, json={})
    time.sleep(INTERVAL + 1)
    assert envoy.stat("cluster.lethe.outlier_detection.ejections_enforced_total") == 0
    assert envoy.healthy() == 2


def test_a_stream_that_began_is_never_tried_again(pair, client):
    for upstream in pair:
        upstream.breaks = True
        upstream.pause.set()
    with client.stream("POST", CHAT) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            list(answer.iter_raw())
    assert sum(asked(pair)) == 1


def test_events_of_a_stream_pass_one_by_one(pair, client):
    with client.stream("POST", CHAT) as answer:
        events = answer.iter_raw()
        assert next(events) == b"data: first\n\n"  # while the server still holds the second one back
        for upstream in pair:
            upstream.pause.set()
        assert b"".join(events) == b"data: [DONE]\n\n"


def test_an_answer_may_be_silent_for_longer_than_envoys_default_of_15_seconds(pair, client):
    with client.stream("POST", CHAT) as answer:
        events = answer.iter_raw()
        next(events)
        time.sleep(17)
        for upstream in pair:
            upstream.pause.set()
        assert b"".join(events) == b"data: [DONE]\n\n"


def test_a_server_learns_that_the_client_went_away(pair, client):
    with client.stream("POST", CHAT) as answer:
        next(answer.iter_raw())
    until(lambda: any(upstream.left.is_set() for upstream in pair), 5)


def test_a_server_that_is_gone_is_not_noticed_by_clients(pair, envoy, client):
    one, other = pair
    one.stop()
    answers = [client.post("/v1/completions") for _ in range(20)]
    assert {(answer.status_code, answer.json()["port"]) for answer in answers} == {(200, other.port)}
    until(lambda: envoy.healthy() == 1, 3 * INTERVAL)


def test_the_clients_request_id_is_kept_and_one_is_made_where_there_is_none(pair, client):
    name = "9d2b3c4e-5f60-7182-93a4-b5c6d7e8f901"  # in the form in which Envoy would mark its own
    client.post("/v1/completions", headers={"x-request-id": name})
    client.post("/v1/completions")
    ids = [headers["x-request-id"] for upstream in pair for _, headers, _ in upstream.seen]
    assert name in ids and all(ids) and len(set(ids)) == 2


INFERENCE = [route.path for route in TABLE if route.access is Access.INFERENCE]
OTHERS = [route.path for route in TABLE if route.access not in (Access.INFERENCE, Access.PUBLIC)]


def test_clients_reach_the_inference_routes_and_no_others(pair, client):
    for path in INFERENCE:
        if path != CHAT:
            assert client.post(path.replace("{response_id}", "resp_1")).status_code == 200, path
    passed = sum(asked(pair))
    assert passed == len(INFERENCE) - 1
    tricks = ["/v1/../admin/v1/keys", "/v1/%2e%2e/admin/v1/keys", "/v1/..%2fadmin/v1/keys", "//admin/v1/keys"]
    for path in [p for p in OTHERS if not p.startswith("/v1/") or "lora" in p] + tricks:
        answer = client.post(httpx.URL(client.base_url, raw_path=path.encode()))
        assert answer.status_code in (400, 404), path
    assert sum(asked(pair)) == passed


def test_operators_have_a_listener_of_their_own_and_no_write_is_repeated(pair, envoy):
    with httpx.Client(base_url=envoy.admin_url) as operators:
        assert operators.put("/admin/v1/targets/jane", json={}).status_code == 200
        assert len({operators.get("/console").json()["port"] for _ in range(10)}) == 1
        assert operators.post("/v1/completions").status_code == 404
        assert operators.get("/metrics").json()["error"]["code"] == "not_found"
        for upstream in pair:
            upstream.status = 503
            upstream.seen.clear()
        assert operators.put("/admin/v1/targets/jane", json={}).status_code == 503
        assert sum(asked(pair)) == 1
