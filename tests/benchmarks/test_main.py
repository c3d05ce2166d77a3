"""What all commands do around their work."""

from __future__ import annotations

import os
import signal
import time

import click
from click.testing import CliRunner

from benchmarks.__main__ import main


def test_a_polite_end_takes_down_what_a_run_has_started(monkeypatch):
    ended = []

    @click.command()
    def started() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        finally:
            ended.append(True)

    monkeypatch.setitem(main.commands, "started", started)
    before = signal.getsignal(signal.SIGTERM)
    try:
        result = CliRunner().invoke(main, ["started"])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (result.exit_code, ended) == (143, [True])
