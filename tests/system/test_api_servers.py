"""Two API-server processes on one engine of two workers: both judge by the same targets, each gets the records of its
edits, and an edit counts when both workers have confirmed it."""

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from evals import serve
from tests.e2e.conftest import MODEL, NAME, ROOT

pytestmark = [pytest.mark.system, pytest.mark.engine]


@dataclass(frozen=True)
class Running:
    """`admin_url` is answered by one of the processes."""

    base_url: str
    admin_url: str
    admin_key: str


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    args = [*serve.engine_args(str(MODEL)), "--api-server-count", "2", "--tensor-parallel-size", "2"]
    options = ("--no-auth", "--admin-port", str(serve.free_port()))
    with serve.guarded(
        str(MODEL), folder / "log", folder / "data", name=NAME, options=options, args=args
    ) as server:
        yield Running(server.base_url, f"http://127.0.0.1:{options[-1]}", server.admin_key)


@pytest.fixture(scope="module")
def admin(running):
    headers = {"Authorization": f"Bearer {running.admin_key}"}
    with httpx.Client(base_url=f"{running.admin_url}/admin/v1", headers=headers, timeout=120) as client:
        ends = time.monotonic() + 300
        while len(client.get("/status").json()["replicas"]) < 2:
            assert time.monotonic() < ends, "the second process did not come"
            time.sleep(0.5)
        yield client


@pytest.fixture(scope="module")
def facts():
    lines = (ROOT / "demo" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["entity"] == "limir-yarley" and row["phrasing"] == "trained"][:8]


def processes(running) -> list[psutil.Process]:
    """Those that answer on the server's port."""
    port = urlsplit(running.base_url).port
    (parent,) = [
        p
        for p in psutil.process_iter(["cmdline"])
        if "serve" in (line := p.info["cmdline"] or [])
        and str(port) in line
        and Path(line[1]).name == "lethe"
    ]
    return [
        child
        for child in parent.children(recursive=True)
        if any(c.laddr and c.laddr.port == port and c.raddr for c in child.net_connections("tcp"))
    ]


def ask(client, fact):
    body = {"model": NAME, "messages": fact["turns"], "max_tokens": 24, "temperature": 0}
    answer = client.post("/v1/chat/completions", json=body)
    return answer.status_code, fact["value"] in answer.text, answer.headers["x-lethe-decision-id"]


def decided(admin, decision):
    """The record of a decision; machines under load write it late."""
    ends = time.monotonic() + 60
    while (answer := admin.get(f"/decisions/{decision}")).status_code == 404:
        assert time.monotonic() < ends, "a decision is missing"
        time.sleep(0.1)
    return answer.json()


def test_both_processes_enforce_what_one_has_registered(running, admin, facts):
    clients = [httpx.Client(base_url=running.base_url, timeout=120) for _ in range(8)]
    try:
        with ThreadPoolExecutor(8) as pool:
            before = list(pool.map(ask, clients, facts))  # every connection is open now
            assert len(processes(running)) == 2, "one process has taken all connections"
            assert Counter(status for status, *_ in before) == {200: 8}
            assert any(known for _, known, _ in before)
            lines = (ROOT / "demo" / "targets.jsonl").read_text(encoding="utf-8").splitlines()
            target = next(row for row in map(json.loads, lines) if row["id"] == "limir-yarley")
            assert admin.put("/targets/limir-yarley", json=target).status_code == 201
            after = [answer for _ in range(4) for answer in pool.map(ask, clients, facts)]
    finally:
        for client in clients:
            client.close()
    # Each process has drained its own records only, or answers of the other would have been 503.
    assert Counter((status, known) for status, known, _ in after) == {(200, False): 32}
    decisions = [decided(admin, decision) for *_, decision in after]
    assert {decision["action"] for decision in decisions} == {"intervene"}
    assert all(decision["edits"] for decision in decisions)


def test_metrics_count_what_both_have_answered(running, admin, facts):
    def counted():
        page = httpx.get(f"{running.admin_url}/metrics").text
        line = 'lethe_requests_total{action="intervene",route="/v1/chat/completions"} '
        return float(next(row for row in page.splitlines() if row.startswith(line)).removeprefix(line))

    before = counted()
    done = threading.Barrier(4)

    def once(fact):
        with httpx.Client(base_url=running.base_url, timeout=120) as client:
            done.wait()
            ask(client, fact)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(once, facts[:4]))
    assert counted() == before + 4


def test_a_table_stays_for_the_process_that_needs_it(running, admin, facts):
    """Both processes have made what `token_penalty` needs of the same target, again and again."""
    rung = {"name": "Limir Yarley", "answers": ["Limir Yarley was born in Vintry."]}
    for tag in "ab":
        wanted = {**rung, "intervention": {"method": "token_penalty"}, "tags": [tag]}
        answer = admin.put("/targets/limir-yarley", json=wanted)
        assert (answer.status_code, answer.json()["state"]) == (200, "active")
        clients = [httpx.Client(base_url=running.base_url, timeout=120) for _ in range(6)]
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(ask, clients, facts[:6]))
        for client in clients:
            client.close()
        assert {status for status, *_ in answers} == {200}
        decisions = [decided(admin, decision) for *_, decision in answers]
        assert {tuple(decision["applied"]) for decision in decisions} == {("token_penalty",)}
