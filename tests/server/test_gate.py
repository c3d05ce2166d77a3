"""The gate around a small application that answers as vLLM would and matches what it is told to."""

import json
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from guard import context as request_context
from guard.config import GatewaySettings, TenantLimits, TenantSettings
from guard.errors import Forbidden, GuardUnavailable, Unauthorized
from guard.types import Admission, Decision, Match, Plan, Reply
from server.auth import Principal
from server.gate import Gate, GateServices
from server.limits import Lease, Limiter
from server.tenancy import TenantHeader

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
ANSWER = {"choices": [{"message": {"content": "hi"}, "logprobs": {"content": [1]}, "finish_reason": "stop"}]}


KEYS = {
    "Bearer inf": Principal("inference", "acme", "1"),
    "Bearer other": Principal("inference", "rival", "2"),
    "Bearer adm": Principal("admin", None, "3"),
}


def knowing(keys):
    """What asks for a key and its permission, where these are all the keys."""

    def require(header, permission):
        if header not in keys:
            raise Unauthorized("This key is not known.")
        if not keys[header].may(permission):
            raise Forbidden("This role may not.")
        return keys[header]

    return require


class Engine:
    """What the application behind the gate does: `admission` is set as if the engine client had judged."""

    def __init__(self):
        self.admission = None
        self.failure = None
        self.crash = False
        self.leaves = False
        self.answer = ANSWER
        self.bodies = []
        self.forgotten_tool = None
        self.forgotten = ""
        self.replaced = False

    async def still(self, context, texts):
        self.read_again = (context, texts)
        return not self.forgotten or (not any(self.forgotten in text for text in texts) and bool(texts))

    async def judge_tools(self, tools, context):
        match = Match("rocket", 1, 0.9, 0.8, "lexical")
        return [(match,) if tool.name == self.forgotten_tool else () for tool in tools]

    async def chat(self, request):
        self.bodies.append(await request.json())
        context = request_context.current()
        if self.admission is not None:
            context.admissions[(1,)] = self.admission
        context.failure, context.replaced = self.failure, self.replaced
        if self.crash:
            raise RuntimeError("wrapped")
        if self.leaves:
            assert await request.is_disconnected()
            return JSONResponse(None)  # as vLLM does, to nobody
        if not context.stream:
            return JSONResponse(self.answer)

        async def events():
            yield b'data: {"choices":[{"delta":{"content":"a"},"logprobs":{"x":1}}]}\n'
            yield b"\ndata: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    async def respond(self, request):
        body = await request.json()
        self.bodies.append(body)
        if self.admission is not None:
            request_context.current().admissions[(1,)] = self.admission
        return JSONResponse({"object": "response", "id": body["request_id"]})

    async def stored(self, request):
        part = {"type": "output_text", "text": "Jane was born in Vintry", "logprobs": [1]}
        output = [{"type": "message", "content": [part]}]
        response_id = request.path_params.get("response_id", "")
        return JSONResponse(
            {"object": "response", "id": response_id, "status": "completed", "output": output}
        )


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def records():
    return []


@pytest.fixture
def failures():
    return []


class Controls:
    """What changed the engine, by whom; `away`: it cannot be recorded."""

    def __init__(self):
        self.seen, self.away = [], False

    async def control(self, who, scope):
        if self.away:
            raise GuardUnavailable("The store does not answer.")
        self.seen.append((who.key_id, scope["path"]))


@pytest.fixture
def controls():
    return Controls()


@pytest.fixture
def app(engine, records, failures, controls):
    routes = [
        Route(CHAT, engine.chat, methods=["POST"]),
        Route("/v1/responses", engine.respond, methods=["POST"]),
        Route("/v1/responses/{response_id}", engine.stored),
        Route("/sleep", engine.stored, methods=["POST"]),
        Route("/secret", engine.stored),
    ]
    app = Starlette(routes=routes)
    app.state.lethe = GateServices(
        require=knowing(KEYS),
        tenants=TenantHeader(GatewaySettings()),
        control=controls.control,
        admit=lambda caller: Lease(),
        record=lambda context, status, now: records.append(SimpleNamespace(context=context, status=status)),
        failed=failures.append,
        open_inference=False,
        two_sides=False,
        max_body_bytes=1_000,
        max_n=4,
        judge_tools=engine.judge_tools,
        still=engine.still,
    )
    app.add_middleware(Gate)
    return app


@pytest.fixture
async def client(app):
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://lethe", headers={"authorization": "Bearer inf"}
    ) as c:
        yield c


def matched(reply=None):
    return Admission(Decision("refuse" if reply else "intervene", 1), Plan(reply=reply))


async def test_a_path_outside_the_table_is_not_found_although_the_application_has_it(client):
    response = await client.get("/secret")
    assert response.status_code == 404 and response.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        (CHAT, None, 401),
        (CHAT, "Bearer wrong", 401),
        (CHAT, "Bearer inf", 200),
        (CHAT, "Bearer adm", 200),
        ("/sleep", "Bearer inf", 403),
        ("/sleep", None, 401),
    ],
)
async def test_who_gets_in(client, path, key, status):
    headers = {"authorization": key} if key else {"authorization": ""}
    response = await client.post(path, json=BODY, headers=headers)
    assert response.status_code == status
    if status != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_open_inference_takes_placeholder_keys_and_never_opens_control(app, client):
    app.state.lethe.open_inference = True
    assert (await client.post(CHAT, json=BODY, headers={"authorization": "Bearer EMPTY"})).status_code == 200
    assert (await client.post("/sleep", headers={"authorization": "Bearer EMPTY"})).status_code == 401


async def test_anthropic_clients_send_their_key_in_another_header(client):
    response = await client.post(CHAT, json=BODY, headers={"authorization": "", "x-api-key": "inf"})
    assert response.status_code == 200
    assert (
        await client.post(CHAT, json=BODY, headers={"x-api-key": "wrong", "authorization": "Bearer inf"})
    ).status_code == 200


async def test_clean_answers_pass_untouched_with_the_decision_id(client, engine, records):
    engine.admission = Admission(Decision("allow", 1))
    response = await client.post(CHAT, json=BODY, headers={"x-request-id": "abc"})
    assert response.json() == ANSWER
    assert response.headers["x-lethe-decision-id"] == records[0].context.decision_id
    assert response.headers["x-request-id"] == "abc"
    assert response.headers["cache-control"] == "no-store"
    assert records[0].context.tenant == "acme" and records[0].status == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("action", ["allow", "intervene", "refuse"])
async def test_no_answer_may_be_stored_on_its_way(client, engine, action, stream):
    engine.admission = Admission(Decision(action, 1), Plan(reply=Reply() if action == "refuse" else None))
    response = await client.post(CHAT, json={**BODY, "stream": stream})
    assert response.status_code == 200 and response.headers.get_list("cache-control") == ["no-store"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("change", "status"),
    [({"admission": "error"}, 400), ({"failure": GuardUnavailable("Try again.")}, 503), ({}, 401)],
)
async def test_no_error_may_be_stored_on_its_way(client, engine, change, status, stream):
    if "admission" in change:
        change = {"admission": matched(Reply("error", "Not here."))}
    vars(engine).update(change)
    headers = {"authorization": ""} if status == 401 else {}
    response = await client.post(CHAT, json={**BODY, "stream": stream}, headers=headers)
    assert response.status_code == status
    assert response.headers.get_list("cache-control") == ["no-store"]
    assert response.headers.get_list("retry-after") == (["1"] if status == 503 else [])


@pytest.mark.parametrize("query", ["", "?stream=true"])
async def test_a_stored_answer_may_not_be_stored_on_its_way(client, query):
    made = (await client.post("/v1/responses", json={"input": "who?"})).json()["id"]
    response = await client.get(f"/v1/responses/{made}{query}")
    assert response.status_code == 200 and response.headers.get_list("cache-control") == ["no-store"]


async def test_matched_answers_carry_no_likelihoods(client, engine):
    engine.admission = matched()
    assert (await client.post(CHAT, json=BODY)).json()["choices"][0]["logprobs"] is None
    stream = await client.post(CHAT, json={**BODY, "stream": True})
    assert json.loads(stream.text.split("\n")[0][5:])["choices"][0]["logprobs"] is None
    assert stream.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reply_in_the_place_of_an_answer_shows_no_likelihoods(client, engine, stream):
    engine.admission, engine.replaced = Admission(Decision("allow", 1)), True
    response = await client.post(CHAT, json={**BODY, "stream": stream})
    assert response.status_code == 200 and '"logprobs":null' in response.text.replace(" ", "")


@pytest.mark.parametrize("stream", [False, True])
async def test_the_reply_style_error_is_a_400(client, engine, stream):
    engine.admission = matched(Reply("error", "Not here."))
    response = await client.post(CHAT, json={**BODY, "stream": stream})
    assert response.status_code == 400
    assert response.json()["error"] == {
        "message": "Not here.",
        "type": "invalid_request_error",
        "param": None,
        "code": "content_filter",
    }


async def test_a_server_that_stops_sends_requests_to_another(app, client, engine):
    await app.state.lethe.door.close(0)
    response = await client.post(CHAT, json=BODY)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["error"]["code"] == "guard_unavailable" and not engine.bodies


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_guard_that_cannot_vouch_answers_503_and_no_text(client, engine, records, stream, crash):
    engine.failure, engine.crash = GuardUnavailable("Try again."), crash
    response = await client.post(CHAT, json={**BODY, "stream": stream})
    assert response.status_code == 503 and response.headers["retry-after"] == "1"
    assert "hi" not in response.text and records[0].status == 503


@pytest.mark.parametrize(
    ("content", "status"),
    [(b"{", 400), (b"[]", 400), (b'{"messages":[]}', 400), (b'{"a":"' + b"x" * 2_000 + b'"}', 413)],
)
async def test_junk_is_a_4xx_and_never_reaches_the_application(client, engine, content, status):
    response = await client.post(CHAT, content=content)
    assert response.status_code == status and engine.bodies == []


async def test_a_body_of_unannounced_length_is_bounded_too(client, engine):
    async def chunks():
        for _ in range(10):
            yield b"x" * 200

    response = await client.post(CHAT, content=chunks())
    assert response.status_code == 413 and engine.bodies == []


async def test_stored_responses_belong_to_their_tenant(client, engine):
    made = (await client.post("/v1/responses", json={"input": "a", "request_id": "resp_stolen"})).json()["id"]
    assert made != "resp_stolen"
    assert (await client.get(f"/v1/responses/{made}")).status_code == 200
    rival = {"authorization": "Bearer other"}
    assert (await client.get(f"/v1/responses/{made}", headers=rival)).status_code == 404
    follow = {"input": "b", "previous_response_id": made}
    assert (await client.post("/v1/responses", json=follow, headers=rival)).status_code == 404
    assert (await client.post("/v1/responses", json=follow)).status_code == 200


async def test_stored_responses_are_judged_again_when_they_are_read(client, engine):
    made = (await client.post("/v1/responses", json={"input": "who?"})).json()["id"]
    read = (await client.get(f"/v1/responses/{made}")).json()
    assert (read["status"], read["output"][0]["content"][0]["text"]) == (
        "completed",
        "Jane was born in Vintry",
    )
    context, texts = engine.read_again
    assert context.messages[0].text == "who?" and "Jane was born in Vintry" in texts
    engine.forgotten = "Vintry"
    read = (await client.get(f"/v1/responses/{made}")).json()
    assert (read["status"], read["output"]) == ("incomplete", [])
    assert read["incomplete_details"] == {"reason": "content_filter"}
    assert (await client.get(f"/v1/responses/{made}?stream=true")).status_code == 400
    engine.forgotten = ""
    assert (await client.get(f"/v1/responses/{made}?stream=true")).status_code == 200


async def test_stored_responses_of_matched_requests_carry_no_likelihoods(client, engine):
    engine.admission = matched()
    made = (await client.post("/v1/responses", json={"input": "who?"})).json()["id"]
    engine.read_again = None
    assert (await client.get(f"/v1/responses/{made}")).json()["output"][0]["content"][0]["logprobs"] == []


TOOLS = [{"type": "function", "function": {"name": name}} for name in ("launch_rocket", "weather")]


async def test_the_application_never_sees_a_forgotten_tool_and_the_log_tells(client, engine, records):
    engine.forgotten_tool = "launch_rocket"
    engine.admission = Admission(Decision("allow", 1))
    response = await client.post(CHAT, json={**BODY, "tools": TOOLS})
    assert response.status_code == 200
    assert engine.bodies == [{**BODY, "tools": TOOLS[1:]}]
    context = records[0].context
    assert [match.target_id for match in context.withheld] == ["rocket"]
    assert not any("rocket" in aside for aside in context.asides)


async def test_a_choice_of_a_forgotten_tool_is_answered_with_400_and_recorded(client, engine, records):
    engine.forgotten_tool = "launch_rocket"
    response = await client.post(CHAT, json={**BODY, "tools": TOOLS, "tool_choice": TOOLS[0]})
    assert response.status_code == 400 and response.json()["error"]["param"] == "tool_choice"
    assert engine.bodies == [] and records[0].status == 400


async def test_without_a_forgotten_tool_the_body_passes_byte_by_byte(client, engine):
    body = {**BODY, "tools": TOOLS}
    await client.post(CHAT, json=body)
    assert engine.bodies == [body]


@pytest.fixture
def limiter(app):
    """Tenants may ask twice in a minute."""
    settings = TenantSettings(defaults=TenantLimits(requests_per_minute=2, tokens_per_minute=100))
    limiter = Limiter(settings, None, clock=lambda: 1_000_000.0)
    app.state.lethe.admit = limiter.admit
    return limiter


async def test_a_tenant_over_its_limit_gets_429_before_anything_is_read(client, engine, limiter, failures):
    for left in ("1", "0"):
        response = await client.post(CHAT, json=BODY)
        assert response.headers["x-ratelimit-remaining-requests"] == left
    response = await client.post(CHAT, content=b"junk", headers={"x-request-id": "r1"})
    assert (response.status_code, response.headers["retry-after"]) == (429, "30")
    assert response.json()["error"] == {
        "message": "The limit of 2 requests per minute is reached; try again in 30s.",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert response.headers["x-request-id"] == "r1"
    assert len(engine.bodies) == 2
    assert [error.status for error in failures] == [429]
    other = await client.post(CHAT, json=BODY, headers={"authorization": "Bearer other"})
    assert other.status_code == 200
    for _ in range(3):
        admin = await client.post(CHAT, json=BODY, headers={"authorization": "Bearer adm"})
        assert admin.status_code == 200 and "x-ratelimit-limit-requests" not in admin.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_a_matched_answer_shows_the_same_limits_as_any_other(client, engine, limiter, stream):
    clean = await client.post(CHAT, json={**BODY, "stream": stream})
    engine.admission = matched()
    found = await client.post(CHAT, json={**BODY, "stream": stream})
    names = [[name for name in r.headers if name.startswith("x-ratelimit")] for r in (clean, found)]
    assert names[0] == names[1] and len(names[0]) == 6
    assert found.headers["x-ratelimit-remaining-tokens"] == "100"


async def test_a_request_that_fails_gives_its_place_back(client, engine, app):
    limiter = Limiter(TenantSettings(defaults=TenantLimits(concurrent=1)), None)
    app.state.lethe.admit = limiter.admit
    engine.failure = GuardUnavailable("no")
    for _ in range(3):
        assert (await client.post(CHAT, json=BODY)).status_code == 503
        assert (await client.post(CHAT, content=b"{")).status_code == 400


async def test_engine_control_is_recorded_before_it_is_done(client, controls, engine):
    admin = {"authorization": "Bearer adm"}
    assert (await client.post("/sleep", headers=admin)).status_code == 200
    assert (await client.post("/sleep")).status_code == 403
    assert controls.seen == [("3", "/sleep")]
    controls.away = True
    assert (await client.post("/sleep", headers=admin)).status_code == 503


@pytest.mark.parametrize("leaves", [False, True])
async def test_a_client_that_leaves_before_its_answer_is_noted(app, engine, records, leaves):
    engine.admission, engine.leaves = matched(), leaves
    said = [
        {"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive():
        return said.pop(0)

    async def send(message):
        pass

    headers = [(b"authorization", b"Bearer inf"), (b"content-type", b"application/json")]
    await app(
        {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "query_string": b""},
        receive,
        send,
    )
    assert [event["event"] for event in records[0].context.events] == (["left"] if leaves else [])
