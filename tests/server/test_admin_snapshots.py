"""Snapshots over HTTP and from the shell."""

from __future__ import annotations

import pytest

from tests.guard.register_fakes import matched
from tests.server.admin_app import admin
from tests.server.test_cli import lethe


@pytest.fixture
def api(tmp_path):
    with admin(tmp_path) as running:
        running.http.put("/targets/jane", json={"name": "Jane Doe"})
        running.http.put("/targets/jane", json={"name": "Jane Roe"})
        running.http.put("/targets/ann", json={"name": "Ann Lee"})
        yield running


def test_snapshots_tell_what_they_changed(api):
    api.http.delete("/targets/ann", params={"purge": "true"})
    found = api.http.get("/snapshots")
    assert found.headers["ETag"] == '"4"' and found.json()["current"] == 4
    told = [
        (s["snapshot"], s["action"], s["created"], s["updated"], s["purged"]) for s in found.json()["data"]
    ]
    assert told == [
        (4, "targets.purge", 0, 0, 1),
        (3, "targets.put", 1, 0, 0),
        (2, "targets.put", 0, 1, 0),
        (1, "targets.put", 1, 0, 0),
    ]
    page = api.http.get("/snapshots", params={"limit": 3}).json()
    rest = api.http.get("/snapshots", params={"limit": 3, "cursor": page["next_cursor"]}).json()
    assert [s["snapshot"] for s in rest["data"]] == [1]


def test_a_rollback_over_http(api):
    stale = api.http.post("/snapshots/1/rollback", headers={"If-Match": '"2"'})
    assert (stale.status_code, stale.json()["error"]["code"]) == (412, "precondition_failed")
    plan = api.http.post("/snapshots/1/rollback", params={"dry_run": "true"})
    assert (plan.json()["dry_run"], plan.json()["updated"], plan.json()["deleted"]) == (
        True,
        ["jane"],
        ["ann"],
    )
    assert matched(api.register, "Jane Roe and Ann Lee") == {"jane", "ann"}
    done = api.http.post("/snapshots/1/rollback", headers={"If-Match": plan.headers["ETag"]})
    assert (done.status_code, done.headers["ETag"], done.json()["snapshot"]) == (200, '"4"', 4)
    assert matched(api.register, "Jane Doe, Jane Roe and Ann Lee") == {"jane"}
    assert api.http.get("/targets/jane").headers["ETag"] == '"jane.3"'
    for wrong, status in (("9", 404), ("x", 400)):
        assert api.http.post(f"/snapshots/{wrong}/rollback").status_code == status


def test_the_commands(api):
    lines = lethe("targets", "history", api=api).output.splitlines()
    assert len(lines) == 3 and lines[0].endswith("targets.put: 1 created")
    plan = lethe("targets", "rollback", "1", "--dry-run", api=api)
    assert plan.output == "change jane\ndelete ann\n"
    assert lethe("targets", "rollback", "1", api=api, input="n\n").exit_code == 1
    assert matched(api.register, "Ann Lee") == {"ann"}
    assert lethe("targets", "rollback", "1", "--yes", api=api).exit_code == 0
    assert matched(api.register, "Jane Doe and Ann Lee") == {"jane"}
    assert "targets.rollback to 1: 1 updated, 1 deleted" in lethe("targets", "history", api=api).output
    assert lethe("audit", "list", "--action", "targets.rollback", api=api).output.count("\n") == 1
    assert lethe("audit", "verify", api=api).exit_code == 0
