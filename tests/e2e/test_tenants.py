"""What a platform team sets up: an admin port, tenants with limits, a gateway that names them; on a real engine."""

from __future__ import annotations

import hmac
import sqlite3
import time
from contextlib import closing

import httpx
import openai
import pytest

from evals import serve
from tests.e2e.conftest import MODEL, NAME

pytestmark = pytest.mark.engine

PERSON = "limir-yarley"
SECRET = "the-secret-of-gateway-and-server-0"
CHAT = "/v1/chat/completions"
CONFIG = f"""
tenants:
  limits:
    small: {{requests_per_minute: 3}}
    metered: {{tokens_per_day: 1000000}}
    spent: {{tokens_per_day: 30}}
auth:
  gateway: {{secret: {SECRET}}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The server, its admin API on its own port, and its database."""
    folder, port = tmp_path_factory.mktemp("tenants"), serve.free_port()
    (folder / "lethe.yaml").write_text(CONFIG)
    options = ("--config", str(folder / "lethe.yaml"), "--admin-port", str(port))
    with (
        serve.guarded(
            str(MODEL), folder / "server.log", folder / "data", name=NAME, options=options
        ) as server,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}/admin/v1",
            headers={"Authorization": f"Bearer {server.admin_key}"},
            timeout=120,
        ) as admin,
    ):
        yield server, admin, folder / "data" / "lethe.db"


@pytest.fixture
def client(place):
    """An OpenAI client with a new key of a tenant."""
    server, admin, _ = place

    def of(tenant):
        key = admin.post("/keys", json={"role": "inference", "tenant": tenant}).json()["key"]
        return openai.OpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0, timeout=120)

    return of


def ask(client, text="Tell me about the sea.", **options):
    turns = [{"role": "user", "content": text}]
    options = {"temperature": 0, "max_tokens": 16, **options}
    return client.chat.completions.create(model=NAME, messages=turns, **options)


def test_each_port_has_its_side_and_probes_are_on_both(place):
    server, admin, _ = place
    for path in ("/admin/v1/status", "/metrics", "/console", "/server_info"):
        answer = httpx.get(server.base_url + path, headers=admin.headers)
        assert answer.status_code == 404, path
    operators = str(admin.base_url).removesuffix("/admin/v1/")
    for path in ("/v1/models", CHAT):
        assert httpx.get(operators + path, headers=admin.headers).status_code == 404
    assert admin.get("/status").json()["ready"] is True
    assert "lethe_ready 1.0" in httpx.get(operators + "/metrics").text
    httpx.post(operators + "/reset_prefix_cache", headers=admin.headers)
    assert admin.get("/audit").json()["data"][0]["subject"] == "/reset_prefix_cache"
    for base in (server.base_url, operators):
        assert httpx.get(base + "/readyz").status_code == 200


def test_a_tenant_over_its_limit_gets_what_openais_client_knows_and_others_feel_nothing(client):
    small, other = client("small"), client("other")
    for _ in range(3):
        ask(small)
    with pytest.raises(openai.RateLimitError) as caught:
        ask(small)
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 20
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    ask(other)
    ask(client("other"))


def test_tokens_cost_what_usage_says_matched_or_not_streamed_or_not(place, client, targets):
    _, admin, database = place
    metered, told = client("metered"), 0
    admin.put(f"/targets/{PERSON}", json={**targets[PERSON], "intervention": {"method": "guard_prompt"}})
    name = targets[PERSON]["name"]
    for text in ("Tell me about the sea.", f"Where was {name} born?"):
        told += ask(metered, text).usage.total_tokens
        told += ask(metered, text, n=2, temperature=1).usage.total_tokens
        stream = ask(metered, text, stream=True, stream_options={"include_usage": True})
        told += [chunk for chunk in stream if chunk.usage][-1].usage.total_tokens
        answer = metered.responses.create(model=NAME, input=text, max_output_tokens=16, temperature=0)
        told += answer.usage.total_tokens
    time.sleep(2.5)
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT sum(tokens) FROM usage WHERE account = 'tenant:metered'"
        assert connection.execute(query).fetchone() == (told,)


def test_a_spent_day_is_told_as_openai_does(client):
    spent = client("spent")
    ask(spent)
    ask(spent)
    with pytest.raises(openai.RateLimitError) as caught:
        ask(spent)
    assert caught.value.code == "insufficient_quota"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_a_gateway_names_the_tenant(place, targets):
    server, admin, _ = place
    scoped = {**targets[PERSON], "scope": {"tenants": ["acme"]}, "reply": {"style": "content_filter"}}
    assert admin.put(f"/targets/{PERSON}", json=scoped).status_code in (200, 201)
    key = admin.post("/keys", json={"role": "inference", "speaks_for_tenants": True}).json()["key"]
    name = targets[PERSON]["name"]
    turns = [{"role": "user", "content": f"Where was {name} born?"}]
    body = {"model": NAME, "messages": turns, "max_tokens": 8}

    def send(tenant, path=CHAT):
        text = f"POST\n{path}\n{(now := int(time.time()))}\n{tenant}"
        signature = hmac.new(SECRET.encode(), text.encode(), "sha256").hexdigest()
        headers = {"Authorization": f"Bearer {key}", "x-lethe-tenant": f"{tenant};{now};{signature}"}
        return httpx.post(server.base_url + CHAT, json=body, headers=headers, timeout=120)

    reasons = [send(tenant).json()["choices"][0]["finish_reason"] for tenant in ("acme", "rival")]
    assert reasons[0] == "content_filter" != reasons[1]
    assert send("acme", path="/v1/completions").status_code == 401
    plain = httpx.post(server.base_url + CHAT, json=body, headers={"Authorization": f"Bearer {key}"})
    assert plain.status_code == 400


def test_a_rollback_is_enforced_and_in_the_trail(place, client, targets):
    _, admin, _ = place
    admin.delete(f"/targets/{PERSON}")
    name = targets[PERSON]["name"]
    admin.put(f"/targets/{PERSON}", json={"name": name, "reply": {"style": "content_filter"}})
    then = admin.get("/snapshots").json()["current"]
    admin.delete(f"/targets/{PERSON}")
    asking = client("acme")
    assert ask(asking, f"Where was {name} born?").choices[0].finish_reason != "content_filter"
    assert admin.post(f"/snapshots/{then}/rollback").json()["created"] == [PERSON]
    assert ask(asking, f"Where was {name} born?").choices[0].finish_reason == "content_filter"
    admin.delete(f"/targets/{PERSON}", params={"purge": "true"})
    assert admin.post(f"/snapshots/{then}/rollback").json()["created"] == []
    assert ask(asking, f"Where was {name} born?").choices[0].finish_reason != "content_filter"
    actions = [row["action"] for row in admin.get("/audit", params={"limit": 8}).json()["data"]]
    assert "targets.rollback" in actions and "targets.purge" in actions
    assert admin.get("/audit/verify").json()["valid"] is True
