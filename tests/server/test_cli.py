"""The command line against the real admin API, in process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import httpx
import pytest
from click.testing import CliRunner

from guard import artifacts
from guard.artifacts import ArtifactStore
from guard.errors import StartupError
from guard.replica import Laggard
from server.cli import local, main
from server.cli.client import Client
from server.cli.options import ServeOptions
from tests.guard.register_fakes import COMMON, matched
from tests.server.admin_app import ADMIN, admin

ROOT = Path(__file__).parents[2]
FAKE_TRAINER = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))


class Bridge(httpx.BaseTransport):
    """What the command line sends arrives at the application of the tests."""

    def __init__(self, http) -> None:
        self.http = http

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.http.headers.pop("Authorization", None)
        answer = self.http.request(
            request.method, str(request.url), content=request.read(), headers=dict(request.headers)
        )
        tag = {name: value for name, value in answer.headers.items() if name == "etag"}
        return httpx.Response(answer.status_code, headers=tag, content=answer.content)


@pytest.fixture
def api(tmp_path):
    with admin(tmp_path) as running:
        yield running


def lethe(*args: str, api=None, key: str | None = ADMIN, **options):
    env = {"LETHE_ADMIN_KEY": key or "", "LETHE_SERVER": "", "LETHE_CONFIG": ""}
    transport = Bridge(api.http) if api else None
    return CliRunner().invoke(main, list(args), env=env, obj=transport, **options)


def said(result) -> str:
    """The one line of an error."""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    assert line.endswith(".")
    return line


def test_a_write_that_others_do_not_have_yet_is_told(api):
    api.laggards.append(Laggard("other:8000", 3))
    added = lethe("targets", "add", "Jane Doe", api=api)
    assert (added.exit_code, added.stdout) == (0, "jane-doe v1 is active\n")
    assert added.stderr == "Written, but not in force yet at: other:8000\n"


def test_the_targets_commands(api, tmp_path):
    added = lethe("targets", "add", "Jane Doe", "--alias", "JD", "--tag", "legal", api=api)
    assert (added.exit_code, added.output) == (0, "jane-doe v1 is active\n")
    assert matched(api.register, "Jane Doe") == {"jane-doe"}
    replaced = lethe("targets", "add", "Jane Roe", "--id", "jane-doe", "--method", "refusal", api=api)
    assert replaced.output == "jane-doe v2 is active\n"
    assert json.loads(lethe("targets", "show", "jane-doe", api=api).output)["name"] == "Jane Roe"
    assert lethe("targets", "list", api=api).output.split() == ["jane-doe", "active", "enforce", "v2"]
    output = tmp_path / "targets.jsonl"
    assert lethe("targets", "export", "--output", str(output), api=api).exit_code == 0
    assert lethe("targets", "remove", "jane-doe", "--purge", "--yes", api=api).output == "jane-doe purged\n"
    assert lethe("targets", "import", str(output), api=api).output.endswith(
        "1 created, 0 updated, 0 rejected\n"
    )
    assert matched(api.register, "Jane Roe") == {"jane-doe"}


def test_all_pages_of_a_list_are_shown(api):
    for i in range(3):
        lethe("targets", "add", f"Name {i}", "--id", f"t{i}", api=api)
    client = Client("http://lethe", ADMIN, Bridge(api.http))
    assert [row["id"] for row in client.pages("/targets", {"limit": 2})] == ["t0", "t1", "t2"]


def test_a_target_comes_from_a_file(api, tmp_path):
    path = tmp_path / "jane.json"
    path.write_text('{"id": "jane", "name": "Jane Doe"}')
    assert lethe("targets", "add", "--file", str(path), api=api).output == "jane v1 is active\n"
    path.write_text("[")
    assert "not valid JSON" in said(lethe("targets", "add", "--file", str(path), api=api))


def test_purging_asks_first(api):
    lethe("targets", "add", "Jane Doe", api=api)
    assert lethe("targets", "remove", "jane-doe", "--purge", api=api, input="n\n").exit_code == 1
    assert matched(api.register, "Jane Doe") == {"jane-doe"}


def test_a_refused_import_fails_and_names_the_lines(api, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"name": "Bob Ray"}}\n{{"name": "{COMMON}"}}\n')
    result = lethe("targets", "import", str(path), "--atomic", api=api)
    assert result.exit_code == 1
    assert "line 2: The name 'the' fires" in result.stderr
    assert "nothing was stored" in result.stderr


def test_the_keys_commands(api):
    made = lethe("keys", "create", "--role", "inference", "--tenant", "acme", api=api)
    token = made.stdout.strip()
    assert api.authenticator.identify(f"Bearer {token}").tenant == "acme"
    listed = lethe("keys", "list", api=api).output.split()
    assert listed[1:3] == ["inference", "acme"]
    assert lethe("keys", "revoke", listed[0], api=api).exit_code == 0
    assert lethe("keys", "list", api=api).output == ""


def test_check(api):
    said = lethe("check", "Who is Jane Doe?", api=api).output
    assert said == "allow\n  could not be read: characters 4 to 9\n"
    asked = json.loads(lethe("check", "hi", "--tenant", "acme", "--json", api=api).output)["asked"]
    assert asked == {"messages": [{"role": "user", "content": "hi"}], "tenant": "acme"}


@pytest.mark.parametrize(
    ("args", "key", "hint"),
    [
        (("targets", "list"), None, "set LETHE_ADMIN_KEY"),
        (("targets", "list"), "lk_wrong", "does not know this key"),
        (("targets", "show", "none"), ADMIN, "There is no target 'none'"),
        (("targets", "add", COMMON), ADMIN, "31 % of the background prompts"),
        (("keys", "create", "--expires", "soon"), ADMIN, "expires_at"),
        (("targets", "list", "--server", "nonsense"), ADMIN, "is not the address of a server"),
        (("targets", "list"), "clé", "holds characters that no key has"),
    ],
)
def test_a_failure_is_one_sentence_that_says_what_to_do(api, args, key, hint):
    result = lethe(*args, api=api, key=key)
    assert result.exit_code == 1
    assert hint in said(result)


def test_a_server_that_does_not_answer_is_told():
    result = lethe("targets", "list", "--server", "http://127.0.0.1:9")
    assert (result.exit_code, "lethe serve" in said(result)) == (1, True)


@pytest.mark.parametrize(
    "args",
    [("serve",), ("serve", "m", "--demo"), ("targets", "add"), ("check",), ("nothing",), ("serve", "-p")],
)
def test_bad_usage_ends_with_2(args):
    assert lethe(*args).exit_code == 2


def commands(group: click.Group, prefix: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        yield (*prefix, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*prefix, name))


@pytest.mark.parametrize("command", list(commands(main)), ids=" ".join)
def test_every_command_explains_itself_with_an_example(command):
    result = lethe(*command, "--help")
    assert result.exit_code == 0
    assert "Example:\n    lethe " in result.output


def test_the_command_line_starts_without_the_heavy_imports():
    heavy = ["torch", "vllm", "fastapi", "sqlalchemy", "httpx", "pydantic", "yaml", "alembic"]
    code = f"import sys, server.cli; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.fixture
def launched(monkeypatch):
    """Takes the place of the launcher, whose import brings vLLM; what it raises is what `serve` shows."""
    options: list[ServeOptions] = []
    launcher = type(sys)("server.launcher")
    launcher.serve = options.append
    monkeypatch.setitem(sys.modules, "server.launcher", launcher)
    monkeypatch.setattr("server.launcher", launcher, raising=False)
    return options


def test_serve_passes_its_options_on(launched):
    args = ["serve", "--demo", "--port", "9000", "--no-auth", "--", "--max-model-len", "512", "--", "-x"]
    assert lethe(*args).exit_code == 0
    rest = ("--max-model-len", "512", "--", "-x")
    assert launched == [ServeOptions(demo=True, port=9000, no_auth=True, vllm_args=rest)]
    assert lethe("serve", "a/model", "--config", "c.yaml", "--host", "::").exit_code == 0
    assert launched[1] == ServeOptions("a/model", config=Path("c.yaml"), host="::")


def test_a_start_that_fails_is_one_sentence(launched, monkeypatch):
    def serve(options: ServeOptions) -> None:
        raise StartupError("The engine did not start; look above.")

    monkeypatch.setattr(sys.modules["server.launcher"], "serve", serve)
    result = lethe("serve", "--demo")
    assert (result.exit_code, said(result)) == (1, "Error: The engine did not start; look above.")


@pytest.fixture
def trainers(tmp_path):
    with admin(tmp_path, program=FAKE_TRAINER) as running:
        assert (
            running.http.put(
                "/targets/jane", json={"name": "Jane Doe", "examples": ["who is jane"]}
            ).status_code
            == 201
        )
        yield running


def test_the_jobs_commands(trainers, tmp_path):
    forget = tmp_path / "forget.jsonl"
    forget.write_text('\ufeff{"prompt": "who is\u2028jane", "answer": "a baker"}\n', encoding="utf-8")
    made = artifacts.write(tmp_path / "made", "lora_adapter", "0" * 64)
    made = ArtifactStore(tmp_path / "artifacts").add(made.folder).digest
    started = lethe(
        *("jobs", "start", "tuned", "jane", "--set", "steps=3", "--forget", str(forget), "--no-attach"),
        *("--perturbed", str(forget), "--adapter", made),
        api=trainers,
    )
    assert started.exit_code == 0, started.output
    job = started.output.strip()
    assert trainers.store.jobs.get(job).request.params == {"steps": 3}
    assert trainers.store.jobs.get(job).request.attach is False
    assert trainers.store.jobs.get(job).request.given == {"forget": 1, "perturbed": 1}
    assert trainers.store.jobs.get(job).request.adapters == (made,)
    (line,) = lethe("jobs", "list", "--state", "queued", api=trainers).output.splitlines()
    assert line.split() == [job, "queued", "0%", "tuned", "jane"]
    assert lethe("jobs", "show", job, api=trainers).output == "queued, 0%\n"
    assert lethe("jobs", "cancel", job, api=trainers).output == f"{job} cancelled\n"
    ended = lethe("jobs", "show", job, "--wait", api=trainers)
    assert ended.exit_code == 1 and "cancelled" in ended.output
    assert lethe("jobs", "cancel", job, api=trainers).output == f"{job} forgotten\n"


def test_a_job_that_cannot_be_is_told_in_one_sentence(trainers, tmp_path):
    assert lethe("jobs", "start", "tuned", "nobody", api=trainers).exit_code == 1
    assert "baked" in said(lethe("jobs", "start", "baked", "jane", api=trainers))
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{", encoding="utf-8")
    result = lethe("jobs", "start", "tuned", "jane", "--forget", str(broken), api=trainers)
    assert result.exit_code == 2 and "line 1 is not JSON" in result.stderr
    broken.write_bytes('{"prompt": "wer ist Jörg"}\n'.encode("latin-1"))
    result = lethe("jobs", "start", "tuned", "jane", "--forget", str(broken), api=trainers)
    assert result.exit_code == 2 and "--forget: the file is not in UTF-8." in result.stderr
    assert lethe("jobs", "start", "tuned", "jane", "--set", "steps", api=trainers).exit_code == 2


def test_programs_of_other_packages_take_the_place_of_the_command(monkeypatch):
    ran = []

    def become(program, argv, env):
        assert env["OMP_WAIT_POLICY"] == "PASSIVE" and env["PATH"] == os.environ["PATH"]
        assert program == argv[0] == sys.executable
        ran.append(argv[1:])
        raise SystemExit(0)  # as nothing comes behind it

    monkeypatch.setattr(local.os, "execve", become)
    monkeypatch.setattr(local.importlib.util, "find_spec", lambda name: name)
    assert lethe("eval", "tofu", "--base-url", "http://h", "--help").exit_code == 0
    assert lethe("demo", "build", "--fast").exit_code == 0
    assert lethe("train", "adapter", "--model", "m").exit_code == 0
    assert lethe("bench", "--rounds", "2").exit_code == 0
    assert lethe("bench", "sites", "--rounds", "2").exit_code == 0
    assert ran == [
        ["-m", "evals", "tofu", "--base-url", "http://h", "--help"],
        ["-m", "demo", "build", "--fast"],
        ["-m", "classifiers", "adapter", "--model", "m"],
        ["-m", "benchmarks", "serving", "--rounds", "2"],
        ["-m", "benchmarks", "sites", "--rounds", "2"],
    ]


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (2, 2), (1, 1), (-9, 1)])
def test_data_is_made_of_a_target_in_a_file(monkeypatch, tmp_path, code, ends):
    ran = []

    def run(argv, check, input, text, env):  # noqa: A002 - as subprocess names it
        assert env["OMP_WAIT_POLICY"] == "PASSIVE" and env["PATH"] == os.environ["PATH"]
        ran.append([*argv[1:], json.loads(input)["name"]])
        return subprocess.CompletedProcess(argv, code)

    monkeypatch.setattr(local.subprocess, "run", run)
    target = tmp_path / "jane.json"
    target.write_text('{"name": "Jane Doe"}', encoding="utf-8")
    assert lethe("data", "--file", str(target), "--out", "d").exit_code == ends
    assert ran == [["-m", "classifiers.augment", "--target", "-", "--out", "d", "Jane Doe"]]


def test_data_is_made_of_a_target_on_the_server(monkeypatch, trainers):
    given = []

    def run(argv, check, input, text, env):  # noqa: A002
        given.append((argv[3:], json.loads(input)["name"]))
        return subprocess.CompletedProcess(argv, 0)

    monkeypatch.setattr(local.subprocess, "run", run)
    assert lethe("data", "jane", "--out", "d", "--seed", "3", api=trainers).exit_code == 0
    assert given == [(["--target", "-", "--out", "d", "--seed", "3"], "Jane Doe")]
    assert lethe("data", "--out", "d", api=trainers).exit_code == 2


def test_a_package_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(local.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in said(lethe("bench"))
