"""What is decided before anything is started."""

import dataclasses
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from guard.artifacts import ArtifactStore
from guard.config import load_settings
from guard.errors import ConfigError
from guard.library import Library
from guard.register import Register
from server import launcher
from server.cli.options import ServeOptions
from server.launcher import DEMO_NAME, open_inference, settings_of, vllm_argv
from tests.guard.artifact_fakes import make_artifact
from tests.guard.register_fakes import FakeGate, compile_target, open_store

NOTHING = ServeOptions(model=None, demo=False, config=None, host=None, port=None, no_auth=False, vllm_args=())


def options(**changes):
    return dataclasses.replace(NOTHING, **changes)


@pytest.mark.parametrize(
    ("changes", "is_open"),
    [
        ({"model": "m"}, False),
        ({"model": "m", "no_auth": True}, True),
        ({"model": "m", "host": "0.0.0.0", "no_auth": True}, True),
        ({"demo": True}, True),
        ({"demo": True, "host": "::1"}, True),
        ({"demo": True, "host": "0.0.0.0"}, False),
        ({"demo": True, "host": "192.168.1.5"}, False),
        ({"demo": True, "host": "localhost.example.org"}, False),
    ],
)
def test_only_the_demo_on_loopback_and_no_auth_open_inference(changes, is_open):
    assert open_inference(settings_of(options(**changes))) is is_open


def test_the_command_line_wins_over_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("server: {port: 9000, host: 10.0.0.1}")
    server = settings_of(options(model="m", config=file, port=9100)).server
    assert (server.port, server.host) == (9100, "10.0.0.1")


def test_what_follows_the_dashes_comes_last():
    settings = load_settings(None, {})
    argv = vllm_argv(options(demo=True, vllm_args=("--served-model-name", "mine")), settings)
    assert argv.index(DEMO_NAME) < argv.index("mine")


async def test_the_demo_brings_its_artifacts_and_registers_its_targets_once(tmp_path, monkeypatch):
    digest = make_artifact(tmp_path / "demo" / "trained")
    lines = tmp_path / "targets.jsonl"
    lines.write_text('{"id": "jane", "name": "Jane Doe"}\n')
    monkeypatch.setattr(launcher, "DEMO_ARTIFACTS", tmp_path / "demo")
    monkeypatch.setattr(launcher, "DEMO_TARGETS", lines)
    store = open_store(tmp_path)
    library = Library(ArtifactStore(tmp_path / "artifacts"))
    register = Register(store, library, compile_target, FakeGate)
    await register.load()
    services = SimpleNamespace(store=store, library=library, register=register)
    await launcher.seed(services)
    assert (library.store.digests(), list(register.snapshot.targets)) == ([digest], ["jane"])
    await register.delete("jane")
    library.store.remove(digest)
    await launcher.seed(services)
    assert (library.store.digests(), list(register.snapshot.targets)) == ([digest], [])
    register.close()
    store.close()


async def test_of_two_servers_that_start_together_one_seeds_the_demo_and_the_other_follows(
    tmp_path, monkeypatch
):
    lines = tmp_path / "targets.jsonl"
    lines.write_text('{"id": "jane", "name": "Jane Doe"}\n')
    monkeypatch.setattr(launcher, "DEMO_ARTIFACTS", tmp_path / "none")
    monkeypatch.setattr(launcher, "DEMO_TARGETS", lines)
    servers = []
    for name in ("one", "other"):
        store, library = open_store(tmp_path), Library(ArtifactStore(tmp_path / name))
        register = Register(store, library, compile_target, FakeGate)
        await register.load()
        # Both have looked before either has written.
        servers.append(
            SimpleNamespace(store=SimpleNamespace(snapshot=0), library=library, register=register, own=store)
        )
    for server in servers:
        await launcher.seed(server)
    assert [list(server.register.snapshot.targets) for server in servers] == [["jane"], ["jane"]]
    assert [target.version for target in servers[0].own.targets.history("jane")] == [1]
    for server in servers:
        server.register.close()
        server.own.close()


def test_a_start_that_is_told_to_stop_ends_at_once(tmp_path):
    """It must not be left to the default: the first process of a container has none."""
    code = """
import time
from server import launcher
from server.cli import main
launcher.serve = lambda options: (print("starting", flush=True), time.sleep(60))
main(["serve", "--demo"])
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout.readline() == b"starting\n"
        process.terminate()
        assert process.wait(20) == 128 + signal.SIGTERM


def test_the_admin_port_is_another_port():
    assert settings_of(options(admin_port=8001)).server.admin_port == 8001
    with pytest.raises(ConfigError, match=r"server\.admin_port"):
        settings_of(options(port=9000, admin_port=9000))


def test_several_processes_leave_administration_to_one(monkeypatch, tmp_path):
    from guard.engine import launch

    monkeypatch.setenv("LETHE_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(launch, "pin_environment", lambda **_: None)
    monkeypatch.setattr(launcher.logs, "configure", lambda *_: None)
    with pytest.raises(ConfigError, match="--admin-port"):
        launcher.serve(options(model=str(launcher.DEMO_MODEL), vllm_args=("--api-server-count", "2")))
