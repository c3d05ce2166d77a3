"""Traces and log lines of a server with a real engine: what they tell of requests, and that they tell nothing more."""

import json
import os
import re
import time

import pytest

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        "LETHE_E2E_URL" in os.environ, reason="needs the log and the traces of its own server"
    ),
]

PERSON = "limir-yarley"
CHAT = "/v1/chat/completions"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "marzipan"
PLAIN = re.compile(r"Lethe is ready on http://|\[?W\d{4} \d\d:|$")
"""Lines that are no objects: the banner, and those that torch writes past Python's logging."""


def lines(running):
    """Every line of the log, and those that are no objects."""
    whole, _, _ = running.log.read_text(encoding="utf-8").rpartition("\n")
    found, plain = [], []
    for line in whole.split("\n"):
        try:
            found.append(json.loads(line))
        except ValueError:
            plain.append(line)
    return found, plain


def access(running, decision_id):
    for _ in range(100):
        found = [one for one in lines(running)[0] if one["logger"] == "lethe.access"]
        if own := [one for one in found if one.get("decision_id") == decision_id]:
            return own
        time.sleep(0.05)
    raise AssertionError("no line")


def ask(http, text, path=CHAT, headers=None, **options):
    given = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    body = {"model": "lethe-demo", "temperature": 0, "max_tokens": 24, **given, **options}
    return http.post(path, json=body, headers=headers or {})


@pytest.mark.parametrize("stream", [False, True])
def test_a_matched_request_is_a_span_between_its_clients_and_the_engines(
    http, running, collector, admin, forget, targets, stream
):
    forget(PERSON)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": f"asked-{stream}"}
    asked = {"stream": stream, **({"stream_options": {"include_usage": True}} if stream else {})}
    response = ask(http, f"Where was {targets[PERSON]['name']} born?", headers=headers, **asked)
    assert response.status_code == 200
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    usage = (json.loads(events[-1]) if stream else response.json())["usage"]
    decision_id = response.headers["x-lethe-decision-id"]
    span = collector.of(decision_id)
    assert (span.name, span.trace, span.parent) == ("chat lethe-demo", TRACE, PARENT)
    assert span.resource["service.name"] == "lethe"
    told = span.attributes
    assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert told["gen_ai.response.finish_reasons"] == ["stop"]
    assert (told["lethe.action"], told["lethe.methods"]) == ("intervene", ["embedding_corruption"])
    judged, engine = (collector.below(span, name) for name in ("lethe.guard", "llm_request"))
    assert engine.trace == judged.trace == TRACE
    assert judged.attributes["lethe.snapshot"] == admin.get("/status").json()["snapshot"]
    assert judged.attributes["lethe.detectors"] == ["lexical"] and judged.attributes["lethe.lexical_ms"] >= 0
    assert 0 < judged.seconds < span.seconds
    (line,) = access(running, decision_id)
    wanted = {
        "method": "POST",
        "route": CHAT,
        "status": 200,
        "request_id": f"asked-{stream}",
        "trace_id": TRACE,
    }
    assert wanted.items() <= line.items() and line["duration_ms"] > 0


def test_what_the_guard_adds_to_a_prompt_is_not_counted(http, collector, forget, targets):
    forget(PERSON, intervention={"method": "guard_prompt"})
    response = ask(http, f"Where was {targets[PERSON]['name']} born?")
    span = collector.of(response.headers["x-lethe-decision-id"])
    assert span.attributes["lethe.methods"] == ["guard_prompt"]
    assert span.attributes["gen_ai.usage.input_tokens"] == response.json()["usage"]["prompt_tokens"]


def test_nothing_that_anybody_wrote_stands_in_the_log_or_in_a_trace(http, running, admin, collector):
    """Everything that a client or an operator can write holds a word that nobody else writes."""
    name, headers = f"Orvo {SECRET.title()}", {"x-other": SECRET, "user-agent": SECRET}
    target = {"name": name, "description": f"{name} sells {SECRET}.", "tags": [SECRET], "reference": SECRET}
    assert admin.put(f"/targets/{SECRET}-seller", json=target).status_code == 201
    try:
        for stream in (False, True):
            for path in (CHAT, "/v1/completions"):
                for text in (f"Who is {name}?", f"What is {SECRET}?"):
                    assert ask(http, text, path, headers, stream=stream, user=SECRET).status_code == 200
        question = {"model": "lethe-demo", "max_tokens": 8}
        turns = [{"role": "user", "content": f"What is {SECRET}?"}]
        http.post("/v1/messages", json={**question, "messages": turns}, headers=headers)
        http.post("/v1/responses", json={"model": "lethe-demo", "input": SECRET, "max_output_tokens": 8})
        statuses = [
            ask(http, f"{SECRET}?", model=SECRET).status_code,
            ask(http, f"{SECRET}?", temperature=SECRET).status_code,
            ask(http, f"{SECRET}?", response_format={"type": "json_schema", SECRET: SECRET}).status_code,
            ask(http, f"{SECRET} " * 5_000).status_code,
            http.post(CHAT, content=f"{{{SECRET}").status_code,
            http.get(f"/{SECRET}?{SECRET}={SECRET}").status_code,
            http.get(f"/v1/responses/{SECRET}").status_code,
            http.post("/tokenize", json={"prompt": SECRET, "model": SECRET}).status_code,
            admin.get(f"/targets/{SECRET}-none").status_code,
            admin.get("/targets", params={"tag": SECRET}).status_code,
            admin.post("/check", json={"prompt": SECRET}).status_code,
            admin.post("/targets/validate", json={SECRET: SECRET}).status_code,
        ]
    finally:
        admin.delete(f"/targets/{SECRET}-seller", params={"purge": "true"})
    last = ask(http, "Hello!")
    assert {200, 400, 404} <= set(statuses) and max(statuses) < 500
    collector.of(last.headers["x-lethe-decision-id"])
    access(running, last.headers["x-lethe-decision-id"])
    assert SECRET not in collector.text.lower()
    assert SECRET not in running.log.read_text(encoding="utf-8").lower()


def test_every_line_of_the_log_is_an_object_or_known_by_name(running, http):
    http.get("/livez")
    found, plain = lines(running)
    assert [line for line in plain if not PLAIN.match(line)] == []
    assert sum("Lethe is ready" in line for line in plain) == 1
    assert {"EngineCore", "MainProcess"} <= {one["process"] for one in found}
    assert all({"time", "level", "logger", "message"} <= set(one) for one in found)
    assert not [one for one in found if one["logger"] == "uvicorn.access"]
    routes = {one["route"] for one in found if one["logger"] == "lethe.access"}
    assert "/livez" in routes and all(
        "{" in route or not re.search(r"[0-9a-f]{8}", route) for route in routes
    )
