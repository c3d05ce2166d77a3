"""Two servers on one PostgreSQL behind a real Envoy: what one registers, both enforce; what fails, nobody notices; and
at no moment is anything answered that one of them would have withheld."""

import json
import os
import secrets
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from evals import serve
from tests.e2e.conftest import MODEL, NAME, ROOT
from tests.envoy import gateway
from tests.postgres import server as postgres_server

pytestmark = [pytest.mark.system, pytest.mark.engine]

PUTS = 20
AWAY_SECONDS = 30
SHED_SECONDS = 30
MASTER_KEY = secrets.token_hex(32)


@dataclass
class Installation:
    """`url` is the gateway's listener for clients; keys hold at every server."""

    servers: list[serve.Running]
    database: object
    url: str
    admin_key: str
    inference_key: str

    def admin(self, server):
        headers = {"Authorization": f"Bearer {self.admin_key}"}
        return httpx.Client(base_url=f"{server.base_url}/admin/v1", headers=headers, timeout=120)


def _start(stack, folder, url):
    env = {**serve.ENGINE_ENV, "LETHE_STORE_URL": url, "LETHE_MASTER_KEY": MASTER_KEY}
    return stack.enter_context(
        serve.guarded(str(MODEL), folder / "server.log", folder / "data", name=NAME, env=env)
    )


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    with ExitStack() as stack:
        database = stack.enter_context(postgres_server(fsync=True))
        database.own()
        url = database.fresh()
        stacks = [stack.enter_context(ExitStack()) for _ in range(2)]
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(_start, own, folder / str(i), url) for i, own in enumerate(stacks)]
            servers = [job.result() for job in jobs]
        headers = {"Authorization": f"Bearer {servers[0].admin_key}"}
        with httpx.Client(base_url=f"{servers[0].base_url}/admin/v1", headers=headers, timeout=60) as first:
            keys = [first.post("/keys", json={"role": role}).json()["key"] for role in ("admin", "inference")]
        ports = [urlsplit(server.base_url).port for server in servers]
        running = stack.enter_context(gateway(*ports, folder=folder))
        yield Installation(servers, database, running.url, *keys)


@pytest.fixture(scope="module")
def target():
    lines = (ROOT / "demo" / "targets.jsonl").read_text(encoding="utf-8").splitlines()
    return next(row for row in map(json.loads, lines) if row["id"] == "limir-yarley")


@pytest.fixture(scope="module")
def fact():
    lines = (ROOT / "demo" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, lines)
    return next(row for row in rows if row["entity"] == "limir-yarley" and row["phrasing"] == "trained")


@dataclass
class Load:
    """Clients that ask about the target and about something else until it is stopped. What it notes of each answer:
    when it was asked, its status, and whether it told what shall be forgotten."""

    installation: Installation
    fact: dict
    clients: int = 4
    answers: list[tuple[float, int, bool]] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __enter__(self):
        self._threads = [
            threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(self.clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        for thread in self._threads:
            thread.join(120)

    def _ask(self, number):
        turns = self.fact["turns"] if number % 2 else [{"role": "user", "content": "What is two and two?"}]
        body = {"model": NAME, "messages": turns, "max_tokens": 16, "temperature": 0}
        headers = {"Authorization": f"Bearer {self.installation.inference_key}"}
        with httpx.Client(base_url=self.installation.url, headers=headers, timeout=60) as http:
            while not self._stopping.is_set():
                asked = time.monotonic()
                try:
                    answer = http.post("/v1/chat/completions", json=body)
                    status, text = answer.status_code, answer.text
                except httpx.TransportError:
                    status, text = 0, ""
                self.answers.append((asked, status, self.fact["value"] in text))
                time.sleep(0.05)

    def told(self):
        return [answer for answer in self.answers if answer[2]]

    def failed(self, since=0.0):
        return [answer for answer in self.answers if answer[1] != 200 and answer[0] >= since]


def test_what_one_registers_both_enforce_when_it_answers(installation, target, fact):
    one, other = installation.servers
    check = {"messages": fact["turns"]}
    with installation.admin(one) as here, installation.admin(other) as there:
        assert there.post("/check", json=check).json()["decision"]["action"] == "allow"
        waited = []
        for number in range(PUTS):
            began = time.monotonic()
            answer = here.put("/targets/limir-yarley", json={**target, "tags": [str(number)]})
            waited.append(time.monotonic() - began)
            assert answer.status_code in (200, 201), answer.text  # not 202: the other has it
            assert there.get("/targets/limir-yarley").json()["tags"] == [str(number)]
        print(
            f"{PUTS} PUTs, in force at both: {sorted(waited)[PUTS // 2]:.2f} s at the median, {max(waited):.2f} at most"
        )
        for client in (here, there):
            assert client.post("/check", json=check).json()["decision"]["action"] == "intervene"
        status = there.get("/status").json()
        assert len(status["replicas"]) == 2
        assert len({replica["snapshot"] for replica in status["replicas"]}) == 1
        assert sum(replica["here"] for replica in status["replicas"]) == 1


def test_keys_hold_and_end_at_both(installation):
    one, other = installation.servers
    with installation.admin(one) as here:
        made = here.post("/keys", json={"role": "inference"}).json()
        headers = {"Authorization": f"Bearer {made['key']}"}
        assert httpx.get(f"{other.base_url}/v1/models", headers=headers).status_code == 200
        assert here.delete(f"/keys/{made['id']}").status_code == 200
        assert httpx.get(f"{other.base_url}/v1/models", headers=headers).status_code == 401


def test_while_the_database_is_away_requests_are_answered_and_no_acknowledged_write_is_lost(
    installation, target, fact
):
    acknowledged, refused, stop = [], [], threading.Event()

    def write():
        number = 0
        with installation.admin(installation.servers[0]) as admin:
            while not stop.is_set():
                number += 1
                name = f"Quillon Brathe{number}"
                answer = admin.put(f"/targets/new-{number}", json={"name": name, "mode": "shadow"})
                (acknowledged if answer.is_success else refused).append((number, answer.status_code))
                time.sleep(0.5)

    with Load(installation, fact) as load:
        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        _until(lambda: len(acknowledged) >= 2 and len(load.answers) >= 8)
        installation.database.stop()
        time.sleep(AWAY_SECONDS)
        installation.database.start()
        before = len(acknowledged)
        _until(lambda: len(acknowledged) >= before + 2)
        stop.set()
        writer.join(120)
    assert refused and {status for _, status in refused} == {503}
    assert len(load.answers) > 20
    assert load.failed() == [] and load.told() == []
    for server in installation.servers:
        with installation.admin(server) as admin:
            _until(lambda: len(admin.get("/status").json()["replicas"] or ()) == 2)
            for number, _ in acknowledged:
                assert admin.get(f"/targets/new-{number}").status_code == 200


def test_a_server_that_is_killed_is_shed_and_nothing_unguarded_is_answered(installation, target, fact):
    one, other = installation.servers
    with Load(installation, fact) as load:
        _until(lambda: len(load.answers) >= 8)
        killed = time.monotonic()
        _kill(other)
        _until(lambda: time.monotonic() > killed + SHED_SECONDS)
        since = len(load.answers)
        _until(lambda: len(load.answers) >= since + 8)
    assert load.told() == []
    assert load.failed(since=killed + SHED_SECONDS) == []
    assert [a for a in load.failed() if a[0] < killed - 30] == []
    with installation.admin(one) as admin:
        answer = admin.put("/targets/limir-yarley", json={**target, "tags": ["again"]})
        assert answer.status_code == 202
        (laggard,) = answer.json()["laggards"]
        assert laggard["name"].endswith(f":{urlsplit(other.base_url).port}")
        assert (
            admin.post("/check", json={"messages": fact["turns"]}).json()["decision"]["action"] == "intervene"
        )


def _until(true, seconds=180):
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come to pass"
        time.sleep(0.1)


def _kill(server):
    """As if its machine had lost power: the whole group, at once."""
    port = str(urlsplit(server.base_url).port)
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "serve" in line and port in line and Path(line[1]).name == "lethe":
            os.killpg(process.pid, signal.SIGKILL)
            return
    pytest.fail("the server is not there")
