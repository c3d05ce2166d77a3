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
TOKENS = 300


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
    ):
        port = httpx.URL(server.base_url).port
        (pid,) = {
            c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == "LISTEN"
        }
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        headers = {"Authorization": f"Bearer {server.admin_key}"}
        answers = [pool.submit(streamed, server.base_url, headers, begun) for _ in range(STREAMS)]
        begun.wait(120)
        process.terminate()
        refused = httpx.Response(200)
        while refused.status_code == 200:  # until the signal has arrived
            body = {"model": "demo", "prompt": "Hello", "max_tokens": 1}
            refused = httpx.post(f"{server.base_url}/v1/completions", headers=headers, json=body, timeout=60)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["code"] == "guard_unavailable"
        assert httpx.get(f"{server.base_url}/readyz").json()["reason"] == refused.json()["error"]["message"]
        for answer in answers:
            *_, last, done = answer.result()
            assert done == "[DONE]" and json.loads(last)["choices"][0]["finish_reason"] in ("length", "stop")
        assert process.wait(60) == 0
        assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
