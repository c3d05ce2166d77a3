"""The line that each request leaves in the log."""

from __future__ import annotations

import io
import json
import logging

import httpx
import pytest

from guard.context import current
from guard.errors import GuardUnavailable
from guard.logs import JsonLines, TextLines
from server.access import logged
from tests.server import test_gate
from tests.server.test_gate import BODY, CHAT

SECRET = "marzipan"
engine, records, failures = test_gate.engine, test_gate.records, test_gate.failures
controls, app, client = test_gate.controls, test_gate.app, test_gate.client


@pytest.fixture
def written():
    """All log lines of ours, as they would be written."""
    stream, log = io.StringIO(), logging.getLogger("lethe")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    log.removeHandler(handler)
    log.setLevel(level)


async def test_a_request_is_one_line(client, written):
    response = await client.post(CHAT, json=BODY, headers={"x-request-id": "r1"})
    (line,) = written()
    assert 0 <= line.pop("duration_ms") < 10_000 and line.pop("time") and line.pop("message")
    assert line == {
        "level": "info", "logger": "lethe.access", "process": "MainProcess", "method": "POST", "route": CHAT,
        "status": 200, "tenant": "acme", "request_id": "r1",
        "decision_id": response.headers["x-lethe-decision-id"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", f"/admin/v1/targets/{SECRET}?x={SECRET}", "/admin/v1/targets/{id}", 404),
        ("DELETE", f"/v1/responses/{SECRET}", "/v1/responses/{response_id}", 404),
        ("GET", f"/{SECRET}", "-", 404),
        (SECRET.upper(), CHAT, CHAT, 405),
        ("POST", CHAT, CHAT, 401),
    ],
)
async def test_paths_are_templates_and_nothing_else_of_the_client_is_written(
    client,
    written,
    method,
    path,
    route,
    status,
):
    headers = {"x-other": SECRET, "user-agent": SECRET, "authorization": f"Bearer {SECRET}"}
    key = headers if status == 401 else {**headers, "authorization": "Bearer inf"}
    response = await client.request(method, path, headers=key, content=SECRET)
    (line,) = written()
    assert (response.status_code, line["status"], line["route"]) == (status, status, route)
    assert SECRET not in json.dumps(line).lower()


async def test_probes_are_told_of_where_they_fail_and_else_to_who_looks_closely(client, written):
    await client.get("/livez")  # the small application has none
    (line,) = written()
    assert (line["status"], line["level"]) == (404, "info")


async def probe(level):
    async def serve(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    await logged(serve, {"type": "http", "method": "GET", "path": "/readyz", "headers": []}, None, drop)


async def drop(message):
    return


async def test_a_probe_that_succeeds_is_a_line_for_debugging(written):
    await probe(logging.DEBUG)
    (line,) = written()
    assert line["level"] == "debug"
    logging.getLogger("lethe").setLevel(logging.INFO)
    await probe(logging.INFO)
    assert len(written()) == 1


@pytest.mark.parametrize(("error", "status"), [(None, 499), (RuntimeError(SECRET), 500)])
async def test_what_has_no_answer_is_a_line_too(written, error, status):
    async def serve(scope, receive, send):
        if error:
            raise error

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": []}
    if error:
        with pytest.raises(RuntimeError):
            await logged(serve, scope, None, drop)
    else:
        await logged(serve, scope, None, drop)
    (line,) = written()
    assert line["status"] == status and SECRET not in json.dumps(line)


async def test_lines_on_the_way_of_a_request_carry_its_ids(engine, client, written, monkeypatch):
    def matched(_):
        assert current() is not None
        logging.getLogger("lethe.engine").error("on the way")
        raise GuardUnavailable("no")

    monkeypatch.setattr(type(engine), "admission", property(matched, lambda *_: None), raising=False)
    await client.post(CHAT, json=BODY, headers={"x-request-id": "r2"})
    told, line = written()
    assert told["message"] == "on the way" and told["request_id"] == "r2"
    assert told["decision_id"] == line["decision_id"]


async def test_text_has_it_in_words(client):
    stream, log = io.StringIO(), logging.getLogger("lethe.access")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextLines())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        async with httpx.AsyncClient(transport=client._transport, base_url="http://lethe") as nobody:
            await nobody.post(CHAT, json=BODY)
        response = await client.post(CHAT, json=BODY)
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    refused, served = stream.getvalue().splitlines()
    assert f"POST {CHAT} 401" in refused and refused.endswith(" ms")
    assert f"POST {CHAT} 200" in served and served.endswith(f"[{response.headers['x-lethe-decision-id']}]")
