"""A trainer as a process of its own, behind its line protocol: `python -m classifiers`, or whatever speaks like it.

Examples go in over its input, so none of their text lies on disk, and a trainer whose input closes ends: it never
outlives the server. What it prints beside the protocol is not kept, because libraries may print the examples.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from guard.errors import LetheError

PROGRAM = (sys.executable, "-m", "classifiers")
TERM_SECONDS = 5.0
_ROOT = Path(__file__).resolve().parents[1]
_POLL_SECONDS = 0.05
_TRIES = 10
_LOG_LINES, _LINE = 50, 500
_LONGEST = 2**16  # bytes of an event
_KIND = re.compile(rb"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt))\b")


class TrainerFailed(LetheError):
    """The trainer ended without an artifact; the message says why."""


class Log:
    """The last lines of a job's log."""

    def __init__(self, lines: Sequence[str] = ()) -> None:
        self._lines = deque(lines, _LOG_LINES)

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(self._lines)

    def note(self, message: str) -> None:
        self._lines.append(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {message}"[:_LINE])


class Trainer:
    """One running trainer, which writes to `log`. `progress` is how far it says to be, 0 to 1."""

    def __init__(self, process: asyncio.subprocess.Process, log: Log) -> None:
        self.progress = 0.0
        self._log = log
        self._process = process
        self._stage = ""
        self._error: str | None = None
        self._raised = ""

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        examples: Mapping[str, Any],
        *,
        folder: Path,
        log: Log,
        nice: int,
        threads: int,
    ) -> Trainer:
        """Start `command` in a session of its own and give it the examples. What it leaves in temporary files
        lies in `folder`."""
        process = await asyncio.create_subprocess_exec(
            "nice",
            "-n",
            str(nice),
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**_environment(threads), "TMPDIR": str(folder)},
        )
        await _step_back(process.pid, nice)
        trainer = cls(process, log)
        assert process.stdin is not None
        process.stdin.write(json.dumps(dict(examples)).encode() + b"\n")
        return trainer

    async def watch(self) -> None:
        """Follow it until it has ended.

        Raises:
            TrainerFailed: it has no artifact.
        """
        reading = asyncio.gather(self._read_events(), self._read_errors())
        try:
            code = await self._ended()
            self._signal(signal.SIGKILL)  # what it started would hold its output open
            await reading
        finally:
            reading.cancel()
        if code != 0:
            raise TrainerFailed(self._error or _why(code, self._raised))

    async def stop(self) -> None:
        """End it and all that it started: first asked, then killed."""
        self._signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(TERM_SECONDS):
                await self._ended()
        self._signal(signal.SIGKILL)
        await self._ended()
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def _ended(self) -> int:
        """Its exit code. (`wait` of asyncio would also wait for all that hold its output open.)"""
        while self._process.returncode is None:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(_POLL_SECONDS)
        return self._process.returncode

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def _read_events(self) -> None:
        assert self._process.stdout is not None
        async for line in _lines(self._process.stdout):
            with suppress(ValueError, KeyError, TypeError, AttributeError):  # not ours: a library's print
                self._take(json.loads(line))

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None
        async for line in _lines(self._process.stderr):
            if found := _KIND.match(line):
                self._raised = found[1].decode()

    def _take(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "progress":
            self.progress = min(max(float(event["done"]), 0.0), 1.0)
            if event["stage"] != self._stage:
                self._stage = str(event["stage"])
                self._log.note(self._stage)
        elif event["event"] == "error":
            self._error = str(event["message"])[:_LINE]
            self._log.note(self._error)
        elif event["event"] == "done":
            for name, value in event["measured"].items():
                self._log.note(f"{name}: {value}")


async def _step_back(session: int, nice: int) -> None:
    """Weigh a whole session by `nice`. Where Linux groups processes by their sessions (autogroups), all of them get the
    same share of the processors, and `nice` counts among the processes of one only."""
    for _ in range(_TRIES):
        try:
            Path(f"/proc/{session}/autogroup").write_text(str(nice))  # noqa: ASYNC240 - memory, not a disk
        except BlockingIOError:  # at most one in a tenth of a second
            await asyncio.sleep(0.1)
        except OSError:  # it has ended, or nothing is grouped here
            return
        else:
            return


async def schemas(program: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """The JSON schema of each trainer's parameters. Somebody waits for them: they do not step back behind serving.

    Raises:
        TrainerFailed: the program does not tell.
    """
    process = await asyncio.create_subprocess_exec(
        *program, "--schemas",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env=_environment(1),
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(process.communicate(), timeout_s)
        found: dict[str, Any] = json.loads(out)
    except (TimeoutError, ValueError):
        raise TrainerFailed("The trainers do not tell their parameters; install the extra `train`.") from None
    finally:
        if process.returncode is None:
            process.kill()
    return found


def _environment(threads: int) -> dict[str, str]:
    """Ours without the installation's secrets, with so many threads, which sleep while they wait, and no accelerator:
    that one serves."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LETHE_")}
    number = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), str(threads)
    )
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    return {
        **kept,
        **number,
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": path,
    }


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines of the stream; one longer than an event can be is left out."""
    rest, skipping = b"", False
    while part := await stream.read(_LONGEST):
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            if not skipping:
                yield line
            skipping = False
        if len(rest) > _LONGEST:
            rest, skipping = b"", True


def _why(code: int, raised: str) -> str:
    if code < 0:
        return f"The trainer was ended by {signal.Signals(-code).name}; the machine may lack memory."
    return f"The trainer ended with exit code {code}" + (f" and {raised}." if raised else ".")
