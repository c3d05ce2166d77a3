"""Starting and ending servers, on a process that is not a model server."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from evals import serve
from evals.client import ClientError

# A server with a child of its own that ignores SIGTERM, as an engine core in the middle of a step does.
SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"])
print("child", child.pid, flush=True)
class Ok(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ok).serve_forever()
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A killed child whose new parent has not waited for it yet is dead, though its number is still taken.
    return " Z " not in Path(f"/proc/{pid}/stat").read_text() if Path(f"/proc/{pid}/stat").exists() else True


def test_the_whole_group_is_ended(tmp_path: Path):
    port, log = serve.free_port(), tmp_path / "logs" / "server.log"
    command = [sys.executable, "-c", SERVER, str(port)]
    with serve._serving(command, {}, f"http://127.0.0.1:{port}/", log, 20.0):
        child = int(log.read_text().split()[1])
        assert alive(child)
    for _ in range(100):
        if not alive(child):
            break
        time.sleep(0.02)
    assert not alive(child)


def test_a_server_that_ends_early_is_one_error_with_its_log(tmp_path: Path):
    command = [sys.executable, "-c", "raise SystemExit('no model here')"]
    with (
        pytest.raises(ClientError, match="no model here"),
        serve._serving(command, {}, "http://127.0.0.1:9/", tmp_path / "log", 20.0),
    ):
        pytest.fail("a dead server must not be handed out")


def test_commands_name_the_same_arguments_for_both_kinds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("evals.serve.shutil.which", lambda *_, **__: "lethe")
    bare = serve.bare_command("model", 1, serve.ENGINE_ARGS, name="demo")
    guarded = serve.lethe_command("model", 2, serve.ENGINE_ARGS, name="demo", options=("--no-auth",))
    after = guarded[guarded.index("--") + 1 :]
    assert "--no-auth" in guarded[: guarded.index("--")]
    assert set(serve.ENGINE_ARGS) | {"--served-model-name", "demo"} == set(after)
    assert set(after) <= set(bare)


@pytest.mark.parametrize(("most", "length"), [(512, 512), (131_072, 4_096), (None, 4_096)])
def test_prompts_are_no_longer_than_the_model_takes(tmp_path: Path, most: int | None, length: int):
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": most} if most else {}))
    args = serve.engine_args(str(tmp_path))
    assert args[args.index("--max-model-len") + 1] == str(length)
    assert args[:-2] == serve.ENGINE_ARGS and serve.engine_args("hub/name")[-1] == "4096"
