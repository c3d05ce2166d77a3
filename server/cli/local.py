"""`lethe demo`, `train`, `eval`, `bench`: packages of the repository, each run as a program of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import NoReturn

import click

from guard.errors import ConfigError
from server.cli.base import example

_PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}
_USAGE = 2


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
        "lethe train --help",
    ),
)
@click.argument("kind")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def train(kind: str, args: tuple[str, ...]) -> None:
    """Train an artifact of KIND on this machine; ARGS are those of `python -m classifiers`. `lethe jobs` does it beside
    a running server."""
    _run("classifiers", (kind, *args))


@click.command(context_settings=_PASSED_ON, epilog=example("lethe bench"))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def bench(args: tuple[str, ...]) -> None:
    """Measure the guarded server against bare vLLM, in one run; ARGS are those of `python -m benchmarks`."""
    _run("benchmarks", args)


def _run(module: str, args: tuple[str, ...]) -> NoReturn:
    """End as the program ends: 2 for bad usage, 1 for any other failure."""
    if importlib.util.find_spec(module) is None or importlib.util.find_spec(f"{module}.__main__") is None:
        raise ConfigError(f"The package `{module}` is not installed here; run this from a checkout of Lethe.")
    code = subprocess.run([sys.executable, "-m", module, *args], check=False).returncode
    sys.exit(code if code in (0, _USAGE) else 1)
