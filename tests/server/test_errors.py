"""Every error in one shape, whoever raised it."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from guard.errors import GuardUnavailable, TargetRefused
from server import errors


class Body(BaseModel):
    count: int


@pytest.fixture
async def http():
    app = FastAPI()
    errors.install(app)
    raised = {
        "refused": TargetRefused("Too common.", param="name", details={"rate": 0.2, "message": "no"}),
        "unavailable": GuardUnavailable("Try again."),
        "http": HTTPException(418, "short and stout"),
        "bug": RuntimeError("the secret is 42"),
    }

    @app.get("/raise/{name}")
    async def fail(name: str) -> None:
        raise raised[name]

    @app.post("/body")
    async def body(body: Body) -> None: ...

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://lethe") as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "code"),
    [
        ("GET", "/raise/refused", 422, "invalid_request_error", "target_refused"),
        ("GET", "/raise/unavailable", 503, "server_error", "guard_unavailable"),
        ("GET", "/raise/http", 418, "invalid_request_error", "bad_request"),
        ("GET", "/raise/bug", 500, "server_error", "internal_error"),
        ("GET", "/nowhere", 404, "invalid_request_error", "not_found"),
        ("GET", "/body", 405, "invalid_request_error", "method_not_allowed"),
        ("POST", "/body", 400, "invalid_request_error", "bad_request"),
    ],
)
async def test_every_error_has_openais_shape(http, method, path, status, kind, code):
    response = await http.request(method, path)
    assert response.status_code == status
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert (error["type"], error["code"]) == (kind, code)
    assert {"message", "param"} <= error.keys()
    assert "42" not in response.text


async def test_details_stand_beside_the_four_fields_and_never_replace_them(http):
    error = (await http.get("/raise/refused")).json()["error"]
    assert (error["rate"], error["message"], error["param"]) == (0.2, "Too common.", "name")


@pytest.mark.parametrize(
    ("content", "param", "message"),
    [
        (b"{", None, "The body is not valid JSON."),
        (b"{}", "count", "count is required."),
        (b'{"count": "x"}', "count", "count: input should be a valid integer"),
    ],
)
async def test_a_wrong_body_is_told_in_one_sentence(http, content, param, message):
    error = (await http.post("/body", content=content, headers={"Content-Type": "application/json"})).json()[
        "error"
    ]
    assert error["param"] == param
    assert error["message"].startswith(message)
