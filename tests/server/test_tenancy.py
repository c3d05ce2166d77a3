"""The tenant in a gateway's signed header: for that request, for a minute, beside a key that may."""

from __future__ import annotations

import json

import httpx
import pytest

from guard.config import GatewaySettings
from server.auth import Principal
from server.tenancy import TenantHeader, signature_of
from tests.guard.register_fakes import Clock
from tests.server.test_gate import (  # noqa: F401 - fixtures
    BODY,
    CHAT,
    app,
    controls,
    engine,
    failures,
    knowing,
    records,
)

SECRET = "the-secret-of-gateway-and-server-0"
HEADER = "x-lethe-tenant"
KEYS = {
    "Bearer gate": Principal("inference", None, "g", speaks=True),
    "Bearer acme": Principal("inference", "acme", "a"),
    "Bearer free": Principal("inference", None, "f"),
    "Bearer adm": Principal("admin", None, "x"),
}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def client(app, clock):  # noqa: F811
    app.state.lethe.require = knowing(KEYS)
    app.state.lethe.tenants = TenantHeader(GatewaySettings(secret=SECRET), clock)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://lethe") as http:
        yield http


@pytest.fixture
def send(client, clock):
    async def post(key="gate", header="sign", tenant="acme", path=CHAT, **wrong):
        signed = {"method": "POST", "path": path, "seconds": int(clock.now), "encoded": tenant, **wrong}
        signed["path"] = signed.pop("signed_path", path)
        secret = signed.pop("secret", SECRET).encode()
        if header == "sign":
            header = f"{tenant};{int(clock.now)};{signature_of(secret, **signed)}"
        headers = [("authorization", f"Bearer {key}"), ("content-type", "application/json")]
        for value in [header] if isinstance(header, str) else header or []:
            headers.append((HEADER, value))
        return await client.post(path, content=json.dumps(BODY), headers=headers)

    return post


async def test_a_signed_tenant_is_the_requests_tenant(send, app, engine, records):  # noqa: F811
    seen = []
    admit = app.state.lethe.admit

    def admitting(payer):
        seen.append((payer.tenant, payer.account))
        return admit(payer)

    app.state.lethe.admit = admitting
    assert (await send()).status_code == 200
    assert (await send(tenant="b%C3%BCro%20%3B1")).status_code == 200
    assert seen == [("acme", "tenant:acme"), ("büro ;1", "tenant:büro ;1")]
    assert len(engine.bodies) == 2


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"secret": "another-secret-of-thirty-two-chars"}, 401),
        ({"encoded": "rival"}, 401),
        ({"method": "GET"}, 401),
        ({"signed_path": "/v1/completions"}, 401),
        ({"path": "/v1/responses", "signed_path": CHAT}, 401),
        ({"seconds": 5}, 401),
        ({"header": None}, 400),
        ({"header": ""}, 400),
        ({"header": "acme"}, 400),
        ({"header": "acme;1;00"}, 400),
        ({"header": ["acme;1;00", "acme;1;00"]}, 400),
        ({"tenant": "%00"}, 400),
        ({"tenant": "%61cme"}, 400),
        ({"tenant": "%ff"}, 400),
        ({"tenant": "b%c3%bcro"}, 400),
        ({"key": "acme"}, 403),
        ({"key": "free"}, 403),
        ({"key": "adm"}, 403),
        ({"key": "nobody"}, 401),
    ],
)
async def test_whatever_is_not_signed_for_this_request_is_refused(send, engine, wrong, status):  # noqa: F811
    response = await send(**wrong)
    assert response.status_code == status, response.text
    assert SECRET not in response.text
    assert engine.bodies == []


async def test_a_signature_is_good_for_a_minute_each_way(send, clock):
    for age, status in ((60, 200), (61, 401), (-60, 200), (-61, 401)):
        now, clock.now = clock.now, clock.now + age
        signed = f"acme;{int(now)};{signature_of(SECRET.encode(), 'POST', CHAT, int(now), 'acme')}"
        assert (await send(header=signed)).status_code == status
        clock.now = now


async def test_a_signature_repeated_with_two_headers_is_refused(send, clock):
    signed = f"acme;{int(clock.now)};{signature_of(SECRET.encode(), 'POST', CHAT, int(clock.now), 'acme')}"
    assert (await send(header=signed)).status_code == 200
    assert (await send(header=[signed, signed])).status_code == 400


async def test_other_keys_go_on_without_the_header(send):
    for key in ("acme", "free", "adm"):
        assert (await send(key=key, header=None)).status_code == 200


async def test_without_a_secret_the_header_is_refused_and_never_ignored(send, app):  # noqa: F811
    app.state.lethe.tenants = TenantHeader(GatewaySettings())
    for key in ("gate", "acme", "adm"):
        assert (await send(key=key)).status_code == 400
    assert (await send(key="gate", header=None)).status_code == 400  # it cannot name a tenant here
    assert (await send(key="acme", header=None)).status_code == 200
    app.state.lethe.open_inference = True
    assert (await send(key="nobody")).status_code == 400
    assert (await send(key="nobody", header=None)).status_code == 200


async def test_an_open_server_takes_no_tenant_from_nobody(send, app):  # noqa: F811
    app.state.lethe.open_inference = True
    assert (await send(key="nobody")).status_code == 403


async def test_routes_that_are_not_for_inference_refuse_the_header(client):
    for method, path in (("GET", "/admin/v1/targets"), ("POST", "/sleep"), ("GET", "/metrics")):
        response = await client.request(method, path, headers={HEADER: "x", "authorization": "Bearer adm"})
        assert response.status_code == 400
