"""Who may call what: every route of the admin API, every role."""

from __future__ import annotations

from dataclasses import fields

import pytest

from server.admin import PREFIX, Services, admin_router
from server.auth import PERMISSIONS, ROLES, Permission
from tests.server.admin_app import admin

NEEDS = {
    ("GET", "/targets"): Permission.READ_TARGETS,
    ("POST", "/targets"): Permission.WRITE_TARGETS,
    ("GET", "/targets/{id}"): Permission.READ_TARGETS,
    ("PUT", "/targets/{id}"): Permission.WRITE_TARGETS,
    ("PATCH", "/targets/{id}"): Permission.WRITE_TARGETS,
    ("DELETE", "/targets/{id}"): Permission.WRITE_TARGETS,
    ("GET", "/targets/{id}/evidence"): Permission.READ_DECISIONS,
    ("POST", "/targets/validate"): Permission.WRITE_TARGETS,
    ("POST", "/targets/import"): Permission.WRITE_TARGETS,
    ("GET", "/targets/export"): Permission.READ_TARGETS,
    ("GET", "/snapshots"): Permission.READ_TARGETS,
    ("POST", "/snapshots/{number}/rollback"): Permission.WRITE_TARGETS,
    ("POST", "/check"): Permission.CHECK,
    ("POST", "/score"): Permission.SCORE,
    ("GET", "/decisions"): Permission.READ_DECISIONS,
    ("GET", "/decisions/{id}"): Permission.READ_DECISIONS,
    ("GET", "/audit"): Permission.READ_AUDIT,
    ("GET", "/audit/verify"): Permission.READ_AUDIT,
    ("GET", "/artifacts"): Permission.READ_ARTIFACTS,
    ("POST", "/artifacts"): Permission.ENGINE,
    ("DELETE", "/artifacts/{digest}"): Permission.ENGINE,
    ("GET", "/jobs"): Permission.READ_JOBS,
    ("POST", "/jobs"): Permission.JOBS,
    ("GET", "/jobs/{id}"): Permission.READ_JOBS,
    ("DELETE", "/jobs/{id}"): Permission.JOBS,
    ("GET", "/status"): Permission.READ_STATUS,
    ("GET", "/keys"): Permission.KEYS,
    ("POST", "/keys"): Permission.KEYS,
    ("POST", "/keys/{id}/rotate"): Permission.KEYS,
    ("DELETE", "/keys/{id}"): Permission.KEYS,
}
READS = {
    Permission.READ_TARGETS,
    Permission.READ_DECISIONS,
    Permission.READ_ARTIFACTS,
    Permission.READ_JOBS,
    Permission.READ_STATUS,
}


def routes() -> list[tuple[str, str]]:
    nothing = Services(*[None] * len(fields(Services)))  # type: ignore[arg-type]
    found = admin_router(nothing).routes
    return [(method, route.path.removeprefix(PREFIX)) for route in found for method in sorted(route.methods)]


@pytest.fixture
def api(tmp_path):
    with admin(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """For the many tests that leave nothing behind."""
    with admin(tmp_path_factory.mktemp("shared")) as running:
        yield running


def test_the_table_of_the_test_is_complete():
    assert sorted(routes()) == sorted(NEEDS)


@pytest.mark.parametrize(("method", "path"), routes())
def test_a_route_answers_the_roles_that_may_and_no_others(shared, method, path):
    answered = {}
    for role in ROLES:
        response = shared.http.request(
            method, path.replace("{id}", "x"), headers=shared.key(role), content=b"{"
        )
        answered[role] = response.status_code
        if response.status_code == 403:
            assert response.json()["error"]["type"] == "permission_error"
    for role, status in answered.items():
        allowed = NEEDS[method, path] in PERMISSIONS[role]
        assert (status != 403) == allowed, (role, status)
        assert status != 500


@pytest.mark.parametrize(("method", "path"), routes())
def test_nobody_gets_in_without_a_key(shared, method, path):
    for header in ("", "Bearer", "Bearer lk_unknown", "Basic YTpi", "lk_unknown"):
        headers = {"Authorization": header}
        response = shared.http.request(method, path.replace("{id}", "x"), content=b"{", headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["WWW-Authenticate"] == "Bearer"


def test_no_header_at_all_is_no_key_either(shared):
    request = shared.http.build_request("GET", "/targets")
    del request.headers["Authorization"]
    assert shared.http.send(request).status_code == 401


def test_the_roles_are_those_of_the_contract():
    assert PERMISSIONS["inference"] == {Permission.INFER}
    assert PERMISSIONS["auditor"] == READS | {
        Permission.READ_AUDIT,
        Permission.CHECK,
        Permission.GUARDRAIL,
        Permission.SCORE,
        Permission.METRICS,
    }
    assert PERMISSIONS["gateway"] == {Permission.GUARDRAIL}
    assert PERMISSIONS["operator"] >= {Permission.READ_TARGETS, Permission.WRITE_TARGETS, Permission.JOBS}
    assert not PERMISSIONS["operator"] & {Permission.INFER, Permission.KEYS, Permission.ENGINE}
    assert PERMISSIONS["admin"] == set(Permission)


def test_a_key_of_a_tenant_is_confined_to_it(api):
    plan = {"name": "Acme Plan", "scope": {"tenants": ["acme"]}}
    api.http.put("/targets/plan", json=plan)
    api.http.put("/targets/jane", json={"name": "Jane Doe"})
    auditor, admin_of = api.key("auditor", "acme"), api.key("admin", "acme")
    assert [t["id"] for t in (api.http.get("/targets", headers=auditor)).json()["data"]] == ["plan"]
    assert (api.http.get("/targets/jane", headers=auditor)).status_code == 404
    assert (api.http.get("/keys", headers=admin_of)).status_code == 403
    assert (api.http.post("/artifacts", json={"digest": "0" * 64}, headers=admin_of)).status_code == 403
    assert (api.http.delete(f"/artifacts/{'0' * 64}", headers=admin_of)).status_code == 403
    other = api.http.post("/check", json={"prompt": "x", "tenant": "rival"}, headers=auditor)
    assert other.status_code == 403
    mine = api.http.post("/check", json={"prompt": "x"}, headers=auditor)
    assert mine.json()["asked"]["tenant"] == "acme"
    assert api.http.get("/status").json()["targets"]["active"] == 2
    told = api.http.get("/status", headers=auditor).json()
    assert told["targets"]["active"] == 1 and told["drift"] is None
