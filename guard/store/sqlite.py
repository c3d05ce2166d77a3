"""SQLite: one file of this machine.

It runs in WAL mode with `synchronous=FULL`: what a write has acknowledged survives the loss of the process and of
power. Writers take the lock when they begin, so no transaction fails half-way for want of it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

ADVICE = "look at it with `lethe store check`, and bring back a backup with `lethe store restore`"
READING: dict[str, Any] = {}
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "secure_delete=ON",  # what is deleted is overwritten, not only forgotten
    "busy_timeout=10000",
)


def name_of(url: sa.URL) -> str:
    return str(url.database)


def create_engine(url: sa.URL) -> sa.Engine:
    path = Path(name_of(url))
    _create_private(path)
    lock = os.open(lock_of(path), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_SH)  # nobody puts another file in the place of one that is in use
    engine = sa.create_engine(url)
    event.listen(engine, "connect", _configure)
    event.listen(engine, "engine_disposed", lambda _: os.close(lock), once=True)
    return engine


def lock_of(path: Path) -> Path:
    """A file of its own: SQLite's locks of the database end when any other handle of that file is closed."""
    return path.with_name(path.name + ".lock")


def begin(connection: sa.Connection, writing: bool) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def owe_erasure(_connection: sa.Connection, _tables: Sequence[sa.Table]) -> None:
    """Nothing to note: `erase_traces` costs little enough to be done at every start."""


def erase_traces(engine: sa.Engine) -> bool:
    """Overwrite what deleted rows left in the write-ahead log; False: a reader held it for too long."""
    raw = engine.raw_connection()
    try:
        return not raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    finally:
        raw.close()


def announce(_connection: sa.Connection) -> None:
    """Nobody hears it: processes that share a file look for themselves."""


class Sleeper:
    """Hears nothing."""

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self) -> None:
        pass


def listener(_url: sa.URL) -> Sleeper:
    return Sleeper()


def _create_private(path: Path) -> None:
    """The log and shared-memory files that SQLite adds take their mode from this one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _configure(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late; `begin` sends it
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
