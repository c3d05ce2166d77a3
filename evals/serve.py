"""Starts a bare vLLM or a Lethe server for the time of a run, and leaves nothing behind.

A server gets a free loopback port, a log file, and a process group of its own: vLLM's engine core and workers
are children that outlive a killed parent, so it is the group that is ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from evals.client import ClientError

# What makes a guarded and a bare server comparable on a CPU with two cores.
ENGINE_ARGS = (
    "--dtype", "float32", "--enforce-eager", "--block-size", "32",
    "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
)  # fmt: skip
ENGINE_ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
_LONGEST = 4_096  # tokens of a prompt with its answer, unless the model takes fewer
_LOG_TAIL = 2_000


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers. `admin_key` is None for bare vLLM."""

    base_url: str
    admin_key: str | None
    log: Path


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def engine_args(model: str) -> tuple[str, ...]:
    config = Path(model) / "config.json"
    most = json.loads(config.read_text()).get("max_position_embeddings") if config.is_file() else None
    return (*ENGINE_ARGS, "--max-model-len", str(min(_LONGEST, most or _LONGEST)))


def bare_command(model: str, port: int, args: Sequence[str], *, name: str) -> list[str]:
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return [*server, "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), *args]


def lethe_command(
    model: str, port: int, args: Sequence[str], *, name: str, options: Sequence[str]
) -> list[str]:
    """`lethe serve`, from beside this Python or from PATH."""
    found = shutil.which("lethe", path=str(Path(sys.executable).parent)) or shutil.which("lethe")
    if found is None:
        raise ClientError("the command `lethe` is not installed beside this Python; run `make install`")
    serve = [found, "serve", model, "--host", "127.0.0.1", "--port", str(port), *options]
    return [*serve, "--", *args, "--served-model-name", name]


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:]


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ClientError(
                f"the server ended with {process.returncode} before it was ready:\n{_tail(log)}"
            )
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5.0).status_code == 200:
                return
        time.sleep(0.5)
    raise ClientError(f"the server was not ready within {timeout:.0f} s:\n{_tail(log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the whole group, first politely. The leader may be gone while its children live."""
    for sign, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    # The leader has been waited for; what is left of its group was killed by the last signal.


@contextlib.contextmanager
def _serving(
    command: Sequence[str], env: Mapping[str, str], ready: str, log: Path, timeout: float
) -> Iterator[None]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdout=sink, stderr=subprocess.STDOUT, env={**os.environ, **env}, start_new_session=True
        )
    try:
        _wait(process, ready, log, timeout)
        yield
    finally:
        _end(process)


@contextlib.contextmanager
def bare(
    model: str,
    log: Path,
    *,
    name: str = "demo",
    args: Sequence[str] | None = None,
    env: Mapping[str, str] = ENGINE_ENV,
    timeout: float = 600.0,
) -> Iterator[Running]:
    """vLLM's own server on `model`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with _serving(
        bare_command(model, port, args or engine_args(model), name=name), env, f"{url}/health", log, timeout
    ):
        yield Running(url, None, log)


@contextlib.contextmanager
def guarded(
    model: str,
    log: Path,
    data_dir: Path,
    *,
    name: str = "demo",
    options: Sequence[str] = (),
    args: Sequence[str] | None = None,
    env: Mapping[str, str] = ENGINE_ENV,
    timeout: float = 600.0,
) -> Iterator[Running]:
    """`lethe serve` on `model`, with its state in `data_dir` and an admin key of its own."""
    port, key = free_port(), secrets.token_hex(16)
    url = f"http://127.0.0.1:{port}"
    own = {**env, "LETHE_ADMIN_KEY": key, "LETHE_DATA_DIR": str(data_dir)}
    command = lethe_command(model, port, args or engine_args(model), name=name, options=options)
    with _serving(command, own, f"{url}/readyz", log, timeout):
        yield Running(url, key, log)
