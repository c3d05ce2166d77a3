"""One database: how it is opened, migrated, read and written, and how its failures are told.

What differs between databases lies in `sqlite` and `postgres`. Both give the same: transactions that write happen one
after the other, each sees all before it, and what one has acknowledged is on disk.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from guard.errors import GuardUnavailable, StartupError
from guard.store.schema import meta

logger = logging.getLogger(__name__)

Counter = Literal["snapshot", "keys"]
"""What is numbered: changes of what is enforced, and of keys."""

_BATCH = 500
_WAIT_SECONDS = 10.0
_BACKENDS = {"sqlite": "guard.store.sqlite", "postgresql": "guard.store.postgres"}
_DAMAGED = ("malformed", "file is not a database", "invalid page")
_MISSING = "PostgreSQL needs the package psycopg, which is not installed: pip install 'lethe[postgres]'."


class Backend(Protocol):
    """What `sqlite` and `postgres` give. `READING` are SQLAlchemy's options of a transaction that only reads, `ADVICE`
    is for who cannot open the database."""

    ADVICE: str
    READING: dict[str, Any]

    def name_of(self, url: sa.URL) -> str: ...

    def create_engine(self, url: sa.URL) -> sa.Engine: ...

    def begin(self, connection: sa.Connection, writing: bool) -> None: ...

    def owe_erasure(self, connection: sa.Connection, tables: Sequence[sa.Table]) -> None: ...

    def erase_traces(self, engine: sa.Engine) -> bool: ...

    def announce(self, connection: sa.Connection) -> None: ...

    def listener(self, url: sa.URL) -> Listener: ...


class Listener(Protocol):
    """Hears of changes that other processes announce. It may miss some: who waits also looks now and then."""

    def wait(self, seconds: float) -> None:
        """Until something was announced, or for so long."""
        ...

    def close(self) -> None: ...


class Database:
    """A database at its newest form. Threads may share it; writes of this process happen one at a time.

    Raises:
        StartupError: it cannot be reached, is damaged, or was written by a newer Lethe.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = sa.make_url(url)
            self._backend = _backend_of(parsed)
            self.name = self._backend.name_of(parsed)
            engine = self._backend.create_engine(parsed)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise StartupError(f"The store URL is not usable: {_first_line(error)}.") from None
        except OSError as error:
            raise StartupError(f"The store {self.name} cannot be opened: {error.strerror}.") from None
        event.listen(engine, "begin", self._begin)
        self._engine = engine
        self._reading = engine.execution_options(**self._backend.READING)
        self._writing = engine.execution_options(lethe_write=True)
        self._lock = threading.RLock()
        try:
            self._migrate()
            self._finish_purges()
        except StartupError:
            self.close()
            raise

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A consistent view for the length of the block."""
        with self._told(), self._reading.begin() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction: all of the block or, when it raises, nothing. No other begins before it has ended."""
        with self._told(), self._alone(), self._writing.begin() as connection:
            yield connection

    def owe_erasure(self, connection: sa.Connection, *tables: sa.Table) -> None:
        """To be called by a transaction that deletes rows of `tables` which `erase_traces` shall erase."""
        self._backend.owe_erasure(connection, tables)

    def erase_traces(self) -> None:
        """Overwrite what deleted rows left behind them; call after the deleting transaction.

        Raises:
            GuardUnavailable: a reader held it for too long.
        """
        with self._told(), self._alone():
            done = self._backend.erase_traces(self._engine)
        if not done:
            raise GuardUnavailable(
                "The target is deleted, but its log is still in use; the next purge or restart erases that.",
                reason="store",
            )

    def count(self, connection: sa.Connection, name: Counter) -> int:
        """The next number of `name`, for the transaction that makes a change; who listens hears of it when it is
        committed."""
        number = number_of(connection, name) + 1
        put_value(connection, name, str(number))
        self._backend.announce(connection)
        return number

    def listener(self) -> Listener:
        return self._backend.listener(self._engine.url)

    @property
    def advice(self) -> str:
        """For who cannot use the database."""
        return self._backend.ADVICE

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
            with self._writing.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except CommandError:
            raise StartupError(
                f"The store {self.name} was written by a newer Lethe; start that one."
            ) from None
        except SQLAlchemyError as error:
            reason = _first_line(getattr(error, "orig", None) or error)
            raise StartupError(
                f"The store {self.name} cannot be opened ({reason}); {self._backend.ADVICE}."
            ) from None

    def _finish_purges(self) -> None:
        try:
            self.erase_traces()
        except GuardUnavailable as error:
            logger.warning("%s", error.message)  # others read: a backup, say, or a server that starts as well

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise  # not a failure of the database but its answer
        except (DBAPIError, sa.exc.TimeoutError) as error:
            reason = _first_line(getattr(error, "orig", None) or error)
            damaged = any(sign in reason for sign in _DAMAGED)
            told = f"The store {self.name} is damaged ({reason}); {self._backend.ADVICE}."
            raise GuardUnavailable(
                told if damaged else f"The store does not answer: {reason}.", reason="store"
            ) from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Threads wait here and not in the database, each with a connection of its own; and not for ever."""
        if not self._lock.acquire(timeout=_WAIT_SECONDS):
            raise GuardUnavailable("The store does not answer: others still wait for it.", reason="store")
        try:
            yield
        finally:
            self._lock.release()

    def _begin(self, connection: sa.Connection) -> None:
        self._backend.begin(connection, bool(connection.get_execution_options().get("lethe_write")))


def number_of(connection: sa.Connection, name: Counter) -> int:
    """That of the last change of `name`."""
    return int(value_of(connection, name) or 0)


def value_of(connection: sa.Connection, name: str) -> str | None:
    """What the store remembers under a name; None: nothing."""
    return connection.scalar(sa.select(meta.c.value).where(meta.c.name == name))


def put_value(connection: sa.Connection, name: str, value: str) -> None:
    row = {"name": name, "value": value}
    if connection.execute(meta.update().where(meta.c.name == name).values(row)).rowcount == 0:
        connection.execute(meta.insert().values(row))


def batches(values: Sequence[str]) -> Iterator[Sequence[str]]:
    """Databases bound the number of parameters in one statement."""
    for start in range(0, len(values), _BATCH):
        yield values[start : start + _BATCH]


def _backend_of(url: sa.URL) -> Backend:
    """Raises ImportError: it is not known, or its driver is not installed."""
    name = url.get_backend_name()
    if name not in _BACKENDS:
        raise ImportError(f"the store is SQLite or PostgreSQL, not {name}")
    try:
        return import_module(_BACKENDS[name])
    except ModuleNotFoundError as error:
        raise StartupError(_MISSING) if error.name == "psycopg" else error from None


def _first_line(error: Any) -> str:
    return str(error).split("\n")[0].rstrip(".")
