"""PostgreSQL: one database that several servers share.

Writers of all processes stand in one line, as they do in SQLite: each transaction that writes begins with an advisory
lock of the database, which the server gives back when the transaction has ended and can be seen. Row locks would not
do: a target that is not there yet has no row, and sequences number decisions when they are written, not when they are
seen. After the lock, READ COMMITTED shows all that earlier writers committed, so nothing needs to be tried again.
Writes are few and short, so the line costs little; readers do not stand in it.
"""

from __future__ import annotations

import re
import secrets as random
import select
import time
from collections.abc import Sequence
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg.pq import TransactionStatus
from sqlalchemy import event
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from guard.store.schema import meta

ADVICE = "see that it runs, and that this role owns the database"
READING: dict[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}

ANSWER_SECONDS = 20.0
"""More than the server gives a statement: it ends the wait for one that is frozen or cut off."""
ERASE_SECONDS = 600.0
_WRITERS = 0x4C65746865  # the number of the lock; "Lethe"
_OWED = "erase:"
_CHANNEL = "lethe"

_CONNECTING = {
    "application_name": "lethe",
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""What libpq is told, unless the URL says otherwise. Seconds, but for the last, which are milliseconds."""

_SESSION = {
    "synchronous_commit": "on",  # what is acknowledged is on disk, whatever the database's own setting is
    "statement_timeout": "15s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "30s",  # a writer that is cut off does not keep the others waiting
}


class _Connection(psycopg.Connection[Any]):
    """Waits a bounded time for every answer. A server that is frozen keeps its sockets open and says nothing, and
    neither timeouts of its own nor keepalives help then."""

    patience = ANSWER_SECONDS

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, self.patience if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.close()  # the answer may still come, and would be taken for that of the next statement
            raise


def name_of(url: sa.URL) -> str:
    """Without its password."""
    return url.render_as_string()


def create_engine(url: sa.URL) -> sa.Engine:
    """Raises ValueError: the URL names another driver than psycopg."""
    if url.drivername not in ("postgresql", "postgresql+psycopg"):
        raise ValueError(f"its driver is {url.get_driver_name()}; write postgresql+psycopg://")
    engine = sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,  # after the server was away, connections of before are replaced, not tried
        pool_timeout=10,
        connect_args={name: value for name, value in _CONNECTING.items() if name not in url.query},
    )
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "connect", _configure)
    return engine


def begin(connection: sa.Connection, writing: bool) -> None:
    if writing:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITERS})")


def owe_erasure(connection: sa.Connection, tables: Sequence[sa.Table]) -> None:
    """Note, in the transaction that deletes, what `erase_traces` has to do, for whoever gets to it."""
    for table in tables:
        name = _OWED + table.name
        connection.execute(meta.delete().where(meta.c.name == name))
        connection.execute(meta.insert().values(name=name, value=random.token_hex(8)))


def erase_traces(engine: sa.Engine) -> bool:
    """Write the tables anew of which rows were purged; False: an open transaction can still see those rows.

    A plain VACUUM would only allow that their place is used again. The server's log (pg_wal), its archive and backups
    keep what they hold.
    """
    with engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        owed = connection.execute(sa.select(meta).where(meta.c.name.startswith(_OWED))).all()
        if not owed:
            return True
        driver: Any = connection.connection.driver_connection
        connection.detach()  # its settings are for this alone
        driver.patience = ERASE_SECONDS
        connection.exec_driver_sql("SET statement_timeout = 0")
        left = [name for name, value in owed if not _rewrite(connection, driver, name, value)]
        return not left


def announce(connection: sa.Connection) -> None:
    connection.exec_driver_sql(f"NOTIFY {_CHANNEL}")


class Listener:
    """A connection of its own, for one thread, that hears what others announce. While there is none, it sleeps."""

    def __init__(self, url: sa.URL) -> None:
        self._args, self._options = PGDialect_psycopg().create_connect_args(url)
        self._connection: psycopg.Connection[Any] | None = None

    def wait(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        try:
            connection = self._connected()
            heard = select.poll()  # `select` knows no file above 1,023, and busy servers have more
            heard.register(connection.fileno(), select.POLLIN)
            if heard.poll(seconds * 1_000):
                list(connection.notifies(timeout=0))
        except psycopg.Error:
            self.close()
            time.sleep(max(0.0, ends - time.monotonic()))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            options = {**_CONNECTING, **self._options, "autocommit": True}
            self._connection = _Connection.connect(*self._args, **options)
            self._connection.execute(f"LISTEN {_CHANNEL}")
        return self._connection


def listener(url: sa.URL) -> Listener:
    return Listener(url)


def _rewrite(connection: sa.Connection, driver: Any, name: str, value: str) -> bool:
    """Whether no deleted row is left; the note goes then, unless another purge has renewed it meanwhile."""
    kept: list[int] = []

    def count(notice: Any) -> None:
        if found := re.match(r"\s*(\d+)", notice.message_detail or ""):
            kept.append(int(found[1]))  # "0 dead row versions cannot be removed yet."

    driver.add_notice_handler(count)
    try:
        connection.exec_driver_sql(f"VACUUM (FULL, VERBOSE) {name.removeprefix(_OWED)}")
    finally:
        driver.remove_notice_handler(count)
    if not kept or any(kept):  # without a count the server has refused, which it tells by a warning only
        return False
    connection.execute(meta.delete().where(meta.c.name == name, meta.c.value == value))
    return True


def _connect(_dialect: Any, _record: Any, args: Any, options: Any) -> _Connection:
    return _Connection.connect(*args, **options)


def _configure(connection: _Connection, _record: Any) -> None:
    connection.autocommit = True
    for name, value in _SESSION.items():
        connection.execute(f"SET {name} = '{value}'")
    connection.autocommit = False
