"""Who did what through the admin API."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from guard.errors import GuardUnavailable
from guard.store.schema import audit
from server.admin import PREFIX
from server.admin.acts import ACTS, ASKING
from tests.guard.register_fakes import COMMON, POISON
from tests.server.admin_app import admin
from tests.server.test_admin_roles import routes

JANE = {"name": "Jane Doe"}


@pytest.fixture
def api(tmp_path):
    with admin(tmp_path) as running:
        yield running


def acts(api, **params):
    response = api.http.get("/audit", params=params)
    assert response.status_code == 200, response.text
    return [(row["action"], row["outcome"], row["target"]) for row in reversed(response.json()["data"])]


def test_every_route_that_may_change_something_is_an_act():
    writing = {route for route in routes() if route[0] != "GET"}
    assert writing == ACTS.keys() | ASKING
    assert not ACTS.keys() & ASKING


def test_writes_are_told_with_key_role_request_and_source(api):
    key, token = api.authenticator.create("operator", "acme", None)
    headers = {"Authorization": f"Bearer {token}", "x-request-id": "req-7"}
    plan = {"name": "Acme Plan", "scope": {"tenants": ["acme"]}}
    assert api.http.put("/targets/plan", json=plan, headers=headers).status_code == 201
    (row, *_) = api.http.get("/audit").json()["data"]
    assert (row["key_id"], row["role"], row["tenant"]) == (key.id, "operator", "acme")
    assert (row["action"], row["target"], row["request_id"]) == ("targets.put", "plan", "req-7")
    assert row["source"] == "testclient" and row["time"].endswith("+00:00")
    assert row["snapshot"] == api.store.snapshot


def test_the_life_of_a_target_in_the_trail(api):
    api.http.post("/targets", json={**JANE, "id": "jane"})
    api.http.patch("/targets/jane", json={"tags": ["a"]})
    api.http.patch("/targets/jane", json={"tags": ["b"]}, headers={"If-Match": '"jane.1"'})
    api.http.post("/targets/import", content=b'{"name": "One"}\n{"name": "Two"}\n')
    api.http.delete("/targets/jane")
    api.http.delete("/targets/nobody", params={"purge": "yes"})
    assert acts(api) == [
        ("targets.create", "done", "jane"),
        ("targets.patch", "done", "jane"),
        ("targets.patch", "refused", "jane"),
        ("targets.import", "done", None),
        ("targets.delete", "done", "jane"),
        ("targets.purge", "refused", acts(api)[-1][2]),
    ]
    assert "nobody" not in str(acts(api))
    rows = api.http.get("/audit", params={"target": "jane", "outcome": "refused"}).json()["data"]
    assert [(row["status"], row["snapshot"]) for row in rows] == [(412, None)]
    imported = api.http.get("/audit", params={"action": "targets.import"}).json()["data"]
    assert imported[0]["detail"] == {"created": 2, "updated": 0}


def test_what_the_server_refuses_or_fails_on_is_told(api):
    api.http.put("/targets/the", json={"name": COMMON})
    api.http.put("/targets/bad", json={**JANE, "tags": [POISON]})
    api.http.put("/targets/bad", content=b"{")
    assert [outcome for _, outcome, _ in acts(api)] == ["refused", "failed", "refused"]


def test_questions_are_no_acts(api):
    api.http.get("/targets")
    api.http.post("/targets/validate", json=JANE)
    api.http.post("/check", json={"prompt": "x"})
    assert acts(api) == []


def test_whoever_is_not_let_in_is_counted_and_fills_no_table(api):
    for headers in ({"Authorization": "Bearer lk_wrong"}, api.key("auditor")):
        api.http.put("/targets/jane", json=JANE, headers=headers)
    assert [error.status for error in api.denied] == [401, 403]
    assert acts(api) == [("keys.create", "done", None)]  # the test's own


def test_a_key_is_named_and_its_token_is_not(api):
    made = api.http.post("/keys", json={"role": "auditor"}).json()
    api.http.delete(f"/keys/{made['id']}")
    found = api.http.get("/audit").json()["data"]
    assert [(row["action"], row["subject"]) for row in found] == [
        ("keys.revoke", made["id"]),
        ("keys.create", made["id"]),
    ]
    assert made["key"] not in str(found)


def test_what_is_not_in_the_store_is_recorded_before_it_is_done(api, monkeypatch):
    digest = "0" * 64
    assert api.http.delete(f"/artifacts/{digest}").status_code == 404
    assert acts(api) == [("artifacts.remove", "begun", None), ("artifacts.remove", "refused", None)]

    def away(*args, **options):
        raise GuardUnavailable("The store does not answer.", reason="store")

    asked = []
    monkeypatch.setattr(api.register, "remove_artifact", asked.append)
    monkeypatch.setattr(api.store.audit, "add", away)
    assert api.http.delete(f"/artifacts/{digest}").status_code == 503
    assert asked == []


def test_a_tenant_reads_what_its_own_keys_did(api):
    mine, other = api.key("operator", "acme"), api.key("operator", "rival")
    for tenant, headers in (("acme", mine), ("rival", other)):
        body = {"name": f"Plan of {tenant}", "scope": {"tenants": [tenant]}}
        assert api.http.put(f"/targets/{tenant}", json=body, headers=headers).status_code == 201
    auditor = api.key("auditor", "acme")
    found = api.http.get("/audit", headers=auditor).json()["data"]
    assert [(row["action"], row["target"]) for row in found] == [("targets.put", "acme")]
    assert api.http.get("/audit", params={"target": "rival"}, headers=auditor).json()["data"] == []
    assert api.http.get("/audit/verify", headers=auditor).status_code == 403


def test_the_trail_is_paged_and_verified(api):
    for number in range(3):
        api.http.put(f"/targets/t{number}", json={"name": f"Name {number}"})
    first = api.http.get("/audit", params={"limit": 2}).json()
    rest = api.http.get("/audit", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert [row["target"] for row in first["data"] + rest["data"]] == ["t2", "t1", "t0"]
    assert rest["next_cursor"] is None
    sound = api.http.get("/audit/verify").json()
    assert (sound["valid"], sound["rows"], sound["problem"]) == (True, 3, None)
    with api.store._database.write() as connection:
        connection.execute(sa.update(audit).where(audit.c.seq == 2).values(key_id="eve"))
    broken = api.http.get("/audit/verify").json()
    assert (broken["valid"], broken["problem"]) == (False, "Row 2 was changed.")
    assert PREFIX + "/audit/verify" in api.app.openapi()["paths"]
