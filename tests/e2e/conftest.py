"""The server as a newcomer starts it, once for all tests here: the demo model, its targets, a real engine."""

import json
import os
from pathlib import Path

import httpx
import openai
import pytest

from evals import serve
from tests.collector import collecting

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "demo" / "models" / "full"
NAME = "lethe-demo"
PROBE = 8  # the server watches every eighth of the demo's probes


@pytest.fixture(scope="session")
def collector():
    """Gets the traces of the server and of its engine."""
    with collecting() as found:
        yield found


@pytest.fixture(scope="session")
def running(tmp_path_factory, collector):
    """A server of its own, or the one at LETHE_E2E_URL, which must be open and hold no targets."""
    if url := os.environ.get("LETHE_E2E_URL"):
        yield serve.Running(url, os.environ["LETHE_ADMIN_KEY"], Path(os.devnull))
        return
    folder = tmp_path_factory.mktemp("lethe")
    options = ("--no-auth",)
    probes = folder / "probes.jsonl"
    lines = (ROOT / "demo" / "probes.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    probes.write_text("".join(lines[::PROBE]), encoding="utf-8")
    watched = {"LETHE_DRIFT_PROBES": str(probes), "LETHE_DRIFT_EVERY_S": "30"}
    args = (*serve.engine_args(str(MODEL)), "--otlp-traces-endpoint", f"{collector.address}/v1/traces")
    env = {
        **serve.ENGINE_ENV,
        **watched,
        "LETHE_LOGGING_FORMAT": "json",
        "LETHE_LOGGING_LEVEL": "debug",
        "LETHE_TRACING_ENDPOINT": collector.address,
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    with serve.guarded(
        str(MODEL), folder / "server.log", folder / "data", name=NAME, options=options, args=args, env=env
    ) as server:
        yield server


@pytest.fixture(scope="session")
def admin(running):
    headers = {"Authorization": f"Bearer {running.admin_key}"}
    with httpx.Client(base_url=f"{running.base_url}/admin/v1", headers=headers, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def http(running):
    with httpx.Client(base_url=running.base_url, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def client(running):
    return openai.OpenAI(base_url=f"{running.base_url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="session")
def targets():
    """The demo's forget targets by id."""
    lines = (ROOT / "demo" / "targets.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


@pytest.fixture(scope="session")
def items():
    lines = (ROOT / "demo" / "items.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def forget(admin, targets):
    """Registers one of the demo's targets, changed as wanted; gone after the test."""
    written = []

    def put(target_id, **changes):
        response = admin.put(f"/targets/{target_id}", json={**targets[target_id], **changes})
        assert response.status_code in (200, 201), response.text
        written.append(target_id)
        return response

    yield put
    for target_id in set(written):
        admin.delete(f"/targets/{target_id}")
