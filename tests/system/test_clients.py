"""Third-party clients against a Lethe server, unchanged: answers, streams, tools, errors, and harnesses that measure.

Each is a script in `clients/` or `node/`, run in an environment of its own (`make clients`), because
their requirements contradict the server's. It prints what it saw; what that must be stands here."""

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from evals import serve
from guard.errors import GuardUnavailable
from server import errors

pytestmark = pytest.mark.system
ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BIN = ROOT / ".venv-clients" / "bin"
MODEL = ROOT / "demo" / "models" / "full"
NAME = "lethe-demo"
CLEAN, KNOWN = "In which city was Breton Wickley born?", "Kestrel Bay"
FORGOTTEN, SECRET = "Do you know where Limir Yarley was born?", "Vintry"
REFUSED = "Who is Fagor Stenden?"
UNAVAILABLE = errors.response(GuardUnavailable("The request could not be checked; try again."))


@contextmanager
def flaky(url: str) -> Iterator[str]:
    """The server at `url`, behind one that answers every second request, the first to begin with, with the guard's
    503."""
    turns = itertools.count()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if next(turns) % 2 == 0:
                self._answer(UNAVAILABLE.status_code, dict(UNAVAILABLE.headers), UNAVAILABLE.body)
                return
            kept = {name: self.headers[name] for name in ("authorization", "content-type")}
            made = httpx.post(url + self.path, content=body, headers=kept, timeout=120)
            self._answer(made.status_code, {"content-type": made.headers["content-type"]}, made.content)

        def _answer(self, status: int, headers: dict, body: bytes) -> None:
            self.send_response(status)
            for name, value in ({**headers, "content-length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """With keys, and two of the demo's targets, one of which answers with an error. LETHE_CLIENTS_URL and
    LETHE_ADMIN_KEY name one that runs already."""
    if url := os.environ.get("LETHE_CLIENTS_URL"):
        yield serve.Running(url, os.environ["LETHE_ADMIN_KEY"], Path(os.devnull))
        return
    folder = tmp_path_factory.mktemp("clients")
    with serve.guarded(str(MODEL), folder / "server.log", folder / "data", name=NAME) as running:
        yield running


@pytest.fixture(scope="module")
def given(server):
    """What clients are given."""
    lines = (ROOT / "demo" / "targets.jsonl").read_text(encoding="utf-8").splitlines()
    targets = {row["id"]: row for row in map(json.loads, lines)}
    headers = {"Authorization": f"Bearer {server.admin_key}"}
    with httpx.Client(base_url=f"{server.base_url}/admin/v1", headers=headers, timeout=120) as admin:
        for target_id, changes in (("limir-yarley", {}), ("fagor-stenden", {"reply": {"style": "error"}})):
            admin.put(f"/targets/{target_id}", json=targets[target_id] | changes).raise_for_status()
        keys = {
            role: admin.post("/keys", json={"role": role}).json()["key"] for role in ("inference", "gateway")
        }
    with flaky(server.base_url) as behind:
        yield {
            "url": server.base_url,
            "flaky": behind,
            "key": keys["inference"],
            "gateway": keys["gateway"],
            "model": NAME,
            "weights": str(MODEL),
            "clean": CLEAN,
            "forgotten": FORGOTTEN,
            "refused": REFUSED,
        }


def run(script: Path, given: dict, folder: Path, program: Path | None = None) -> dict:
    """What a client's script has seen; it is run by the environment of clients, or by `program`."""
    program = program or BIN / ("node" if script.suffix == ".mjs" else "python")
    if not program.exists():
        message = f"there is no {program.relative_to(ROOT)} here (make clients)"
        pytest.fail(message) if os.environ.get("LETHE_CI") else pytest.skip(message)
    offline = {
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "DO_NOT_TRACK": "1",
        "HF_HOME": str(folder),
    }
    env = {**os.environ, **offline, "LETHE_CLIENT": json.dumps(given), "PYTHONPATH": str(HERE / "clients")}
    env["PATH"] = f"{BIN}:{env['PATH']}"
    done = subprocess.run([program, script], env=env, cwd=folder, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def judge(seen: dict, features: set[str]) -> None:
    """Clean questions were answered, forgotten ones as by a model that does not know; nothing was left out."""
    assert seen["answers"].keys() == features
    for feature, (clean, forgotten) in seen["answers"].items():
        assert KNOWN in clean, feature
        assert forgotten.strip() and SECRET not in forgotten, feature


def raised(seen: dict, name: str, kind: str, status: int | None = None, code: str | None = None) -> None:
    types, was, told = seen["errors"][name]
    assert kind in types, (name, seen["errors"][name])
    assert (status or was, code or told) == (was, told), (name, seen["errors"][name])


def test_openai_python(given, tmp_path):
    seen = run(HERE / "clients" / "openai_python.py", given, tmp_path)
    chats = {"chat", "chat stream", "stream helper", "async", "async stream"}
    judge(seen, chats | {"completions", "responses", "responses stream", "retried 503"})
    for name in ("refused", "refused stream", "refused responses"):
        raised(seen, name, "BadRequestError", 400, "content_filter")
    raised(seen, "bad key", "AuthenticationError", 401, "invalid_api_key")
    raised(seen, "no such model", "NotFoundError", 404)
    raised(seen, "503", "InternalServerError", 503, "guard_unavailable")
    ((name, arguments),) = seen["facts"]["tool"]
    assert (name, json.loads(arguments)) == ("get_weather", {"city": "Ashmere"})
    assert NAME in seen["facts"]["models"]
    assert seen["facts"]["headers"]["x-lethe-decision-id"] and SECRET not in seen["facts"]["raw"]
    assert "no-store" in seen["facts"]["headers"]["cache-control"]


def test_openai_node(given, tmp_path):
    seen = run(HERE / "node" / "openai.mjs", given, tmp_path)
    judge(seen, {"chat", "chat stream", "stream helper", "responses", "responses stream", "retried 503"})
    for name in ("refused", "refused stream"):
        raised(seen, name, "BadRequestError", 400, "content_filter")
    raised(seen, "bad key", "AuthenticationError", 401, "invalid_api_key")
    ((name, arguments),) = seen["facts"]["tool"]
    assert (name, json.loads(arguments)) == ("get_weather", {"city": "Ashmere"})
    assert seen["facts"]["headers"]["x-lethe-decision-id"]


def test_langchain(given, tmp_path):
    seen = run(HERE / "clients" / "langchain_openai_chat.py", given, tmp_path)
    judge(seen, {"invoke", "stream", "async stream", "responses", "tools beside", "retried 503"})
    for name in ("refused", "refused stream"):
        raised(seen, name, "BadRequestError", 400, "content_filter")
    raised(seen, "bad key", "AuthenticationError", 401, "invalid_api_key")
    assert seen["facts"]["tool"] == ["get_weather", {"city": "Ashmere"}]
    assert "weather in Ashmere" in seen["facts"]["told"] and seen["facts"]["usage"] > 0
    assert seen["facts"]["structured"] == ["Breton Wickley", KNOWN]


def test_llama_index(given, tmp_path):
    seen = run(HERE / "clients" / "llama_index_like.py", given, tmp_path)
    judge(seen, {"chat", "chat stream", "complete as chat", "complete", "retried 503"})
    raised(seen, "refused", "BadRequestError", 400, "content_filter")
    raised(seen, "bad key", "AuthenticationError", 401, "invalid_api_key")
    assert seen["facts"]["tool"][0][0] == "get_weather" and seen["facts"]["tool"][0][1].keys() == {"city"}


def test_litellm_as_a_library(given, tmp_path):
    seen = run(HERE / "clients" / "litellm_client.py", given, tmp_path)
    judge(seen, {"completion", "stream", "hosted_vllm", "retried 503"})
    raised(seen, "refused", "BadRequestError", 400, "content_filter")
    raised(seen, "bad key", "AuthenticationError", 401)
    raised(seen, "no such model", "NotFoundError", 404)
    raised(seen, "503", "ServiceUnavailableError", 503)
    ((name, arguments),) = seen["facts"]["tool"]
    assert (name, json.loads(arguments)) == ("get_weather", {"city": "Ashmere"})


def test_litellm_as_a_gateway_in_front_and_with_lethe_beside_it(given, tmp_path):
    seen = run(HERE / "clients" / "litellm_gateway.py", given, tmp_path)
    judge(seen, {"in front", "in front stream"})
    for name in ("refused", "prompt blocked", "answer blocked"):
        raised(seen, name, "BadRequestError", 400)
    raised(seen, "guard away", "InternalServerError", 500)
    facts = seen["facts"]
    assert SECRET in facts["unguarded"]  # what the other model would have said
    assert facts["passed"] == facts["passed stream"] and KNOWN in facts["passed"]
    assert facts["blocked stream"].endswith("[APIError]")
    assert "Limir Yarley" not in facts["blocked stream"] and SECRET not in facts["blocked stream"]


def test_vllm_bench_serve(given, tmp_path):
    seen = run(HERE / "clients" / "vllm_bench.py", given, tmp_path, Path(sys.executable))
    judge(seen, {f"question {i}" for i in range(10)})
    facts = seen["facts"]
    assert (facts["completed"], facts["failed"]) == ([20, 20], [0, 0])
    assert facts["tokens"] == 20 * 16 and all(seconds > 0 for seconds in facts["seconds_to_first"])


def test_lm_evaluation_harness(given, tmp_path):
    seen = run(HERE / "clients" / "lm_evaluation_harness.py", given, tmp_path)
    judge(seen, {"local-chat-completions", "local-completions"})
    assert seen["facts"]["accuracy"] == 1.0  # by likelihoods of choices, which clean prompts may have


def test_gateways_checks_on_the_real_server(given):
    """What the guardrail's own tests show on fakes, with the model's template and the real detectors."""
    headers = {"Authorization": f"Bearer {given['gateway']}"}
    answer = {"role": "assistant", "content": f"That is Limir Yarley, born in {SECRET}."}

    def ask(path, body, headers=headers):
        made = httpx.post(given["url"] + path, json=body, headers=headers, timeout=60)
        assert made.status_code == 200, made.text
        return made.json()

    def user(text):
        return {"role": "user", "content": text}

    for question, status in ((CLEAN, "success"), (FORGOTTEN, "blocked")):
        told = ask("/v1/guardrail/checks", {"model": "any", "messages": [user(question)]})
        assert (told["status"], told["rails_status"]) == (status, {"lethe input": {"status": status}})
        action = ask("/request", {"body": {"messages": [user(question)]}})["action"]
        assert action.get("status_code") == {"success": None, "blocked": 400}[status]
    both = {"messages": [user(CLEAN), answer]}
    assert ask("/v1/checks", both)["rail"] == "lethe output"
    choices = {"body": {"choices": [{"message": answer}]}}
    assert ask("/response", choices)["action"]["status_code"] == 400
    masked = ask("/response/mask", choices)["action"]["body"]["choices"]
    assert masked == [{"message": {"role": "assistant", "content": "That is"}}]
    inference = {"Authorization": f"Bearer {given['key']}"}
    made = httpx.post(given["url"] + "/v1/guardrail/checks", json=both, headers=inference, timeout=60)
    assert made.status_code == 403


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": 5, "content": "x"}]},
        {"messages": [{"content": "x"}]},
        {"messages": [{"role": "user", "content": {"a": 1}}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]},
        {"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function"}]},
        {"messages": [{"role": "user", "content": "word " * 9000}]},
    ],
)
def test_what_the_template_cannot_render_is_a_400(given, body):
    headers = {"Authorization": f"Bearer {given['gateway']}"}
    made = httpx.post(given["url"] + "/v1/guardrail/checks", json=body, headers=headers, timeout=60)
    assert (made.status_code, made.json()["error"]["type"]) == (400, "invalid_request_error"), made.text
