"""How far a trainer has come, told to people as a bar or to programs as one JSON object per line.

The events: `{"event": "progress", "done": 0..1, "stage"}`, `{"event": "error", "message"}` and, last,
`{"event": "done", "artifact", "measured"}`. None holds text of the examples.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO, Any, Protocol

from tqdm import tqdm

_LEAST = 0.005  # of the whole, between two reports of one stage


class Progress(Protocol):
    """`report` takes the share that is done, 0 to 1, and what is being done now."""

    def report(self, done: float, stage: str) -> None: ...

    def error(self, message: str) -> None: ...

    def finish(self, artifact: str, measured: dict[str, Any]) -> None: ...


class Silent:
    """Tells nobody."""

    def report(self, done: float, stage: str) -> None:
        pass

    def error(self, message: str) -> None:
        pass

    def finish(self, artifact: str, measured: dict[str, Any]) -> None:
        pass


class Bar(Silent):
    """A bar on the error output of a terminal."""

    def __init__(self) -> None:
        self._bar = tqdm(
            total=1.0, disable=None, bar_format="{desc} {percentage:3.0f} %|{bar:30}| {elapsed}<{remaining}"
        )

    def report(self, done: float, stage: str) -> None:
        self._bar.set_description_str(stage, refresh=False)
        self._bar.update(done - self._bar.n)

    def error(self, message: str) -> None:
        self._bar.close()

    def finish(self, artifact: str, measured: dict[str, Any]) -> None:
        self._bar.update(1.0 - self._bar.n)
        self._bar.close()


class Lines:
    """Events to `out`, one JSON object per line."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._last: tuple[str, float] = ("", 0.0)

    @classmethod
    def of_stdout(cls) -> Lines:
        """Takes the process's output for itself: what libraries print goes to the error output from now on."""
        own = os.fdopen(os.dup(1), "w", encoding="utf-8")
        sys.stdout.flush()
        os.dup2(2, 1)
        return cls(own)

    def report(self, done: float, stage: str) -> None:
        if stage != self._last[0] or done - self._last[1] >= _LEAST:
            self._last = (stage, done)
            self._tell(event="progress", done=round(done, 4), stage=stage)

    def error(self, message: str) -> None:
        self._tell(event="error", message=message)

    def finish(self, artifact: str, measured: dict[str, Any]) -> None:
        self._tell(event="done", artifact=artifact, measured=measured)

    def _tell(self, **event: Any) -> None:
        self._out.write(json.dumps(event) + "\n")
        self._out.flush()
