"""`lethe train auto`: what the search found becomes the target's ladder, and nothing else changes."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from server.cli import local
from tests.guard.artifact_fakes import FakeWorkers, make_artifact, methods  # noqa: F401
from tests.server.admin_app import ADMIN, admin
from tests.server.test_cli import lethe, said

pytestmark = pytest.mark.usefixtures("methods")
KEY = {"Authorization": f"Bearer {ADMIN}"}


@pytest.fixture
def workers():
    return FakeWorkers()


@pytest.fixture
def api(tmp_path, workers):
    with admin(tmp_path) as running:
        asyncio.run(running.register.attach(workers))
        target = {"name": "Jane Doe", "examples": ["who is jane"], "retain": ["who is John Roe"]}
        assert running.http.put("/targets/jane", json=target).status_code == 201
        yield running


class Program:
    """In place of the search: two artifacts and their ladder, or an end with `code`."""

    def __init__(self, meanwhile=lambda: None) -> None:
        self.code, self.argv, self.given, self.meanwhile = 0, [], None, meanwhile
        self.digests: list[str] = []

    def __call__(self, argv, check, input, text, env):  # noqa: A002 - as subprocess names it
        self.argv, self.given = argv[1:], input
        out = Path(argv[argv.index("--out") + 1])
        if self.code == 0 and "--dry-run" not in argv:
            self.digests = [
                make_artifact(out / "artifacts" / name, scale=i) for i, name in enumerate("ab", 2)
            ]
            rungs = [{"method": "tuned", "params": {"artifact": digest}} for digest in self.digests]
            ladder = [*rungs, {"method": "refusal", "params": {}}]
            folders = dict(zip(self.digests, ("artifacts/a", "artifacts/b"), strict=True))
            (out / "ladder.json").write_text(json.dumps({"intervention": ladder, "folders": folders}))
        self.meanwhile()
        return subprocess.CompletedProcess(argv, self.code)


@pytest.fixture
def program(monkeypatch):
    made = Program()
    monkeypatch.setattr(local.subprocess, "run", made)
    return made


def auto(api, tmp_path, *more):
    about = [
        "--target",
        "jane",
        "--model",
        "m",
        "--out",
        str(tmp_path / "found"),
        "--data-dir",
        str(tmp_path),
    ]
    return lethe("train", "auto", *about, *more, api=api)


def ladder(api):
    return api.http.get("/targets/jane", headers=KEY).json()["intervention"]


def test_the_target_gets_the_ladder_and_the_server_its_artifacts(api, workers, program, tmp_path):
    retain = tmp_path / "retain.jsonl"
    retain.write_text('{"prompt": "what is Jane Doe"}\n\n{"turns": [{"role": "user", "content": "hi"}]}\n')
    result = auto(api, tmp_path, "--budget", "3", "--set", "tolerance=0.1", "--retain", str(retain))
    assert result.exit_code == 0, result.output
    passed = ["--budget", "3", "--set", "tolerance=0.1", "--retain", str(retain), "--target", "-"]
    assert program.argv[:3] == ["-m", "classifiers.auto", "--model"] and program.argv[-8:] == passed
    assert json.loads(program.given)["examples"] == ["who is jane"]
    assert [rung["params"].get("artifact") for rung in ladder(api)] == [*program.digests, None]
    assert [rung["method"] for rung in ladder(api)] == ["tuned", "tuned", "refusal"]
    assert set(workers.held) == set(program.digests)
    assert "jane v2 is active: tuned, tuned, refusal" in result.output
    assert "Of 3 retained questions the gate takes 0 for the target." in result.output


def test_a_rung_that_the_server_does_not_take_is_left_out(api, workers, program, tmp_path):
    refused = make_artifact(tmp_path / "same", scale=2)
    workers.refusals[refused] = "The artifact changes nothing."
    result = auto(api, tmp_path)
    assert result.exit_code == 0 and "does not take the artifact" in result.stderr
    assert [rung["params"].get("artifact") for rung in ladder(api)] == [program.digests[1], None]


def test_a_target_that_was_changed_meanwhile_keeps_its_ladder(api, program, tmp_path):
    program.meanwhile = lambda: api.http.patch("/targets/jane", json={"description": "new"}, headers=KEY)
    result = auto(api, tmp_path)
    assert result.exit_code == 1 and "changed in between" in said(result)
    assert ladder(api) == "auto"


@pytest.mark.parametrize("more", [["--dry-run"], ["--no-attach"]])
def test_nothing_is_registered_where_that_is_not_wanted(api, workers, program, tmp_path, more):
    assert auto(api, tmp_path, *more).exit_code == 0
    assert ladder(api) == "auto" and not workers.held


@pytest.mark.parametrize(("code", "ends"), [(2, 2), (1, 1), (-9, 1)])
def test_a_search_that_fails_ends_the_command_as_it_ended(api, program, tmp_path, code, ends):
    program.code = code
    assert auto(api, tmp_path).exit_code == ends
    assert ladder(api) == "auto"


def test_without_a_target_on_a_server_nothing_is_asked_of_one(program, tmp_path):
    found = tmp_path / "found"
    result = lethe("train", "auto", "--model", "m", "--out", str(found), "--name", "Jane", "--forget", "f")
    assert result.exit_code == 0, result.output
    assert program.given is None and program.argv[-4:] == ["--name", "Jane", "--forget", "f"]
    file = tmp_path / "jane.json"
    file.write_text('{"name": "Jane"}')
    assert (
        lethe(
            "train", "auto", "--model", "m", "--out", str(tmp_path / "other"), "--file", str(file)
        ).exit_code
        == 0
    )
    assert program.given == '{"name": "Jane"}' and program.argv[-2:] == ["--target", "-"]


def test_it_explains_itself_and_refuses_what_it_cannot_take(program):
    told = lethe("train", "auto", "--help")
    assert told.exit_code == 0 and "Example:\n    lethe train auto" in told.output
    assert lethe("train", "auto", "--target", "jane").exit_code == 2
    assert "There is no target" not in said(lethe("train", "auto", "--target", "j", "--model", "m",
                                                  "--server", "http://127.0.0.1:9"))  # fmt: skip
