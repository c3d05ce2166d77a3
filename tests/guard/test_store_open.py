"""Opening: a store that cannot be used ends the start with one plain sentence."""

from __future__ import annotations

import socket
import stat
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from guard.crypto import Secrets
from guard.errors import ConfigError, LetheError, StartupError
from guard.store import Store
from guard.store.decisions import Filter, Record
from guard.store.schema import metadata
from tests.guard.register_fakes import SECRETS, open_store


def sentence(error: LetheError) -> str:
    assert "\n" not in error.message
    assert error.message.endswith(".")
    return error.message


def test_the_files_are_for_the_owner_alone(tmp_path):
    folder = tmp_path / "new" / "data"
    store = Store(f"sqlite:///{folder / 'lethe.db'}", SECRETS)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    store.close()


def test_another_master_secret_is_told_at_once(place):
    place.open()
    with pytest.raises(ConfigError) as caught:
        Store(place.url, Secrets(b"another".ljust(32, b"!")))
    assert "LETHE_MASTER_KEY" in sentence(caught.value)


@pytest.mark.parametrize("content", [b"this is not a database" * 300, b"SQLite format 3\0" + b"\xff" * 5_000])
def test_a_damaged_database_is_told_in_one_sentence(tmp_path, content):
    (tmp_path / "lethe.db").write_bytes(content)
    with pytest.raises(StartupError) as caught:
        open_store(tmp_path)
    assert "lethe.db" in sentence(caught.value)


def test_a_folder_in_place_of_the_file_is_told_in_one_sentence(tmp_path):
    (tmp_path / "lethe.db").mkdir()
    with pytest.raises(StartupError) as caught:
        open_store(tmp_path)
    sentence(caught.value)


@pytest.mark.parametrize("url", ["nonsense", "nosuch://host/db", "mysql://host/db"])
def test_a_url_that_names_no_database_is_told_in_one_sentence(url):
    with pytest.raises(StartupError) as caught:
        Store(url, SECRETS)
    sentence(caught.value)


@pytest.mark.parametrize("url", ["postgresql+psycopg2://h/db", "postgresql+asyncpg://h/db"])
def test_another_driver_of_postgresql_is_told_in_one_sentence(url):
    pytest.importorskip("psycopg")
    with pytest.raises(StartupError) as caught:
        Store(url, SECRETS)
    assert "postgresql+psycopg://" in sentence(caught.value)


def test_without_the_driver_postgresql_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "guard.store.postgres", raising=False)
    with pytest.raises(StartupError) as caught:
        Store("postgresql+psycopg://host/db", SECRETS)
    assert "lethe[postgres]" in sentence(caught.value)


def test_a_server_that_is_not_there_is_told_in_one_sentence_without_the_password():
    pytest.importorskip("psycopg")
    with pytest.raises(StartupError) as caught:
        Store("postgresql+psycopg://lethe:hush@127.0.0.1:1/lethe", SECRETS)
    assert "hush" not in sentence(caught.value) and "127.0.0.1" in caught.value.message


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    postgres = pytest.importorskip("guard.store.postgres", exc_type=ImportError)
    assert "connect_timeout" in postgres._CONNECTING
    monkeypatch.setitem(postgres._CONNECTING, "connect_timeout", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port, started = silent.getsockname()[1], time.monotonic()
        with pytest.raises(StartupError) as caught:
            Store(f"postgresql+psycopg://lethe@127.0.0.1:{port}/lethe", SECRETS)
        sentence(caught.value)
        assert time.monotonic() - started < 15


def test_a_store_of_a_newer_version_is_refused(place):
    store = place.open()
    with store._database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StartupError) as caught:
        place.open()
    assert "newer" in sentence(caught.value)


def test_the_migrations_lead_to_the_tables_that_the_code_uses(place):
    place.open()
    engine = sa.create_engine(place.url)
    inspector = sa.inspect(engine)
    for table in metadata.sorted_tables:
        found = {
            c["name"]: (_type(c["type"], engine), c["nullable"]) for c in inspector.get_columns(table.name)
        }
        wanted = {c.name: (_type(c.type, engine), c.nullable) for c in table.columns}
        assert found == wanted
    engine.dispose()


def _type(column: sa.types.TypeEngine, engine: sa.Engine) -> str:
    compiled = column.compile(engine.dialect)
    return {"DOUBLE PRECISION": "FLOAT(53)", "BIGSERIAL": "BIGINT"}.get(compiled, compiled)


def test_servers_that_start_at_once_migrate_once(place):
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(lambda _: Store(place.url, SECRETS), range(3)))
    assert [store.snapshot for store in stores] == [0, 0, 0]
    for store in stores:
        store.close()


@pytest.fixture
def decisions(place):
    store = place.open()
    actions = ("allow", "intervene", "refuse")
    records = [
        Record(f"d{i}", float(i), "acme" if i % 2 else None, actions[i % 3], {"id": f"d{i}"})
        for i in range(10)
    ]
    store.decisions.add(records)
    return store.decisions


def ids(page) -> list[str]:
    return [record["id"] for record in page.data]


def test_decisions_come_newest_first_page_by_page(decisions):
    seen, before = [], None
    while True:
        page = decisions.page(Filter(), limit=4, before=before)
        seen += ids(page)
        before = page.before
        if before is None:
            break
    assert seen == [f"d{i}" for i in reversed(range(10))]


def test_decisions_are_filtered_by_action_tenant_and_time(decisions):
    assert ids(decisions.page(Filter(action="refuse"), limit=9)) == ["d8", "d5", "d2"]
    assert ids(decisions.page(Filter(tenant="acme", since=3.0, until=7.0), limit=9)) == ["d5", "d3"]


def test_a_decision_is_recorded_once(decisions):
    decisions.add(
        [Record("d1", 50.0, None, "allow", {"id": "again"}), Record("d99", 51.0, None, "allow", {})]
    )
    assert decisions.get("d1") == {"id": "d1"}
    assert decisions.get("d99") == {}


@pytest.mark.parametrize("at_once", [2, 100])
def test_old_decisions_are_pruned(decisions, monkeypatch, at_once):
    monkeypatch.setattr("guard.store.decisions._PRUNED", at_once)
    assert decisions.prune(older_than=6.0) == 6
    assert ids(decisions.page(Filter(), limit=9)) == ["d9", "d8", "d7", "d6"]
