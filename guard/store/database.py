"""One database: how it is opened, migrated, read and written, and how its failures are told.

SQLite runs in WAL mode with `synchronous=FULL`: what a write has acknowledged survives the loss of the
process and of power. Writers take the lock when they begin, so no transaction fails half-way for want of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError, IntegrityError, SQLAlchemyError

from guard.errors import GuardUnavailable, StartupError
from guard.store.schema import meta

_BATCH = 500
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=FULL",
    "foreign_keys=ON",
    "secure_delete=ON",  # what is deleted is overwritten, not only forgotten
    "busy_timeout=10000",
)


class Database:
    """A database at its newest form. Threads may share it; writes of this process happen one at a time.

    Raises:
        StartupError: it cannot be reached, is damaged, or was written by a newer Lethe.
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = sa.make_url(url)
            self.sqlite = self._url.get_backend_name() == "sqlite"
            self.name = str(self._url.database) if self.sqlite else self._url.render_as_string()
            if self.sqlite:
                _create_private(Path(self.name))
            self._engine = sa.create_engine(self._url)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise StartupError(f"The store URL is not usable: {_first_line(error)}.") from None
        except OSError as error:
            raise StartupError(f"The store {self.name} cannot be opened: {error.strerror}.") from None
        self._lock = threading.RLock()
        if self.sqlite:
            event.listen(self._engine, "connect", _configure)
            event.listen(self._engine, "begin", _begin)
        self._migrate()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A consistent view for the length of the block."""
        with self._told(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction: all of the block or, when it raises, nothing."""
        with self._told(), self._lock, self._engine.connect() as connection:
            connection = connection.execution_options(lethe_write=True)
            with connection.begin():
                yield connection

    def erase_traces(self) -> None:
        """Overwrite what deleted rows left in the write-ahead log; call after the deleting transaction.

        Raises:
            GuardUnavailable: a reader held the log for too long.
        """
        if not self.sqlite:
            return
        with self._told(), self._lock:
            raw = self._engine.raw_connection()
            try:
                busy = raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                raw.close()
        if busy:
            raise GuardUnavailable(
                "The target is deleted, but its log is still in use; the next purge or restart erases that.",
                reason="store",
            )

    def close(self) -> None:
        self._engine.dispose()

    def _migrate(self) -> None:
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option(
            "script_location", str(Path(__file__).parent / "migrations").replace("%", "%%")
        )
        try:
            with self._engine.connect() as connection:
                connection = connection.execution_options(lethe_write=True)
                with connection.begin():
                    config.attributes["connection"] = connection
                    command.upgrade(config, "head")
            self.erase_traces()
        except CommandError:
            raise StartupError(
                f"The store {self.name} was written by a newer Lethe; start that one."
            ) from None
        except (SQLAlchemyError, GuardUnavailable) as error:
            reason = _first_line(getattr(error, "orig", None) or error)
            raise StartupError(
                f"The store {self.name} cannot be opened ({reason}); restore a backup of it or move it away."
            ) from None

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise  # not a failure of the database but its answer
        except (DatabaseError, sa.exc.TimeoutError) as error:
            reason = _first_line(getattr(error, "orig", None) or error)
            raise GuardUnavailable(f"The store does not answer: {reason}.", reason="store") from error


def next_snapshot(connection: sa.Connection) -> int:
    """Count one change of what is enforced, inside the transaction that makes the change."""
    number = snapshot_number(connection) + 1
    row = {"name": "snapshot", "value": str(number)}
    if connection.execute(meta.update().where(meta.c.name == "snapshot").values(row)).rowcount == 0:
        connection.execute(meta.insert().values(row))
    return number


def snapshot_number(connection: sa.Connection) -> int:
    found = connection.scalar(sa.select(meta.c.value).where(meta.c.name == "snapshot"))
    return int(found or 0)


def batches(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """Databases bound the number of parameters in one statement."""
    for start in range(0, len(values), _BATCH):
        yield values[start : start + _BATCH]


def _create_private(path: Path) -> None:
    """The log and shared-memory files that SQLite adds take their mode from this one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _configure(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late; `_begin` sends it
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    writing = connection.get_execution_options().get("lethe_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _first_line(error: Any) -> str:
    return str(error).split("\n")[0].rstrip(".")
