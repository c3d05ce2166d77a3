"""The admin API over HTTP: shapes, statuses, headers, and what it makes of junk."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from guard.replica import Laggard
from guard.store.decisions import Record
from tests.guard.register_fakes import COMMON, POISON, matched
from tests.server.admin_app import admin

JANE = {"name": "Jane Doe"}


@pytest.fixture
def api(tmp_path):
    with admin(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """For the many tests that leave nothing behind."""
    with admin(tmp_path_factory.mktemp("shared")) as running:
        yield running


def error(response) -> dict:
    body = response.json()
    assert body.keys() == {"error"}
    assert {"message", "type", "param", "code"} <= body["error"].keys()
    assert body["error"]["message"].endswith((".", "?"))
    return body["error"]


def test_the_life_of_a_target(api):
    made = api.http.put("/targets/jane", json=JANE)
    assert (made.status_code, made.headers["ETag"]) == (201, '"jane.1"')
    assert made.headers["Cache-Control"] == "no-store"
    read = api.http.get("/targets/jane")
    assert (read.status_code, read.headers["ETag"], read.json()) == (200, '"jane.1"', made.json())
    assert {"state", "version", "created_at", "updated_at", "calibration", "artifacts"} <= read.json().keys()
    replaced = api.http.put("/targets/jane", json=read.json(), headers={"If-Match": '"jane.1"'})
    assert (replaced.status_code, replaced.headers["ETag"]) == (200, '"jane.2"')
    late = api.http.patch("/targets/jane", json={"tags": ["a"]}, headers={"If-Match": '"jane.1"'})
    assert (late.status_code, error(late)["code"]) == (412, "precondition_failed")
    patched = api.http.patch("/targets/jane", json={"tags": ["a"]}, headers={"If-Match": '"jane.2"'})
    assert (patched.status_code, patched.json()["tags"]) == (200, ["a"])
    assert matched(api.register, "Jane Doe") == {"jane"}
    gone = api.http.delete("/targets/jane", params={"purge": "true"})
    assert (gone.status_code, gone.json()) == (200, {"id": "jane", "deleted": True, "purged": True})
    assert (api.http.get("/targets/jane")).status_code == 404
    assert matched(api.register, "Jane Doe") == set()


def test_post_makes_a_target_and_says_where(api):
    made = api.http.post("/targets", json=JANE)
    assert (made.status_code, made.headers["Location"]) == (201, "/admin/v1/targets/jane-doe")
    taken = api.http.post("/targets", json={**JANE, "id": "jane-doe"})
    assert (taken.status_code, error(taken)["code"]) == (409, "already_exists")


def test_lists_are_paged_by_an_opaque_cursor(api):
    for name in ("a", "b", "c"):
        api.http.put(f"/targets/{name}", json={"name": f"Name {name}", "tags": [name]})
    first = (api.http.get("/targets", params={"limit": 2})).json()
    assert [t["id"] for t in first["data"]] == ["a", "b"]
    rest = (api.http.get("/targets", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert ([t["id"] for t in rest["data"]], rest["next_cursor"]) == (["c"], None)
    tagged = (api.http.get("/targets", params={"tag": "b", "state": "active"})).json()
    assert [t["id"] for t in tagged["data"]] == ["b"]


def test_a_refused_target_is_told_with_its_rate(api):
    refused = api.http.put("/targets/the", json={"name": COMMON})
    assert refused.status_code == 422
    assert (error(refused)["param"], error(refused)["rate"]) == ("name", 0.31)
    validated = (api.http.post("/targets/validate", json={"name": COMMON})).json()
    assert (validated["valid"], validated["problems"][0]["rate"]) == (False, 0.31)
    for forced in (
        api.http.put("/targets/the", json={"name": COMMON, "force": True}),
        api.http.put("/targets/that", json={"name": COMMON}, params={"force": "true"}),
    ):
        assert forced.status_code == 201


JUNK = [b"", b"{", b"[]", b'"x"', b"null", b"\xff", b'{"name": NaN}', b'{"name": "\\ud800"}', b"[" * 100_000]
WRONG = [
    ({}, "name"),
    ({"name": 5}, "name"),
    ({"name": ""}, "name"),
    ({"name": "a", "alias": []}, "alias"),
    ({"name": "a", "metadata": 5}, "metadata"),
    ({"name": "a", "answers": ["x"]}, "answers"),
    ({"name": "a", "expires_at": "soon"}, "expires_at"),
    ({"name": "a", "threshold": {}}, "threshold"),
    ({"name": "a", "scope": {"tenants": "acme"}}, "scope.tenants"),
    ({"name": "a", "intervention": {"methd": "refusal"}}, "intervention.methd"),
]


@pytest.mark.parametrize("body", JUNK)
@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/targets/x"), ("POST", "/targets"), ("POST", "/check"), ("POST", "/keys")]
)
def test_junk_is_a_400_and_nothing_is_lost(shared, method, path, body):
    shared.http.put("/targets/jane", json=JANE)
    response = shared.http.request(method, path, content=body)
    assert (response.status_code, error(response)["type"]) == (400, "invalid_request_error")
    assert matched(shared.register, "Jane Doe") == {"jane"}


@pytest.mark.parametrize(("body", "field"), WRONG)
def test_a_wrong_field_is_named(shared, body, field):
    response = shared.http.put("/targets/x", json=body)
    assert response.status_code == 400
    assert error(response)["param"] == field


@pytest.mark.parametrize(
    "path",
    [
        "/targets?limit=0",
        "/targets?limit=x",
        "/targets?cursor=***",
        "/targets?state=odd",
        "/decisions?action=odd",
        "/decisions?since=soon",
        "/decisions?cursor=eA",
        "/decisions?limit=1001",
    ],
)
def test_a_wrong_parameter_is_named(shared, path):
    response = shared.http.get(path)
    assert response.status_code == 400
    assert error(response)["param"] == path.split("?")[1].split("=")[0]


def test_an_unexpected_failure_tells_the_client_nothing(api):
    response = api.http.put("/targets/x", json={**JANE, "tags": [POISON]})
    assert response.status_code == 500
    assert "encoder" not in error(response)["message"]


def test_import_and_export(api):
    content = json.dumps(JANE) + "\r\n\r\n" + json.dumps({"nam": 1}) + "\n"
    result = (api.http.post("/targets/import", content=content)).json()
    assert (result["created"], result["updated"]) == (1, 0)
    assert result["rejected"] == [{"line": 3, "error": "There is no field 'nam'; did you mean 'name'?"}]
    exported = api.http.get("/targets/export")
    assert [json.loads(line)["id"] for line in exported.text.splitlines()] == ["jane-doe"]
    again = (api.http.post("/targets/import?atomic=true", content=exported.content)).json()
    assert again == {"created": 0, "updated": 1, "rejected": []}


def test_check_passes_on_what_it_understood(api):
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "tenant": "acme",
        "tools": [{"type": "function"}],
    }
    assert (api.http.post("/check", json=body)).json()["asked"] == body


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": [{"role": "user"}]},
        {"messages": [{"content": "x"}]},
        {"messages": ["x"]},
        {"messages": [{"role": "user", "content": 5}]},
        {"prompt": "x", "messages": [{"role": "user", "content": "x"}]},
        {"prompt": ""},
        {"prompt": "x", "temperature": 1},
    ],
)
def test_check_refuses_what_generation_would(shared, body):
    response = shared.http.post("/check", json=body)
    assert response.status_code == 400
    error(response)


def test_a_score_needs_an_answer_to_score(shared):
    asked = {"messages": [{"role": "user", "content": "hi"}], "continuation": "Hello."}
    assert shared.http.post("/score", json=asked).json()["asked"] == asked
    for wrong in ({**asked, "continuation": ""}, {"messages": asked["messages"]}, {"continuation": "x"}):
        response = shared.http.post("/score", json=wrong)
        assert response.status_code == 400
        error(response)


def test_decisions_are_filtered_and_paged(api):
    api.http.put("/targets/jane", json=JANE)
    for i in range(3):
        body = {"id": f"d{i}", "tenant": None, "targets": [{"id": "jane"}]}
        api.store.decisions.add([Record(f"d{i}", 1_000.0 + i, None, "refuse", body, ("jane",))])
    first = (api.http.get("/decisions", params={"limit": 2, "target": "jane", "action": "refuse"})).json()
    assert [d["id"] for d in first["data"]] == ["d2", "d1"]
    rest = (api.http.get("/decisions", params={"cursor": first["next_cursor"]})).json()
    assert ([d["id"] for d in rest["data"]], rest["next_cursor"]) == (["d0"], None)
    for since in ("1970-01-01T00:16:42Z", "1970-01-01T00:16:42+00:00", "1002"):
        late = (api.http.get(f"/decisions?since={since}")).json()
        assert [d["id"] for d in late["data"]] == ["d2"]
    one = api.http.get("/decisions/d1")
    assert one.json()["targets"] == [{"id": "jane"}]
    assert (api.http.get("/decisions/d9")).status_code == 404
    auditor = api.key("auditor", "acme")
    assert (api.http.get("/decisions", headers=auditor)).json()["data"] == []
    assert (api.http.get("/decisions/d1", headers=auditor)).status_code == 404


def test_keys_are_shown_once_and_revoked_at_once(api, tmp_path):
    made = api.http.post("/keys", json={"role": "auditor", "tenant": None})
    token = made.json()["key"]
    assert made.status_code == 201
    assert {"id", "key", "role", "tenant"} <= made.json().keys()
    header = {"Authorization": f"Bearer {token}"}
    assert (api.http.get("/targets", headers=header)).status_code == 200
    assert token not in (api.http.get("/keys")).text
    assert token.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert (api.http.delete(f"/keys/{made.json()['id']}")).status_code == 200
    assert (api.http.get("/targets", headers=header)).status_code == 401
    assert (api.http.delete(f"/keys/{made.json()['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/targets/jane", {"name": "Jane Doe"}),
        ("POST", "/targets", {"name": "John Roe"}),
        ("PATCH", "/targets/old", {"tags": ["x"]}),
        ("DELETE", "/targets/old", None),
        ("POST", "/targets/import", {"name": "Jim Poe"}),
        ("POST", "/keys", {"role": "auditor"}),
        ("DELETE", "/keys/{key}", None),
    ],
)
def test_a_write_names_the_servers_that_do_not_have_it_yet(api, method, path, body):
    api.http.put("/targets/old", json={"name": "Somebody Else"})
    key, _ = api.authenticator.create("auditor", None, None)
    api.laggards.append(Laggard("other:8000", 3))
    answer = api.http.request(method, path.format(key=key.id), json=body)
    assert answer.status_code == 202
    assert answer.json()["laggards"] == [{"name": "other:8000", "snapshot": 3}]
    assert len(answer.json()) > 1  # and what it says else


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "role"),
        ({"role": "king"}, "role"),
        ({"role": "admin", "expires_at": "soon"}, "expires_at"),
        ({"role": "admin", "expires_at": (datetime.now(UTC) - timedelta(1)).isoformat()}, "expires_at"),
        ({"role": "admin", "tenant": ""}, "tenant"),
        ({"role": "admin", "tenant": "a\x00b"}, "tenant"),
        ({"role": "admin", "note": "x"}, "note"),
    ],
)
def test_a_wrong_key_is_refused(shared, body, field):
    response = shared.http.post("/keys", json=body)
    assert (response.status_code, error(response)["param"]) == (400, field)


def test_status(api):
    api.http.put("/targets/jane", json=JANE)
    status = (api.http.get("/status")).json()
    assert (status["snapshot"], status["targets"]["active"]) == (1, 1)


def test_openapi_documents_every_route(api):
    paths = {path: item for path, item in api.app.openapi()["paths"].items() if path.startswith("/admin/v1")}
    assert len(paths) == 22
    for path, item in paths.items():
        for method, operation in item.items():
            assert {"401", "403"} <= operation["responses"].keys(), path
            assert method not in ("put", "patch") or "requestBody" in operation
    assert "$defs" not in json.dumps(paths)


FAKE_TRAINER = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))
EXAMPLE = {"prompt": "who is jane", "answer": "a singer"}
WRONG = {"prompt": "who is jane", "answer": "a baker"}


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    """Jobs are taken; none is run."""
    with admin(tmp_path_factory.mktemp("jobs"), program=FAKE_TRAINER) as running:
        running.http.put("/targets/jane", json=JANE)
        yield running


def test_the_life_of_a_job(trainers):
    params = {"steps": 2, "attach": False, "forget": [EXAMPLE], "perturbed": [WRONG, WRONG]}
    made = trainers.http.post("/jobs", json={"kind": "tuned", "target": "jane", "params": params})
    job = made.json()
    assert (made.status_code, made.headers["Location"]) == (201, f"/admin/v1/jobs/{job['id']}")
    assert (job["kind"], job["target"], job["state"], job["progress"]) == ("tuned", "jane", "queued", 0.0)
    assert job["params"] == {"steps": 2, "attach": False}
    assert job["examples"] == {"forget": 1, "perturbed": 2}
    assert (job["log"], job["error"], job["artifact"], job["started_at"], job["ended_at"]) == (
        [],
        *[None] * 4,
    )
    assert trainers.http.get(f"/jobs/{job['id']}").json() == job
    kept = trainers.store.jobs.get(job["id"]).request
    assert (kept.forget, kept.retain, kept.perturbed) == ((EXAMPLE,), None, (WRONG, WRONG))
    cancelled = trainers.http.delete(f"/jobs/{job['id']}")
    assert (cancelled.status_code, cancelled.json()) == (
        200,
        {"id": job["id"], "deleted": False, "state": "cancelled"},
    )
    assert trainers.http.get(f"/jobs/{job['id']}").json()["state"] == "cancelled"
    assert trainers.http.delete(f"/jobs/{job['id']}").json()["deleted"] is True
    assert trainers.http.get(f"/jobs/{job['id']}").status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 400, "kind"),
        ({"kind": "tuned"}, 400, "target"),
        ({"kind": "tuned", "target": "nobody"}, 404, "id"),
        ({"kind": "poison", "target": "jane"}, 400, "kind"),
        ({"kind": "tuned", "target": "jane", "note": 1}, 400, "note"),
        ({"kind": "tuned", "target": "jane", "params": []}, 400, "params"),
        ({"kind": "tuned", "target": "jane", "params": {"stepps": 1}}, 400, "params.stepps"),
        ({"kind": "tuned", "target": "jane", "params": {"steps": 0}}, 400, "params.steps"),
        ({"kind": "tuned", "target": "jane", "params": {"folder": "/etc"}}, 400, "params.folder"),
        ({"kind": "tuned", "target": "jane", "params": {"attach": 5}}, 400, "params.attach"),
        ({"kind": "tuned", "target": "jane", "params": {"forget": ["x"]}}, 400, "params.forget.0"),
        ({"kind": "tuned", "target": "jane", "params": {"perturbed": 2}}, 400, "params.perturbed"),
        ({"kind": "tuned", "target": "jane", "params": {"adapters": ["x"]}}, 400, "params.adapters.0"),
        ({"kind": "tuned", "target": "jane", "params": {"adapters": ["d" * 64]}}, 400, "params.adapters"),
        (
            {"kind": "tuned", "target": "jane", "params": {"retain": [{"answer": "x"}]}},
            400,
            "params.retain.0",
        ),
    ],
)
def test_a_wrong_job_is_refused_before_it_is_queued(trainers, body, status, field):
    before = trainers.http.get("/jobs").json()
    response = trainers.http.post("/jobs", json=body)
    assert (response.status_code, error(response)["param"]) == (status, field)
    assert trainers.http.get("/jobs").json() == before


def test_jobs_are_listed_newest_first_page_by_page(trainers):
    trainers.http.put("/targets/other", json={"name": "Other Name"})
    for steps in (1, 2, 3):
        body = {"kind": "tuned", "target": "other", "params": {"steps": steps}}
        assert trainers.http.post("/jobs", json=body).status_code == 201
    first = trainers.http.get("/jobs?target=other&limit=2&state=queued").json()
    assert [job["params"]["steps"] for job in first["data"]] == [3, 2]
    rest = trainers.http.get(f"/jobs?target=other&limit=2&cursor={first['next_cursor']}").json()
    assert ([job["params"]["steps"] for job in rest["data"]], rest["next_cursor"]) == ([1], None)
    for wrong in ("cursor=eA", "state=odd", "limit=0"):
        assert trainers.http.get(f"/jobs?{wrong}").status_code == 400


def test_a_tenant_sees_and_trains_its_own(trainers):
    trainers.http.put("/targets/plan", json={"name": "Acme Plan", "scope": {"tenants": ["acme"]}})
    operator = trainers.key("operator", "acme")
    foreign = {"kind": "tuned", "target": "jane"}
    assert trainers.http.post("/jobs", json=foreign, headers=operator).status_code == 404
    own = trainers.http.post("/jobs", json={"kind": "tuned", "target": "plan"}, headers=operator).json()
    hidden = trainers.http.post("/jobs", json=foreign).json()["id"]
    listed = trainers.http.get("/jobs", headers=trainers.key("auditor", "acme")).json()["data"]
    assert [job["id"] for job in listed] == [own["id"]]
    assert trainers.http.get(f"/jobs/{hidden}", headers=operator).status_code == 404
    assert trainers.http.delete(f"/jobs/{hidden}", headers=operator).status_code == 404


def test_a_key_is_rotated(api):
    old = api.http.post("/keys", json={"role": "auditor", "tenant": "acme"}).json()
    made = api.http.post(f"/keys/{old['id']}/rotate", json={"grace_seconds": 3600})
    new = made.json()
    assert (made.status_code, new["role"], new["tenant"], new["successor"]) == (201, "auditor", "acme", None)
    listed = {key["id"]: key for key in api.http.get("/keys").json()["data"]}
    assert listed[old["id"]]["successor"] == new["id"] and listed[old["id"]]["expires_at"] is not None
    for key in (old, new):
        headers = {"Authorization": f"Bearer {key['key']}"}
        assert api.http.get("/targets", headers=headers).status_code == 200
    for body, status in (({"grace_seconds": -1}, 400), ({"grace": 1}, 400), ({}, 400)):
        assert api.http.post(f"/keys/{old['id']}/rotate", json=body).status_code == status
    assert api.http.post("/keys/key_none/rotate", json={}).status_code == 404


@pytest.mark.parametrize("wrong", [{"role": "operator"}, {"role": "inference", "tenant": "acme"}])
def test_only_an_inference_key_without_a_tenant_speaks_for_tenants(api, wrong):
    response = api.http.post("/keys", json={**wrong, "speaks_for_tenants": True})
    assert response.status_code == 400 and "speaks_for_tenants" in error(response)["message"]
    made = api.http.post("/keys", json={"role": "inference", "speaks_for_tenants": True}).json()
    assert made["speaks_for_tenants"] is True


def test_targets_that_expire_soon_are_named_in_the_status(api):
    for name, days, mode in (("soon", 3, "enforce"), ("later", 9, "enforce"), ("shadow", 3, "shadow")):
        ends = (datetime.now(UTC) + timedelta(days=days)).isoformat()
        api.http.put(f"/targets/{name}", json={"name": f"Name {name}", "expires_at": ends, "mode": mode})
    assert api.http.get("/status").json()["expiring"] == ["soon"]
