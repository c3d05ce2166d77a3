"""Artifacts over the admin API and on the command line: a folder becomes a table in every worker."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.guard.artifact_fakes import FakeWorkers, make_artifact, methods, standing  # noqa: F401
from tests.guard.register_fakes import matched
from tests.server.admin_app import ADMIN, admin
from tests.server.test_cli import lethe, said

pytestmark = pytest.mark.usefixtures("methods")
KEY = {"Authorization": f"Bearer {ADMIN}"}  # the command line's bridge takes the client's own away


@pytest.fixture
def workers():
    return FakeWorkers()


@pytest.fixture
def api(tmp_path, workers):
    with admin(tmp_path) as running:
        asyncio.run(running.register.attach(workers))
        yield running


def waiting(digest: str) -> dict:
    return {"name": "Jane Doe", "intervention": {"method": "tuned", "params": {"artifact": digest}}}


def test_an_artifact_is_added_from_a_folder_and_a_waiting_target_is_active(api, workers, tmp_path):
    digest = make_artifact(tmp_path / "made", scale=2)
    put = api.http.put("/targets/jane", json=waiting(digest)).json()
    assert (put["state"], standing(put)) == ("pending", [("tuned", digest, "pending")])
    added = lethe("artifacts", "add", str(tmp_path / "made"), "--data-dir", str(tmp_path), api=api)
    assert (added.exit_code, added.stdout) == (0, f"{digest}\n")
    assert workers.held == {digest: True}
    read = api.http.get("/targets/jane", headers=KEY).json()
    assert (read["state"], standing(read)) == ("active", [("tuned", digest, "ready")])
    (row,) = api.http.get("/artifacts", headers=KEY).json()["data"]
    assert (row["digest"], row["state"], row["method"], row["facts"]) == (
        digest,
        "loaded",
        "tuned",
        {"scale": 2},
    )
    assert lethe("artifacts", "list", api=api).output == f"{digest}  loaded   tuned\n"
    assert json.loads(lethe("artifacts", "list", "--json", api=api).output) == row
    assert lethe("artifacts", "remove", digest[:8], api=api).output == f"{digest} removed\n"
    assert (workers.held, api.http.get("/artifacts", headers=KEY).json()["data"]) == ({}, [])
    assert api.http.get("/targets/jane", headers=KEY).json()["state"] == "pending"
    assert matched(api.register, "Jane Doe") == {"jane"}


def test_what_is_refused_is_told_and_listed(api, workers, tmp_path):
    digest = make_artifact(tmp_path / "made")
    workers.refusals[digest] = "The artifact changes nothing."
    added = lethe("artifacts", "add", str(tmp_path / "made"), "--data-dir", str(tmp_path), api=api)
    assert (added.exit_code, "changes nothing" in added.stderr) == (1, True)
    refused = api.http.post("/artifacts", json={"digest": digest}, headers=KEY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "artifact_refused")
    assert "refused  tuned  The artifact changes nothing." in lethe("artifacts", "list", api=api).output


def test_without_a_server_an_artifact_is_kept_for_the_next_start(tmp_path):
    digest = make_artifact(tmp_path / "made")
    args = ("--data-dir", str(tmp_path / "data"), "--server", "http://127.0.0.1:9")
    added = lethe("artifacts", "add", str(tmp_path / "made"), *args)
    assert (added.exit_code, added.stdout) == (0, f"{digest}\n")
    assert "when it starts" in added.stderr
    assert (tmp_path / "data" / "artifacts" / digest / "manifest.json").is_file()


def test_a_folder_that_is_no_artifact_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    args = ("--data-dir", str(tmp_path / "data"))
    assert "no manifest.json" in said(lethe("artifacts", "add", str(tmp_path / "empty"), *args))
    assert not (tmp_path / "data").exists()


def test_a_beginning_that_names_no_single_artifact_is_refused(api, tmp_path):
    for name in "ab":
        folder = tmp_path / name
        make_artifact(folder, number=name)
        lethe("artifacts", "add", str(folder), "--data-dir", str(tmp_path), api=api)
    assert "2 artifacts begin" in said(lethe("artifacts", "remove", "", api=api))
    assert "No artifact begins" in said(lethe("artifacts", "remove", "xyz", api=api))


@pytest.mark.parametrize("body", [{}, {"digest": "x"}, {"digest": "../" * 20}, {"folder": "/tmp"}])
def test_the_network_takes_digests_and_no_paths(api, body):
    response = api.http.post("/artifacts", json=body)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("digest", ["0" * 64, "..", "x"])
def test_an_artifact_that_is_not_there_is_not_found(api, digest):
    assert api.http.delete(f"/artifacts/{digest}").status_code == 404
    if len(digest) == 64:
        assert api.http.post("/artifacts", json={"digest": digest}).status_code == 404
