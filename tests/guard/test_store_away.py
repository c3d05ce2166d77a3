"""A database that goes away: told in bounded time, used again when it is back, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import sqlalchemy as sa

from guard.errors import GuardUnavailable
from guard.store import Store
from guard.store.decisions import Filter, Record
from guard.store.targets import Write
from guard.targets import TargetSpec
from tests.guard.register_fakes import SECRETS
from tests.postgres import server

postgres = pytest.importorskip("guard.store.postgres", exc_type=ImportError)
OperationalError = pytest.importorskip("psycopg").OperationalError
pytestmark = pytest.mark.system
JANE = TargetSpec(name="Jane Doe")


@pytest.fixture(scope="module")
def running():
    with server(fsync=True) as found:  # what is acknowledged is what is tested
        found.own()
        yield found


@pytest.fixture
def store(running):
    store = Store(running.fresh(), SECRETS)
    yield store
    store.close()


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr("guard.store.postgres._Connection.patience", 2.0)


def put_until_told(store: Store, stopped: threading.Event, acknowledged: list[int]) -> int:
    """Write versions of one target, again after each failure; how often that was."""
    failures = 0
    while not stopped.is_set() or failures == 0:
        try:
            version = store.targets.next_versions(["jane"])["jane"]
            store.targets.put([Write("jane", JANE, version)], 1.0)
            acknowledged.append(version)
        except GuardUnavailable:
            failures += 1
            time.sleep(0.05)
    return failures


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_a_server_that_stops_amid_writes_loses_no_acknowledged_one(running, store, how):
    acknowledged: list[int] = []
    stopped, failures = threading.Event(), []
    writer = threading.Thread(
        target=lambda: failures.append(put_until_told(store, stopped, acknowledged)), daemon=True
    )
    writer.start()
    while len(acknowledged) < 5:
        time.sleep(0.01)
    running.stop(how)
    try:
        for attempt in (lambda: store.targets.all(), lambda: store.keys.create("admin", None, None, now=1.0)):
            started = time.monotonic()
            with pytest.raises(GuardUnavailable):
                attempt()
            assert time.monotonic() - started < 30
    finally:
        running.start()
    before = len(acknowledged)
    while len(acknowledged) < before + 5:  # the same store works again
        assert writer.is_alive()
        time.sleep(0.01)
    stopped.set()
    writer.join()
    assert failures[0] > 0
    kept = [target.version for target in store.targets.history("jane")]
    assert set(acknowledged) <= set(kept)
    assert kept == list(range(1, len(kept) + 1))


def test_after_a_restart_nobody_asked_in_between_the_first_read_succeeds(running, store):
    store.targets.put([Write("jane", JANE, 1)], 1.0)
    running.stop()
    running.start()
    assert [target.version for target in store.targets.all()] == [1]


def test_a_server_that_is_frozen_is_told_in_bounded_time(running, store, hasty):
    store.targets.put([Write("jane", JANE, 1)], 1.0)
    attempts = (lambda: store.targets.all(), lambda: store.targets.put([Write("jane", JANE, 2)], 1.0))
    told: list[float] = []

    def attempt(work) -> None:
        started = time.monotonic()
        with pytest.raises(GuardUnavailable):
            work()
        told.append(time.monotonic() - started)

    with running.frozen():
        threads = [threading.Thread(target=attempt, args=(work,), daemon=True) for work in attempts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(told) == 2
    store.targets.put([Write("jane", JANE, 2)], 1.0)
    assert [target.version for target in store.targets.all()] == [2]


def test_a_listener_hears_where_a_process_has_many_files_open(store):
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1_100)]
    listener = store.listener()
    try:
        listener.wait(0.1)
        store.targets.put([Write("jane", JANE, 1)], 1.0)
        began = time.monotonic()
        listener.wait(30.0)
        assert time.monotonic() - began < 25.0
    finally:
        listener.close()
        for file in files:
            os.close(file)


def again(store: Store) -> Store:
    """The same database, as another process has it."""
    return Store(store._database._engine.url.render_as_string(hide_password=False), SECRETS)


@pytest.fixture
def soon(monkeypatch):
    """Ends one kind of wait of sessions that begin from now on after half a second."""

    def shorten(name: str) -> None:
        assert name in postgres._SESSION
        monkeypatch.setitem(postgres._SESSION, name, "500ms")

    return shorten


def test_a_statement_that_takes_too_long_is_ended(store, soon):
    soon("statement_timeout")
    other = again(store)
    with pytest.raises(GuardUnavailable), other._database.read() as connection:
        connection.exec_driver_sql("SELECT pg_sleep(20)")
    assert other.targets.all() == []
    other.close()


def test_a_connection_whose_answer_did_not_come_is_not_used_again(running, hasty):
    host, name = running.root.query["host"], running.root.database
    with postgres._Connection.connect(host=host, user="lethe", dbname=name) as connection:
        connection.execute("SELECT 1")
        with running.frozen(), pytest.raises(OperationalError):
            connection.execute("SELECT 2")
        assert connection.closed


def test_a_writer_that_hangs_holds_others_up_for_a_bounded_time(store, soon):
    soon("lock_timeout")
    other = again(store)
    with store._database.write() as connection:
        connection.execute(sa.text("SELECT 1"))
        with pytest.raises(GuardUnavailable):
            other.decisions.add([Record("d1", 1.0, None, "allow", {})])
        assert other.decisions.page(Filter(), limit=9).data == []  # readers do not wait
    other.decisions.add([Record("d1", 1.0, None, "allow", {})])
    other.close()


def test_a_writer_that_is_cut_off_gives_its_turn_up(store, soon):
    soon("idle_in_transaction_session_timeout")
    lost = again(store)

    def hang() -> None:
        with lost._database.write():
            store.targets.put([Write("jane", JANE, 1)], 1.0)

    with pytest.raises(GuardUnavailable):
        hang()
    assert [target.version for target in store.targets.all()] == [1]
    lost.close()


def test_a_purge_beside_an_old_reader_tells_that_traces_are_left_and_a_restart_erases_them(running, store):
    store.targets.put([Write("jane", TargetSpec(name="Jane Doe", description="x" * 4_000), 1)], 1.0)
    with store._database.read() as connection:
        piece = connection.exec_driver_sql("SELECT sealed FROM target_versions").scalar()[:64]
    url = store._database._engine.url
    reader = sa.create_engine(running.root.set(database=url.database), isolation_level="REPEATABLE READ")
    with reader.connect() as old:
        old.exec_driver_sql("SELECT version_num FROM alembic_version")  # a backup that runs, say
        store.targets.delete("jane", 9.0, purge=True)
        with pytest.raises(GuardUnavailable) as caught:
            store.targets.erase_traces()
        assert "next purge or restart" in caught.value.message
        again(store).close()  # and that start is not refused
        assert piece in running.raw()
    reader.dispose()
    again(store).close()
    assert piece not in running.raw()


def test_sealed_values_do_not_lie_in_the_statistics(store):
    store.targets.put([Write(f"t{n}", JANE, 1) for n in range(30)], 1.0)
    with store._database.write() as connection:
        connection.exec_driver_sql("ANALYZE")
        told = connection.exec_driver_sql(
            "SELECT attname FROM pg_stats WHERE schemaname = 'public' AND tablename = 'targets'"
        )
        assert {"key"} <= set(told.scalars()) and not {"sealed_id"} & set(
            connection.exec_driver_sql("SELECT attname FROM pg_stats").scalars()
        )
