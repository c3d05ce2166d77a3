"""A damaged store is found out, backed up in time and brought back, without what was purged since."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from guard.crypto import Secrets
from guard.errors import ConfigError, GuardUnavailable, StartupError
from guard.store import Store, recovery
from guard.store.audit import Filter
from guard.store.recovery import Unusable
from guard.store.schema import audit
from guard.store.targets import Write
from guard.targets import TargetSpec
from tests.guard.register_fakes import SECRETS, make_register, matched, open_store

ROOT = Path(__file__).parents[2]


def put(store, target_id, version=1, name=None):
    spec = TargetSpec(name=name or f"Name of {target_id}", description="a secret " * 200)
    store.targets.put([Write(target_id, spec, version)], now=1_000.0)


def purge(store, target_id, now=2_000.0):
    store.targets.delete(target_id, now, purge=True)


def ids(store):
    return {target.id for target in store.targets.all()}


def damage(path, start=4_096):
    """Every page behind the first is overwritten, as a disk does it that loses writes."""
    content = bytearray(path.read_bytes())
    content[start:] = b"\x5a" * (len(content) - start)
    path.write_bytes(bytes(content))
    for ending in ("-wal", "-shm"):
        Path(f"{path}{ending}").unlink(missing_ok=True)


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lethe.db"


@pytest.fixture
def copy(tmp_path):
    return tmp_path / "backup.db"


def test_a_sound_store_tells_what_it_holds(place):
    store = place.open()
    put(store, "jane")
    put(store, "jane", 2)
    put(store, "bob")
    store.targets.delete("bob", 5.0, purge=False)
    store.keys.create("auditor", None, None, now=1.0)
    assert recovery.check(place.url, SECRETS) == recovery.Report(targets=1, versions=3, keys=1, acts=5)


def test_text_that_does_not_open_and_an_altered_trail_are_found(place):
    store = place.open()
    put(store, "jane")
    put(store, "jane", 2)
    with store._database.write() as connection:
        connection.execute(audit.update().values(key_id="eve"))
    with pytest.raises(Unusable, match=r"audit trail.*Row 1 was changed"):
        recovery.check(place.url, SECRETS)
    with store._database.write() as connection:
        connection.exec_driver_sql("UPDATE target_versions SET version = 7 WHERE version = 1")
    with pytest.raises(ConfigError):
        recovery.check(place.url, SECRETS)


def test_a_damaged_store_comes_back_from_its_backup(store, path, copy):
    put(store, "jane", name="Jane Doe")
    recovery.backup(path, copy)  # while it is in use
    put(store, "bob")
    store.close()
    damage(path)
    with pytest.raises(StartupError, match="lethe store restore"):
        recovery.check(f"sqlite:///{path}", SECRETS)
    done = recovery.restore(copy, path, SECRETS)
    assert (done.report.targets, done.purged) == (1, None)  # nothing can be read of the damaged file
    assert done.aside.exists() and done.aside.name.startswith("lethe.db.damaged-")
    again = open_store(path.parent)
    assert ids(again) == {"jane"}
    assert again.audit.page(Filter(), limit=1).data[0]["action"] == "store.restore"
    put(again, "jane", 2)
    again.close()
    assert path.stat().st_mode & 0o777 == copy.stat().st_mode & 0o777 == 0o600


async def test_the_restored_store_serves(store, path, copy):
    put(store, "jane", name="Jane Doe")
    recovery.backup(path, copy)
    store.close()
    damage(path, start=0)
    with pytest.raises(StartupError):
        open_store(path.parent)
    recovery.restore(copy, path, SECRETS)
    register = make_register(again := open_store(path.parent))
    await register.load()
    assert matched(register, "who is Jane Doe?") == {"jane"}
    await register.put("bob", {"name": "Bob Ray"})
    register.close()
    again.close()


def test_what_was_purged_since_the_backup_is_purged_again(store, path, copy):
    for target_id in ("jane", "bob", "ann"):
        put(store, target_id)
    purge(store, "ann", now=1_500.0)
    put(store, "ann", 2, name="Another Ann")
    recovery.backup(path, copy)
    purge(store, "jane")
    put(store, "jane", 2, name="A new Jane")
    purge(store, "jane", now=3_000.0)
    store.close()
    done = recovery.restore(copy, path, SECRETS)
    assert done.purged == 1
    again = open_store(path.parent)
    assert ids(again) == {"bob", "ann"}  # Ann was purged before the backup, and is another since
    assert again.targets.history("jane") == [] and again.targets.purged("jane")
    assert again.targets.next_versions(["jane"]) == {"jane": 3}
    again.close()
    assert b"jane" not in path.read_bytes()


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + b"\xff" * 9_000])
def test_a_backup_that_is_not_sound_changes_nothing(store, path, copy, content):
    put(store, "jane")
    store.close()
    copy.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(StartupError):
        recovery.restore(copy, path, SECRETS)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.restoring*"))


def test_a_backup_of_another_secret_changes_nothing(store, path, copy, tmp_path):
    other = Store(f"sqlite:///{copy}", Secrets(b"another".ljust(32, b"!")))
    other.close()
    put(store, "jane")
    store.close()
    with pytest.raises(ConfigError):
        recovery.restore(copy, path, SECRETS)
    assert ids(open_store(tmp_path)) == {"jane"}


SERVING = """
import sys, time
from pathlib import Path
from tests.guard.register_fakes import open_store
store = open_store(Path(sys.argv[1]))
print("open", flush=True)
time.sleep(60)
"""


def test_a_store_that_a_server_uses_is_not_replaced(store, path, copy, tmp_path):
    recovery.backup(path, copy)
    store.close()
    server = subprocess.Popen([sys.executable, "-c", SERVING, tmp_path], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert server.stdout.readline() == b"open\n"
        with pytest.raises(Unusable, match="stop it"):
            recovery.restore(copy, path, SECRETS)
    finally:
        server.kill()
        server.communicate()
    assert recovery.restore(copy, path, SECRETS).report.targets == 0


def test_a_backup_replaces_no_file(store, path, copy):
    copy.write_bytes(b"precious")
    with pytest.raises(Unusable, match="exists already"):
        recovery.backup(path, copy)
    assert copy.read_bytes() == b"precious"


def test_damage_that_shows_later_names_the_way_out(store, path):
    for number in range(50):
        put(store, f"t{number}")
    store.close()
    again = open_store(path.parent)
    with again._database.write() as connection:
        page = connection.exec_driver_sql(
            "SELECT rootpage FROM sqlite_master WHERE name = 'target_versions'"
        ).scalar()
    again.close()
    content = bytearray(path.read_bytes())
    content[(page - 1) * 4_096 : page * 4_096] = b"\x5a" * 4_096
    path.write_bytes(bytes(content))
    broken = open_store(path.parent)
    with pytest.raises(GuardUnavailable, match="lethe store check"):
        broken.targets.all()
    broken.close()
