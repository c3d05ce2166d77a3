"""`lethe demo`, `train`, `eval`, `bench`: packages of the repository, each run as a program of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any, NoReturn

import click

from guard.errors import ConfigError
from server.cli.base import example, remote
from server.cli.client import connect, path_of

_PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}
_USAGE = 2
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait for each other sleep. By default they spin, and beside a busy server they would wait for processors
that the spinning takes away: training came to a standstill."""


@click.group(epilog=example("lethe demo build"))
def demo() -> None:
    """The model that ships with Lethe."""


@demo.command(context_settings=_PASSED_ON, epilog=example("lethe demo build"))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def build(args: tuple[str, ...]) -> None:
    """Make the demo models again from their corpus."""
    _run("demo", ("build", *args))


@click.command(
    "eval",
    context_settings=_PASSED_ON,
    epilog=example("lethe eval tofu --base-url http://127.0.0.1:8000/v1"),
)
@click.argument("suite")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def evaluate(suite: str, args: tuple[str, ...]) -> None:
    """Run the benchmark SUITE against an OpenAI-compatible server; ARGS are those of `python -m evals`."""
    _run("evals", (suite, *args))


@click.command(
    context_settings=_PASSED_ON,
    epilog=example(
        "lethe train adapter --model demo/models/full --forget forget.jsonl --retain retain.jsonl --out runs/adapter",
        "lethe train auto --target jane-doe --model demo/models/full --budget 10",
        "lethe train --help",
    ),
)
@click.argument("kind")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def train(context: click.Context, kind: str, args: tuple[str, ...]) -> None:
    """Train an artifact of KIND on this machine; ARGS are those of `python -m classifiers`. `lethe jobs` does it beside
    a running server. The kind `auto` finds out which methods are best for a target (`lethe train auto --help`)."""
    if kind == "auto":
        from server.cli.auto import auto

        auto.main([*args], "lethe train auto", standalone_mode=False, parent=context)
        return
    _run("classifiers", (kind, *args))


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog=example(
        "lethe data jane-doe --out data/jane --base-url http://127.0.0.1:9000/v1 --model qwen",
        "lethe data --file jane.json --out data/jane",
    ),
)
@click.option(
    "--file", type=click.File(encoding="utf-8"), help="The target as JSON, in place of one on the server."
)
@remote
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def data(file: Any, args: tuple[str, ...], server: str, key: str | None) -> None:
    """Make training data from a target, named by its id on the server; ARGS are those of
    `python -m classifiers.augment`."""
    if file is not None:
        target = file.read()
    elif args and not args[0].startswith("-"):
        target = json.dumps(connect(server, key).json("GET", path_of(args[0])))
        args = args[1:]
    else:
        raise click.UsageError("Give the ID of a target, or --file.")
    sys.exit(run("classifiers.augment", ("--target", "-", *args), target))


@click.command(
    context_settings=_PASSED_ON,
    epilog=example("lethe bench", "lethe bench --condition unmatched --rounds 4", "lethe bench swaps --help"),
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def bench(args: tuple[str, ...]) -> None:
    """Measure the guarded server against bare vLLM, in one run; ARGS are those of `lethe bench serving --help`, or
    another command with its own: `growth` (memory), `swaps` (pauses while targets change), `scale` (a million vectors)
    and those of `python -m benchmarks --help`."""
    named = args and not args[0].startswith("-")
    _run("benchmarks", args if named else ("serving", *args))


def _run(module: str, args: tuple[str, ...]) -> NoReturn:
    """Become the program: who interrupts or ends the command reaches the servers that it has started."""
    command = _command(module, args)
    os.execve(command[0], command, {**PATIENT, **os.environ})  # noqa: S606 - a program of ours, no shell is wanted


def run(module: str, args: tuple[str, ...], given: str | None = None) -> int:
    """The code with which the program ends: 2 for bad usage, 1 for any other failure. `given` is its input."""
    environment = {**PATIENT, **os.environ}
    command = _command(module, args)
    code = subprocess.run(command, check=False, input=given, text=True, env=environment).returncode
    return code if code in (0, _USAGE) else 1


def _command(module: str, args: tuple[str, ...]) -> list[str]:
    """Raises ConfigError: the package is not here."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None or importlib.util.find_spec(f"{package}.__main__") is None:
        raise ConfigError(
            f"The package `{package}` is not installed here; run this from a checkout of Lethe."
        )
    return [sys.executable, "-m", module, *args]
