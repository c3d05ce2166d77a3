"""The command line answers at once: what serves and trains is not imported by commands that only ask."""

import subprocess

import pytest

from benchmarks.startup import COMMANDS, answering, lethe

HEAVY = ("torch", "vllm", "transformers", "numpy", "scipy", "sklearn", "onnxruntime", "fastapi", "sqlalchemy",
         "alembic", "sentence_transformers", "faiss", "pandas")  # fmt: skip
ASKED = {**COMMANDS, "lethe serve --help": ("serve", "--help"), "lethe train --help": ("train", "--help")}


def imported(words) -> set[str]:
    """The top of every module that the command imports, in a process of its own."""
    with answering() as server:
        command, environment = lethe(words, server, "-X", "importtime")
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]
    rows = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert rows
    return {row.rpartition("|")[2].strip().partition(".")[0] for row in rows}


@pytest.mark.parametrize("words", ASKED.values(), ids=ASKED)
def test_a_command_that_asks_imports_nothing_heavy(words):
    found = imported(words)
    assert "server" in found and found.isdisjoint(HEAVY)
