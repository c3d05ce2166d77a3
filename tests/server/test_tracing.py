"""What a collector is sent of requests, from the real parts of the server around an application that answers."""

from __future__ import annotations

import time

import pytest

from guard.config import TracingSettings, load_settings
from guard.context import RequestContext
from guard.errors import BadRequest
from server import launcher
from server import tracing as tracing_module
from server.tracing import Tracing, endpoint_of, exporter
from tests.collector import collecting
from tests.guard.register_fakes import FakeGate
from tests.server.test_metrics import CHAT, PERSON, serving

TRACE, PARENT = "ab" * 16, "cd" * 8
CLIENTS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
SECRET = "marzipan"


class Traced:
    """A server whose spans a collector has got when `spans` are asked for."""

    def __init__(self, server, collector, sample):
        self.server, self.collector, self.closed = server, collector, False
        self.tracing = Tracing(
            exporter(f"{collector.address}/v1/traces", {}), {"m"}.__contains__, sample=sample
        )
        server.app.state.lethe.tracing = self.tracing

    async def ask(self, text, headers=None, **options):
        body = {"model": "m", "messages": [{"role": "user", "content": text}], **options}
        return await self.server.http.post(CHAT, json=body, headers=headers or {})

    def spans(self):
        if not self.closed:
            self.closed = True
            self.tracing.close()
        return {span.name: span for span in self.collector.spans}


@pytest.fixture
def sample():
    return None


@pytest.fixture
async def traced(tmp_path, sample):
    with collecting() as collector:
        async with serving(tmp_path) as server:
            await server.services.register.put("zorblax", PERSON)
            found = Traced(server, collector, sample)
            yield found
            found.spans()


async def test_a_request_is_a_span_of_its_clients_trace_and_its_judgement_one_below(traced):
    response = await traced.ask("who is Zorblax Quintel?", CLIENTS)
    spans = traced.spans()
    assert traced.collector.paths == ["/v1/traces"] and set(spans) == {"chat m", "lethe.guard"}
    request, judged = spans["chat m"], spans["lethe.guard"]
    assert (request.trace, request.parent, judged.trace, judged.parent) == (TRACE, PARENT, TRACE, request.id)
    assert request.resource["service.name"] == "lethe" and not request.failed
    assert request.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "m",
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "lethe.decision_id": response.headers["x-lethe-decision-id"],
        "lethe.action": "intervene",
        "lethe.methods": ["guard_prompt"],
    }
    times = {name: judged.attributes.pop(name) for name in ("lethe.lexical_ms", "lethe.total_ms")}
    assert times["lethe.lexical_ms"] == 0.01 < times["lethe.total_ms"] <= judged.seconds * 1000
    assert judged.seconds <= request.seconds
    snapshot = traced.server.services.register.snapshot.version
    assert judged.attributes == {
        "lethe.snapshot": snapshot, "lethe.action": "intervene", "lethe.detectors": ["lexical"],
        "lethe.methods": ["guard_prompt"],
    }  # fmt: skip


async def test_tokens_and_ends_are_those_that_the_client_is_told(traced):
    def note(context):
        context.usage.input_tokens, context.usage.output_tokens = 7, 3
        context.usage.finish_reasons += ["stop", "length"]

    traced.server.engine.notes = note
    await traced.ask("who are you?")
    told = traced.spans()["chat m"].attributes
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (7, 3)
    assert told["gen_ai.response.finish_reasons"] == ["stop", "length"]


@pytest.mark.parametrize(
    ("error", "reason"), [(TimeoutError(), "timeout"), (RuntimeError(SECRET), "detection")]
)
async def test_a_judgement_that_failed_says_why(traced, monkeypatch, error, reason):
    def detect(gate, prompt, **options):
        raise error

    monkeypatch.setattr(FakeGate, "detect", detect)
    assert (await traced.ask("who are you?")).status_code == 503
    spans = traced.spans()
    assert spans["lethe.guard"].attributes == {"error.type": reason} and spans["lethe.guard"].failed
    request = spans["chat m"]
    assert (request.attributes["error.type"], request.attributes["http.response.status_code"]) == (
        reason,
        503,
    )
    assert request.failed and SECRET not in traced.collector.text


async def test_what_was_passed_over_is_marked(traced):
    await traced.server.services.register.put("zorblax", {**PERSON, "policy": {"on_error": "open"}})
    traced.server.services.guard.limit = 0
    await traced.ask("who is Zorblax Quintel?")
    judged = traced.spans()["lethe.guard"]
    assert judged.attributes["lethe.bypassed"] is True and judged.attributes["lethe.action"] == "allow"


async def test_targets_in_shadow_mode_are_not_told_of(traced):
    await traced.server.services.register.put("zorblax", {**PERSON, "mode": "shadow"})
    await traced.ask("who is Zorblax Quintel?")
    judged = traced.spans()["lethe.guard"].attributes
    assert judged["lethe.action"] == "allow" and "lethe.detectors" not in judged


async def test_nothing_of_what_was_said_registered_or_scored_is_sent(traced, monkeypatch):
    """Everything that a client or an operator can write holds a word that nobody else writes."""
    planted = {**PERSON, "tags": [f"{SECRET}-tag"], "metadata": {"note": SECRET}, "reference": SECRET,
               "description": f"Zorblax Quintel sells {SECRET}.", "name": f"Zorblax {SECRET}"}  # fmt: skip
    await traced.server.services.register.put(f"{SECRET}-id", planted)
    traced.server.engine.events = [{"event": "output", "target": SECRET, "said": "name", "action": "cut"}]
    headers = {"x-request-id": SECRET, "user-agent": SECRET, "x-other": SECRET}
    matched = f"who is Zorblax {SECRET}?"
    assert (await traced.ask(matched, {**headers, **CLIENTS}, user=SECRET)).status_code == 200
    assert (await traced.ask(matched, headers, stream=True, stop=[SECRET])).status_code == 200
    assert (await traced.ask(matched, headers, model=SECRET)).status_code == 200
    assert (await traced.ask("", headers, model={SECRET: SECRET})).status_code == 400

    def detect(gate, prompt, **options):
        raise RuntimeError(prompt.text)

    monkeypatch.setattr(FakeGate, "detect", detect)
    assert (await traced.ask(f"{SECRET}?", headers)).status_code == 503
    assert (await traced.server.http.post(f"{CHAT}?{SECRET}", content=SECRET)).status_code == 400
    assert len(traced.spans()) >= 3 and len(traced.collector.spans) >= 9
    everything = traced.collector.text.lower() + repr(traced.collector.bodies).lower()
    for told in (SECRET, "zorblax", "quintel", "vintry", "score", "0.8"):
        assert told not in everything


async def test_the_trace_goes_on_behind_the_gate(traced):
    await traced.ask("who are you?", {**CLIENTS, "tracestate": "a=b"})
    seen = traced.server.engine.headers
    spans = traced.spans()
    assert seen.getlist("traceparent") == [f"00-{TRACE}-{spans['chat m'].id}-01"]
    assert seen["tracestate"] == "a=b"


@pytest.mark.parametrize("sample", [0.0])
async def test_the_client_decides_whether_a_trace_is_kept_and_else_the_share_does(traced):
    await traced.ask("who are you?")
    await traced.ask("who are you?", {"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert traced.server.engine.headers["traceparent"].endswith("-00")
    await traced.ask("who are you?", CLIENTS)
    traced.spans()
    assert {span.trace for span in traced.collector.spans} == {TRACE} and len(traced.collector.spans) == 2


async def test_without_tracing_nothing_is_made_and_headers_stay(traced, monkeypatch):
    traced.server.app.state.lethe.tracing = None
    monkeypatch.setattr(Tracing, "begin", lambda *_: pytest.fail("a span was made"))
    response = await traced.ask("who is Zorblax Quintel?", CLIENTS)
    assert response.status_code == 200
    assert traced.server.engine.headers["traceparent"] == CLIENTS["traceparent"]
    traced.spans()
    assert traced.collector.bodies == []


async def test_only_what_generates_is_traced(traced):
    await traced.server.http.get("/livez")
    await traced.server.http.post("/tokenize", json={"prompt": "x"})
    assert traced.spans() == {}


async def test_a_collector_that_is_away_holds_nobody_up(traced, monkeypatch):
    monkeypatch.setattr(tracing_module, "CLOSE_SECONDS", 0.2)
    tracing = Tracing(exporter("http://127.0.0.1:9/v1/traces", {}), {"m"}.__contains__)
    traced.server.app.state.lethe.tracing = tracing
    assert (await traced.ask("who are you?")).status_code == 200
    started = time.monotonic()
    tracing.close()
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("endpoint", "environ", "found"),
    [
        (None, {}, None),
        ("http://c:4318", {}, "http://c:4318/v1/traces"),
        ("http://c:4318/", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://other"}, "http://c:4318/v1/traces"),
        ("http://c:4317", {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http://c:4317"),
        (None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces"),
        (None, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c/t", "OTEL_EXPORTER_OTLP_ENDPOINT": "x"}, "http://c/t"),
        ("http://c:4318", {"OTEL_SDK_DISABLED": "true"}, None),
    ],
)  # fmt: skip
def test_where_spans_go(endpoint, environ, found):
    assert endpoint_of(TracingSettings(endpoint=endpoint), environ) == found


def test_grpc_where_it_is_asked_for():
    asked = exporter("http://127.0.0.1:9", {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"})
    assert "grpc" in type(asked).__module__
    asked.shutdown()


async def test_the_service_has_the_name_that_the_environment_gives_it(monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "gateway")
    with collecting() as collector:
        tracing = Tracing(exporter(f"{collector.address}/v1/traces", {}), {"m"}.__contains__)
        context = RequestContext("d", CHAT, 1.0)
        span = tracing.begin({"type": "http", "headers": []}, context)
        context.failure = BadRequest("no")
        span.end(context, 400, 2.0)
        tracing.close()
        (found,) = collector.spans
    assert found.resource["service.name"] == "gateway" and len(context.trace_id) == 32
    assert not found.failed and found.seconds == pytest.approx(1.0)


@pytest.mark.parametrize("endpoint", [None, "http://127.0.0.1:9"])
async def test_traces_are_made_where_an_address_is_given(monkeypatch, endpoint):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    settings = load_settings(None, {"LETHE_TRACING_ENDPOINT": endpoint or ""})
    async with launcher.traces(settings, {"m"}.__contains__) as found:
        assert (found is None) == (endpoint is None)
