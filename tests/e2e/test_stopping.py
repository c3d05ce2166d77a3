"""A server that is told to stop, as a rolling upgrade does it."""

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import httpx
import psutil
import pytest

from evals import serve
from tests.e2e.conftest import MODEL

pytestmark = pytest.mark.engine
STREAMS = 3
TOKENS = 1500  # seconds, so that the answers still run when the signal comes


def streamed(url, headers, begun):
    """The events of a long answer."""
    body = {"model": "demo", "prompt": "Once", "stream": True, "max_tokens": TOKENS, "min_tokens": TOKENS}
    post = {"headers": headers, "json": {**body, "ignore_eos": True}, "timeout": 120}
    events = []
    with httpx.stream("POST", f"{url}/v1/completions", **post) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
                if len(events) == 1:
                    begun.wait(120)
    return events


def test_running_answers_get_their_end_and_new_requests_are_sent_elsewhere(tmp_path):
    args = (*serve.engine_args(str(MODEL)), "--shutdown-timeout", "100")
    begun = Barrier(STREAMS + 1)
    with (
        serve.guarded(str(MODEL), tmp_path / "log", tmp_path / "data", args=args) as server,
        ThreadPoolExecutor(STREAMS) as pool,
        httpx.Client(base_url=server.base_url, timeout=60) as http,
    ):
        port = httpx.URL(server.base_url).port
        (pid,) = {
            c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == "LISTEN"
        }
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        headers = {"Authorization": f"Bearer {server.admin_key}"}
        answers = [pool.submit(streamed, server.base_url, headers, begun) for _ in range(STREAMS)]
        assert http.get("/readyz").status_code == 200
        begun.wait(120)
        process.terminate()
        refused = httpx.Response(200)
        while refused.status_code == 200:  # until the signal has arrived
            body = {"model": "demo", "prompt": "Hello", "max_tokens": 1}
            refused = http.post("/v1/completions", headers=headers, json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "guard_unavailable"
        assert http.get("/readyz").json()["reason"] == refused.json()["error"]["message"]
        for answer in answers:
            *_, last, done = answer.result()
            assert done == "[DONE]" and json.loads(last)["choices"][0]["finish_reason"] in ("length", "stop")
        assert process.wait(60) == 0
        assert not psutil.wait_procs(family, timeout=20)[1]
