"""Two ports, one process: who is on which side."""

from __future__ import annotations

import asyncio
import logging
import socket
from argparse import Namespace

import httpx
import pytest
import uvicorn

from guard.errors import StartupError
from server import listener
from server.listener import AdminSide
from server.routes import TABLE, Access
from tests.server.test_gate import BODY, CHAT, app, controls, engine, failures, records  # noqa: F401 - fixtures

ARGS = Namespace(
    ssl_keyfile=None,
    ssl_certfile=None,
    ssl_ca_certs=None,
    ssl_cert_reqs=0,
    ssl_ciphers="TLSv1",
)
PROBES = {"/livez", "/readyz", "/health", "/ping", "/version"}
KEY = {"authorization": "Bearer adm"}


@pytest.fixture
async def sides(app):  # noqa: F811
    """Clients of the inference port and of the admin port."""
    app.state.lethe.two_sides = True
    async with (
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://lethe", headers=KEY
        ) as inference,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(AdminSide(app)), base_url="http://lethe", headers=KEY
        ) as admin,
    ):
        yield inference, admin


def refused_by_the_gate(response) -> bool:
    return response.status_code == 404 and "There is no route" in response.text


@pytest.mark.parametrize("route", [r for r in TABLE if r.access is not Access.CLOSED], ids=lambda r: r.path)
async def test_every_route_is_on_one_side_and_probes_are_on_both(sides, route):
    path = route.path.replace("{response_id}", "resp_1")
    method = "POST" if route.generates else "GET"
    inference, admin = [
        not refused_by_the_gate(await side.request(method, path, json=BODY)) for side in sides
    ]
    if route.path in PROBES:
        assert inference and admin
    elif path.startswith(("/admin/", "/metrics", "/console")) or route.access is Access.CONTROL:
        assert (inference, admin) == (False, True)
    else:
        assert (inference, admin) == (True, False)


async def test_without_an_admin_port_everything_is_on_one(app, sides):  # noqa: F811
    app.state.lethe.two_sides = False
    assert (await sides[0].post(CHAT, json=BODY)).status_code == 200
    assert not refused_by_the_gate(await sides[0].get("/metrics"))


async def test_a_client_cannot_choose_its_side(sides):
    inference, _ = sides
    for headers in ({"lethe.side": "admin"}, {"host": "127.0.0.1:9000"}):
        assert refused_by_the_gate(await inference.get("/admin/v1/targets", headers=headers))


async def test_the_admin_port_is_served_beside_the_other_and_ends_with_it(app):  # noqa: F811
    app.state.lethe.two_sides = True
    sock = listener.bind("127.0.0.1", 0)
    address = f"http://127.0.0.1:{sock.getsockname()[1]}"
    async with httpx.AsyncClient(base_url=address, headers=KEY) as client:
        async with listener.listening(app, sock, ARGS):
            assert refused_by_the_gate(await client.post(CHAT, json=BODY))
            assert not refused_by_the_gate(await client.get("/metrics"))
        with pytest.raises(httpx.HTTPError):
            await client.get("/metrics")


async def test_only_the_gate_writes_lines_of_requests(app, capfd, caplog):  # noqa: F811
    app.state.lethe.two_sides = True
    sock = listener.bind("127.0.0.1", 0)
    handlers = logging.getLogger("uvicorn").handlers[:]
    with caplog.at_level("INFO"):
        async with (
            listener.listening(app, sock, ARGS),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{sock.getsockname()[1]}", headers=KEY) as client,
        ):
            await client.get("/admin/v1/targets/marzipan?marzipan")
    written = [record for record in caplog.records if record.name != "httpx"]
    (line,) = [record.getMessage() for record in written if record.name == "lethe.access"]
    assert line.startswith("GET /admin/v1/targets/{id} ")
    assert not any("marzipan" in record.getMessage() for record in written)
    assert "marzipan" not in "".join(capfd.readouterr()) and logging.getLogger("uvicorn").handlers == handlers


async def test_signals_stay_those_of_the_inference_listener(app):  # noqa: F811
    import signal

    before = signal.getsignal(signal.SIGTERM)
    async with listener.listening(app, listener.bind("127.0.0.1", 0), ARGS):
        await asyncio.sleep(0.1)
        assert signal.getsignal(signal.SIGTERM) is before
    assert issubclass(listener._Server, uvicorn.Server)


def test_a_taken_port_is_told_in_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(StartupError) as caught:
        listener.bind("127.0.0.1", taken.getsockname()[1])
    assert "server.admin_port" in caught.value.message and caught.value.message.endswith(".")
