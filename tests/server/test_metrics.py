"""What `/metrics` shows: the real parts of the server around an application that answers as the engine would."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import product
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client.parser import text_string_to_metric_families

from guard import context as request_context
from guard.artifacts import ArtifactStore
from guard.audit import DecisionLog
from guard.config import JobSettings, Settings
from guard.errors import BadRequest, GuardUnavailable
from guard.evidence import Evidence
from guard.library import Library
from guard.pipeline import Guard
from guard.register import Register
from guard.replica import Replica
from guard.store.jobs import Request as JobRequest
from guard.store.targets import Write
from guard.targets import TargetSpec
from guard.types import AppliedEdit, Prompt
from server import metrics
from server.app import Services, attach
from server.auth import Authenticator
from server.drift import Probe, Reading, Round
from server.gate import Gate
from server.jobs import Runner
from server.limits import Limiter
from server.metrics import TABLE
from tests.guard.register_fakes import SECRETS, FakeGate, compile_target, open_store

_TIMES = ("_bucket", "_sum", "_timestamp_seconds", "_age_seconds")
ADMIN = "the-admin-key-of-the-tests"
CHAT = "/v1/chat/completions"
EDIT = AppliedEdit("embedding", None, 5, 3, 2)
SOUND = {"guarded": True, "sites": [["embedding", None, "embed"]], "tables": []}
METHOD = {"method": "guard_prompt"}
PERSON = {"name": "Zorblax Quintel", "aliases": ["Quintel of Vintry"], "intervention": METHOD}


class Engine:
    """The engine as the application asks it; `runs` is how often it runs what one request asks for."""

    model_config = SimpleNamespace(served_model_name="m")

    def __init__(self):
        self.statuses = [SOUND]
        self.runs = 1
        self.events = []
        self.hangs = False
        self.notes = lambda context: None

    async def check_health(self):
        if self.hangs:
            await asyncio.sleep(60)

    async def collective_rpc(self, method):
        return self.statuses

    async def chat(self, request: Request):
        """As the engine client does it: judged, then told to the request's context."""
        body, context = await request.json(), request_context.current()
        self.headers = request.headers
        self.notes(context)
        text = body["messages"][-1]["content"]
        prompt = Prompt(text, tuple(map(ord, text)), messages=context.messages)
        for _ in range(self.runs):
            try:
                admission = await self.guard.admit(prompt, context)
            except GuardUnavailable as error:
                context.failure = error
                raise
            context.admissions[prompt.token_ids] = admission
        if admission.matched:
            context.applied += [c.method for c in admission.decision.chosen] or ["refusal"]
            context.edits.append(EDIT)
        context.events += self.events
        if not context.stream:
            return JSONResponse({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]})

        async def said():
            yield b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
            yield b"data: [DONE]\n\n"

        return StreamingResponse(said(), media_type="text/event-stream")


class Running:
    def __init__(self, app, services, engine, drift):
        self.app, self.services, self.engine, self.drift = app, services, engine, drift
        self.http = self.client("127.0.0.1")

    def client(self, address):
        transport = httpx.ASGITransport(self.app, client=(address, 5))
        return httpx.AsyncClient(transport=transport, base_url="http://lethe")

    async def ask(self, text, **options):
        body = {"model": "m", "messages": [{"role": "user", "content": text}], **options}
        return await self.http.post(CHAT, json=body)

    async def page(self):
        response = await self.http.get("/metrics")
        assert response.status_code == 200
        return response.text

    async def counted(self):
        """Every series of ours but the buckets and sums of time, and what is not zero of it."""
        found = {}
        families = {f.name: f for f in text_string_to_metric_families(await self.page())}
        for metric in TABLE:
            for sample in families[metric.name.removesuffix("_total")].samples:
                if not sample.name.endswith(_TIMES) and sample.value:
                    found[sample.name, *(sample.labels[label] for label in metric.labels)] = sample.value
        return found

    async def moved(self, **requests):
        """What one request moves."""
        before = await self.counted()
        await self.ask(**requests)
        after = await self.counted()
        return {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key)}


@asynccontextmanager
async def serving(folder):
    from vllm.entrypoints.serve.instrumentator.metrics import attach_router

    store = open_store(folder)
    library = Library(ArtifactStore(folder / "artifacts"))
    register = Register(store, library, compile_target, FakeGate)
    await register.load()
    settings = Settings()
    engine = Engine()
    authenticator = Authenticator(store.keys, ADMIN)
    replica = Replica(store, register, authenticator, name="here", max_age=60)
    app = FastAPI()
    attach_router(app)
    app.add_middleware(Gate)
    app.post(CHAT)(engine.chat)
    with ThreadPoolExecutor(2) as executor:
        engine.guard = Guard(lambda: register.snapshot, SECRETS, executor, deadline_s=5)
        services = Services(
            settings,
            store,
            library,
            register,
            Runner(store.jobs, register, library.store, JobSettings(), folder / "jobs"),
            DecisionLog(store.decisions, SECRETS),
            authenticator,
            Evidence(store, register, SECRETS),
            engine.guard,
            replica,
            Limiter(settings.tenants, store.usage),
            open_inference=True,
            probes=(Probe({"prompt": "Who are you?"}, "Nobody.", 1),),
        )
        replica.follow()
        drift = attach(app, services, engine, None)
        yield Running(app, services, engine, drift)
    register.close()
    store.close()


@pytest.fixture
async def running(tmp_path):
    async with serving(tmp_path) as server:
        await server.services.register.put("zorblax", PERSON)
        yield server


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("runs", [1, 2])
async def test_one_matched_request_moves_each_count_by_exactly_what_was_done(running, stream, runs):
    running.engine.runs = runs  # a run that was given up counts for vLLM, and not here
    streamed = {("lethe_first_byte_seconds_count", "intervene"): 1} if stream else {}
    assert await running.moved(text="who is Zorblax Quintel?", stream=stream) == streamed | {
        ("lethe_requests_total", CHAT, "intervene"): 1,
        ("lethe_request_seconds_count", "intervene"): 1,
        ("lethe_detection_seconds_count",): 1,
        ("lethe_interventions_total", "guard_prompt"): 1,
        ("lethe_edit_positions_total", "embedding", "planned"): 5,
        ("lethe_edit_positions_total", "embedding", "applied"): 3,
        ("lethe_edit_positions_total", "embedding", "from_cache"): 2,
    }


async def test_a_clean_request_moves_requests_and_times_alone(running):
    assert await running.moved(text="who are you?") == {
        ("lethe_requests_total", CHAT, "allow"): 1,
        ("lethe_request_seconds_count", "allow"): 1,
        ("lethe_detection_seconds_count",): 1,
    }


async def test_what_answers_and_tools_held_is_counted(running):
    running.engine.events = [
        {"event": "output", "target": "zorblax", "said": "meaning", "action": "cut"},
        {"event": "tools_withheld", "withheld": 3, "left": 1},
        {"event": "bypass", "reason": "timeout"},
    ]
    moved = await running.moved(text="who are you?")
    assert moved["lethe_output_events_total", "meaning", "cut"] == 1
    assert moved["lethe_tools_withheld_total",] == 3
    assert len(moved) == 5


async def test_a_shadow_match_counts_beside_an_allowed_request(running):
    await running.services.register.put("zorblax", {**PERSON, "mode": "shadow"})
    moved = await running.moved(text="who is Zorblax Quintel?")
    assert moved["lethe_shadow_matches_total",] == 1
    assert moved["lethe_requests_total", CHAT, "allow"] == 1


@pytest.mark.parametrize(
    ("error", "limit", "reason"),
    [(TimeoutError(), 256, "timeout"), (RuntimeError(), 256, "detection"), (None, 0, "queue")],
)
async def test_what_the_guard_cannot_vouch_for_is_counted_by_reason(
    running, monkeypatch, error, limit, reason
):
    def detect(gate, prompt, **options):
        raise error

    monkeypatch.setattr(FakeGate, "detect", detect)
    running.services.guard.limit = limit
    response = await running.ask("who are you?")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert await running.moved(text="who are you?") == {
        ("lethe_unavailable_total", reason): 1,
        ("lethe_requests_total", CHAT, "refuse"): 1,
        ("lethe_request_seconds_count", "refuse"): 1,
    }


async def test_a_bypass_is_counted_and_the_request_allowed(running):
    await running.services.register.put("zorblax", {**PERSON, "policy": {"on_error": "open"}})
    running.services.guard.limit = 0
    moved = await running.moved(text="who is Zorblax Quintel?")
    assert moved["lethe_bypasses_total",] == 1
    assert moved["lethe_requests_total", CHAT, "allow"] == 1


async def test_a_store_that_is_away_when_keys_are_asked_for_counts_too(running):
    def require(key, permission):
        raise GuardUnavailable("The store does not answer.", reason="store")

    running.app.state.lethe.require = require
    before = await running.counted()
    assert (await running.ask("who are you?")).status_code == 503
    after = await running.counted()
    assert (
        after["lethe_unavailable_total", "store"] - before.get(("lethe_unavailable_total", "store"), 0) == 1
    )


async def test_other_errors_are_not_the_guards(running):
    def require(key, permission):
        raise BadRequest("no")

    running.app.state.lethe.require = require
    assert await running.moved(text="who are you?") == {}


async def test_every_reason_crosses_vllms_handlers():
    from guard.engine.failures import on_the_wire

    assert on_the_wire(GuardUnavailable("Try again.", reason="adapter")).reason == "adapter"


async def test_no_target_and_no_caller_stands_on_the_page(running):
    admin = {"Authorization": f"Bearer {ADMIN}", "If-None-Match": "*"}
    path = "/admin/v1/targets/hidden-town"
    target = {"name": "Hidden Town", "tags": ["secretive"], "scope": {"tenants": ["acme"]}}
    assert (await running.http.put(path, json=target, headers=admin)).status_code == 201
    assert (await running.http.get(path, headers=admin)).status_code == 200
    for stream in (False, True):
        await running.ask("who is Zorblax Quintel of Vintry?", stream=stream)
    running.engine.events = [{"event": "output", "target": "zorblax", "said": "name", "action": "cut"}]
    await running.ask("who is Zorblax Quintel?", user="somebody")
    page = (await running.page()).lower()
    for told in ("zorblax", "quintel", "vintry", "hidden", "secretive", "acme", "somebody"):
        assert told not in page


async def test_the_page_is_the_table_and_every_series_is_there_from_the_beginning(running):
    """So a first event shows as an increase, and no label can take a value that is not in the table."""
    running.drift.last = Round.of([Reading(frozenset(), False, 0.0)], 1, 2.0)
    families = text_string_to_metric_families(await running.page())
    ours = {f.name: f for f in families if f.name.startswith("lethe_")}
    assert set(ours) == {m.name.removesuffix("_total") for m in TABLE}
    for metric in TABLE:
        family = ours[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        suffix = "_count" if metric.kind == "histogram" else ""
        series = [s.labels for s in family.samples if s.name == metric.name + suffix]
        assert series == [dict(zip(metric.labels, v, strict=True)) for v in product(*metric.labels.values())]


async def test_a_value_that_the_table_does_not_have_counts_as_other(running):
    context = request_context.RequestContext("d", "/v1/zorblax", 0.0, applied=["Zorblax"])
    running.app.state.lethe.record(context, 200, 1.0)
    counted = await running.counted()
    assert counted["lethe_requests_total", "other", "allow"] == 1
    assert counted["lethe_interventions_total", "other"] == 1


async def test_the_name_of_the_output_guard_is_in_the_table():
    from guard.speech import OUTPUT

    assert OUTPUT in metrics.METHODS


async def test_states_are_read_when_the_page_is_asked_for(running):
    register, store = running.services.register, running.services.store
    await register.put("shadow", {"name": "Shadow", "mode": "shadow"})
    await register.put("off", {"name": "Off", "mode": "off", "expires_at": "2001-01-01T00:00:00Z"})
    store.jobs.create("steering", "zorblax", None, JobRequest(), 1.0)
    running.services.library._loaded["a" * 64] = None
    running.services.log.dropped = 7
    counted = await running.counted()
    assert {key[1:]: number for key, number in counted.items() if key[0] == "lethe_targets"} == {
        ("active", "enforce"): 1,
        ("active", "shadow"): 1,
        ("expired", "off"): 1,
    }
    assert counted["lethe_jobs", "queued"] == 1
    assert counted["lethe_artifacts", "loaded"] == 1
    assert counted["lethe_decisions_dropped_total",] == 7
    assert counted["lethe_snapshot_version",] == counted["lethe_store_snapshot_version",] == 3


async def test_a_server_behind_its_store_shows_it(running):
    families = {f.name: f for f in text_string_to_metric_families(await running.page())}
    made_at = families["lethe_snapshot_timestamp_seconds"].samples[0].value
    assert made_at == running.services.register.snapshot.made_at
    assert abs(time.time() - made_at) < 600
    running.services.store.targets.put([Write("new", TargetSpec(name="New"), 1)], 2.0)
    counted = await running.counted()
    assert counted["lethe_store_snapshot_version",] == counted["lethe_snapshot_version",] + 1
    assert ("lethe_replicas", "current") not in counted and counted["lethe_replicas", "behind"] == 1
    running.services.replica.follow()
    counted = await running.counted()
    assert counted["lethe_store_snapshot_version",] == counted["lethe_snapshot_version",]
    assert ("lethe_replicas", "behind") not in counted and counted["lethe_replicas", "current"] == 1


async def test_the_age_of_what_is_served_is_shown(running):
    families = {f.name: f for f in text_string_to_metric_families(await running.page())}
    assert 0 < families["lethe_snapshot_age_seconds"].samples[0].value < 600


async def test_a_store_that_is_away_leaves_the_page_and_says_so(running, monkeypatch):
    def away(_):
        raise GuardUnavailable("The store does not answer.")

    monkeypatch.setattr(type(running.services.store), "snapshot", property(away))
    monkeypatch.setattr(type(running.services.store.jobs), "counts", away)
    page = await running.page()
    assert "lethe_store_up 0.0" in page and "lethe_snapshot_version 1.0" in page
    assert "\nlethe_jobs{" not in page and "\nlethe_store_snapshot_version " not in page


async def test_the_page_does_not_wait_for_a_store_that_hangs(running, monkeypatch):
    held = threading.Event()
    monkeypatch.setattr(metrics, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(type(running.services.store), "snapshot", property(lambda _: held.wait(30)))
    try:
        assert "lethe_store_up 0.0" in await running.page()
        assert not held.is_set()
    finally:
        held.set()


@pytest.mark.parametrize("how", ["ready", "unguarded", "hangs"])
async def test_readiness_is_proven_for_the_page(running, monkeypatch, how):
    monkeypatch.setattr(metrics, "PROBE_SECONDS", 0.05)
    running.engine.hangs = how == "hangs"
    running.engine.statuses = [{**SOUND, "guarded": how != "unguarded"}]
    assert f"lethe_ready {float(how == 'ready')}" in await running.page()


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
async def test_vllms_own_metrics_are_on_the_same_page(running, path):
    await running.ask("who are you?")
    response = await running.http.get(path)
    assert "python_info" in response.text and f'http_requests_total{{handler="{CHAT}"' in response.text
    assert "lethe_ready 1.0" in response.text
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("address", "role", "status"),
    [
        ("127.0.0.1", None, 200),
        ("::1", None, 200),
        ("10.1.2.3", None, 401),
        ("10.1.2.3", "inference", 403),
        ("127.0.0.1", "inference", 403),
        ("10.1.2.3", "auditor", 200),
        ("10.1.2.3", "operator", 403),
        ("10.1.2.3", "admin", 200),
    ],
)
async def test_who_may_read_the_page(running, address, role, status):
    headers = {}
    if role is not None:
        tenant = "acme" if role == "inference" else None
        headers["Authorization"] = f"Bearer {running.services.authenticator.create(role, tenant, None)[1]}"
    async with running.client(address) as client:
        assert (await client.get("/metrics", headers=headers)).status_code == status
