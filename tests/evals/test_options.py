"""What all commands do around their work."""

from __future__ import annotations

import asyncio
import os
import signal

import click
import pytest

from evals import options
from evals.client import ClientError


def test_a_polite_end_takes_down_what_the_work_has_started():
    before, ended = signal.getsignal(signal.SIGTERM), []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(30)
        finally:
            ended.append(True)

    with pytest.raises(SystemExit) as end:
        options.drive(work())
    assert end.value.code == 143 and ended == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_end_of_a_process_is_its_own_again_behind_the_work():
    before = signal.getsignal(signal.SIGTERM)

    async def work() -> int:
        assert signal.getsignal(signal.SIGTERM) is not before
        return 7

    async def failing() -> None:
        raise ClientError("nobody answers")

    assert options.drive(work()) == 7 and signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(click.ClickException, match="nobody answers"):
        options.drive(failing())
    assert signal.getsignal(signal.SIGTERM) is before
