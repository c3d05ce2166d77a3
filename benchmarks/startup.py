"""How long the command line takes to answer, against an interpreter that does nothing; and the demo server to be ready.

Commands that ask a server ask one that answers at once. Each round runs every command and `python -c pass`, and a ratio
belongs to one round: the machine's other work falls on both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import click

from benchmarks.driving import ROOT
from benchmarks.reporting import machine
from evals import serve
from guard.metrics.bootstrap import mean_interval

NOTHING = (sys.executable, "-c", "pass")
LETHE = "from server.cli import main; main(prog_name='lethe')"
COMMANDS: dict[str, tuple[str, ...]] = {
    "lethe --help": ("--help",),
    "lethe targets --help": ("targets", "--help"),
    "lethe targets list": ("targets", "list"),
    "lethe check --help": ("check", "--help"),
    "lethe check TEXT": ("check", "Who is Jane Doe?"),
}
_TIMEOUT = 600.0


class _Answer(BaseHTTPRequestHandler):
    def _answer(self, body: object) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self._answer({"data": [], "next_cursor": None})

    def do_POST(self) -> None:
        self._answer({"decision": {"action": "allow", "targets": []}})

    def log_message(self, *args: object) -> None:
        """Nothing is written."""


@contextmanager
def answering() -> Iterator[str]:
    """The address of a server whose admin API holds nothing and matches nothing."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answer) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def lethe(words: Sequence[str], server: str, *options: str) -> tuple[list[str], dict[str, str]]:
    """The command with these words and its environment; `options` are the interpreter's."""
    environment = {**os.environ, "LETHE_SERVER": server, "LETHE_ADMIN_KEY": "", "PYTHONPATH": str(ROOT)}
    return [sys.executable, *options, "-c", LETHE, *words], environment


def seconds(command: Sequence[str], environment: Mapping[str, str] = os.environ) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environment, capture_output=True, check=True, cwd=ROOT)
    return time.perf_counter() - started


def commands(rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds of each command, and its ratio to an interpreter that does nothing."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with answering() as server:
        for number in range(-1, rounds):
            nothing = seconds(NOTHING)
            for name, words in COMMANDS.items():
                found = seconds(*lethe(words, server))
                if number >= 0:  # the first round only brings the files into memory
                    taken[name].append((found, nothing))
    report = {}
    for name, pairs in taken.items():
        lasted, ratio = mean_interval([a for a, _ in pairs]), mean_interval([a / b for a, b in pairs])
        assert lasted and ratio
        report[name] = {"seconds": lasted.as_dict(), "ratio": ratio.as_dict()}
        click.echo(
            f"{name:<22} {lasted.mean:.3f} s [{lasted.low:.3f}, {lasted.high:.3f}],"
            f" {ratio.mean:.1f} [{ratio.low:.1f}, {ratio.high:.1f}] times an empty program, n = {ratio.n}"
        )
    return report


def ready(data: Path) -> float:
    """Seconds until the demo server says that it is ready; it is stopped then."""
    log = data.with_suffix(".log")
    command = [sys.executable, "-c", LETHE, "serve", "--demo", "--port", str(serve.free_port())]
    environment = {**os.environ, "LETHE_DATA_DIR": str(data), "PYTHONPATH": str(ROOT)}
    with log.open("wb") as sink:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdout=sink, stderr=sink, cwd=ROOT, start_new_session=True
        )
    try:
        while b"Lethe is ready" not in log.read_bytes():
            if process.poll() is not None or time.perf_counter() - started > _TIMEOUT:
                raise click.ClickException(f"The demo did not start; see {log.read_text()[-500:]}")
            time.sleep(0.05)
        return time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(60)


def demo(starts: int) -> dict[str, dict[str, float]]:
    """Seconds of starts with an empty data folder, and of those that find what the first one made."""
    taken: dict[str, list[float]] = {"first start": [], "later start": []}
    for _ in range(starts):
        with tempfile.TemporaryDirectory() as folder:
            for found in taken.values():
                found.append(ready(Path(folder) / "data"))
    report = {}
    for name, found in taken.items():
        interval = mean_interval(found)
        assert interval
        report[name] = interval.as_dict()
        click.echo(
            f"{name:<22} {interval.mean:.1f} s [{interval.low:.1f}, {interval.high:.1f}], n = {interval.n}"
        )
    return report


@click.command()
@click.option("--rounds", default=20, show_default=True, help="Runs of each command.")
@click.option("--starts", default=3, show_default=True, help="Pairs of starts of the demo server; 0: none.")
@click.option("--out", default=ROOT / "reports" / "bench-startup.json", show_default=True,
              type=click.Path(dir_okay=False, path_type=Path))  # fmt: skip
def startup(rounds: int, starts: int, out: Path) -> None:
    """What it takes until a command answers, and until the demo server is ready.

    Example: python -m benchmarks startup --rounds 10 --starts 0
    """
    load = os.getloadavg()
    report = {"machine": machine(), "load_average": load, "commands": commands(rounds)}
    if starts:
        report["demo"] = demo(starts)
    click.echo(f"load average {load[0]:.1f} before, {os.getloadavg()[0]:.1f} after")
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    click.echo(f"written to {out}")
