"""`lethe store`, on the machine that holds it."""

from __future__ import annotations

import pytest

from guard.crypto import Secrets
from guard.store import Store
from tests.guard.test_store_recovery import damage, ids, purge, put
from tests.server.test_cli import lethe


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    store = Store(f"sqlite:///{folder / 'lethe.db'}", Secrets.load(folder))
    put(store, "jane")
    put(store, "bob")
    store.close()
    return folder


def run(*args, data, **options):
    return lethe("store", *args, "--data-dir", str(data), **options)


def test_a_store_is_checked_backed_up_and_brought_back(data, tmp_path):
    assert run("check", data=data).output == "sound: 2 targets in 2 versions, 0 keys, 2 acts\n"
    copy = tmp_path / "copy.db"
    assert run("backup", str(copy), data=data).exit_code == 0
    store = Store(f"sqlite:///{data / 'lethe.db'}", Secrets.load(data))
    purge(store, "jane")
    store.close()
    assert run("restore", str(copy), data=data, input="n\n").exit_code == 1
    done = run("restore", str(copy), "--yes", data=data)
    assert done.exit_code == 0 and done.stdout == "restored: 1 targets, 0 keys\n"
    assert "1 targets that were purged since are purged here too" in done.stderr
    store = Store(f"sqlite:///{data / 'lethe.db'}", Secrets.load(data))
    assert ids(store) == {"bob"}
    store.close()
    damage(data / "lethe.db")
    broken = run("check", data=data)
    assert broken.exit_code == 1 and "lethe store restore" in broken.stderr
    assert "purge again what must not come back" in run("restore", str(copy), "--yes", data=data).stderr


def test_what_is_not_there_is_said(data, tmp_path):
    empty = run("check", data=tmp_path / "nowhere")
    assert empty.exit_code == 1 and "master secret" in empty.stderr
    assert not (tmp_path / "nowhere").exists()
    other = tmp_path / "other"
    other.mkdir()
    Secrets.load(other)
    assert "There is no store" in run("check", data=other).stderr
    assert not (other / "lethe.db").exists()


def test_postgresql_has_tools_of_its_own(data, tmp_path, monkeypatch):
    monkeypatch.setenv("LETHE_STORE_URL", "postgresql+psycopg://lethe@127.0.0.1:1/lethe")
    assert "pg_dump" in run("backup", str(tmp_path / "x"), data=data).stderr
    (tmp_path / "y").touch()
    assert "pg_restore" in run("restore", str(tmp_path / "y"), "--yes", data=data).stderr
