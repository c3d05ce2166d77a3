"""Finished runs of a benchmark, kept as JSON lines under a key, so that a command that was stopped goes on; and what
several of them say together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from guard.metrics.bootstrap import Interval, mean_interval

Run = dict[str, Any]


class Runs:
    """Those in the file at `path`. At most `left` new ones are made; None: as many as are asked for."""

    def __init__(self, path: Path, left: int | None = None) -> None:
        self._path, self._left = path, left
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else ()
        self._done: dict[str, Run] = {one["key"]: one for one in map(json.loads, lines)}

    def get(self, key: str, make: Callable[[], Run]) -> Run | None:
        """The run with that key, made now if need be; None: no more may be made."""
        if key not in self._done and self._left != 0:
            self._done[key] = {"key": key, **make()}
            self._keep()
            self._left = None if self._left is None else self._left - 1
        return self._done.get(key)

    def _keep(self) -> None:
        """The file is whole at every moment."""
        part = self._path.with_suffix(".part")
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_text("".join(json.dumps(one) + "\n" for one in self._done.values()), encoding="utf-8")
        part.replace(self._path)


def pooled(seeds: Sequence[Sequence[float]]) -> Interval:
    """The mean over seeds of what each question got; the interval is over questions, each with all its seeds."""
    found = mean_interval([x for one in seeds for x in one], groups=[*range(len(seeds[0]))] * len(seeds))
    assert found is not None
    return found


def key(*about: Any) -> str:
    """What a run is known by: the same about it makes the same run."""
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
