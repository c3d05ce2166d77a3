"""What the store promises of targets: nothing acknowledged is lost, nothing purged is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from guard.errors import GuardUnavailable, NotFound, PreconditionFailed
from guard.store import Store
from guard.store.decisions import Filter, Record
from guard.store.jobs import Request
from guard.store.targets import Write
from guard.targets import TargetSpec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(place):
    return place.open()


def put(store: Store, target_id: str, version: int = 1, **fields) -> int:
    spec = TargetSpec(name=fields.pop("name", "Jane Doe"), **fields)
    return store.targets.put([Write(target_id, spec, version)], now=1_000.0 + version)


def sealed_blobs(store: Store) -> list[bytes]:
    with store._database.read() as connection:
        return [row[0] for row in connection.exec_driver_sql("SELECT sealed FROM target_versions")]


KILLED_WRITER = """
import sys, time
from tests.guard.register_fakes import SECRETS
from guard.store import Store
from guard.store.targets import Write
from guard.targets import TargetSpec
store = Store(sys.argv[1], SECRETS)
number = store.targets.put([Write("jane", TargetSpec(name="Jane Doe"), 1)], 1.0)
print("stored", number, flush=True)
time.sleep(60)
"""


def test_an_acknowledged_write_survives_kill_9(place):
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, place.url], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "stored 1\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    store = place.open()
    assert [target.spec.name for target in store.targets.all()] == ["Jane Doe"]
    assert store.snapshot == 1


def test_every_commit_is_synced_to_disk(store, place):
    with store._database.read() as connection:
        if connection.dialect.name == "sqlite":
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL
            return
    with store._database.write() as connection:
        name = connection.engine.url.database
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    with place.open()._database.write() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


def test_all_versions_are_kept_and_the_newest_is_current(store):
    put(store, "jane", 1)
    put(store, "jane", 2, name="Jane Roe")
    assert [(t.version, t.spec.name) for t in store.targets.history("jane")] == [
        (1, "Jane Doe"),
        (2, "Jane Roe"),
    ]
    assert [(t.id, t.version, t.created_at.timestamp()) for t in store.targets.all()] == [
        ("jane", 2, 1_001.0)
    ]


def test_the_whole_specification_comes_back(store):
    spec = {
        "aliases": ("J. Doe",),
        "threshold": {"score": 0.5},
        "metadata": {"n": [1, None, "x"]},
        "tags": ("a",),
    }
    put(store, "jane", **spec)
    assert store.targets.all()[0].spec == TargetSpec(name="Jane Doe", **spec)


def test_a_version_is_written_once(store):
    put(store, "jane", 1)
    with pytest.raises(PreconditionFailed):
        put(store, "jane", 1, name="Jane Roe")
    assert store.targets.all()[0].spec.name == "Jane Doe"
    assert store.snapshot == 1


def test_a_batch_is_stored_as_a_whole_or_not_at_all(store):
    put(store, "b", 1)
    with pytest.raises(PreconditionFailed):
        store.targets.put([Write("a", TargetSpec(name="Aa"), 1), Write("b", TargetSpec(name="Bb"), 1)], 5.0)
    assert [target.id for target in store.targets.all()] == ["b"]


def test_neither_names_nor_ids_can_be_read_from_the_files(store, place):
    put(store, "jane-doe", description="lives in Springfield")
    raw = place.raw()
    assert sealed_blobs(store)[0][:64] in raw
    for text in (b"jane-doe", b"Jane Doe", b"Springfield"):
        assert text not in raw


def test_purge_leaves_no_sealed_byte_in_any_file(store, place):
    put(store, "jane", 1, description="x" * 20_000)  # long enough for overflow pages
    put(store, "jane", 2)
    put(store, "bob", 1, name="Bob")
    store.decisions.add([decision(1, "jane", text="who is Jane Doe?" * 200)])
    blobs = sealed_blobs(store)
    with store._database.read() as connection:
        blobs.insert(0, connection.exec_driver_sql("SELECT sealed_text FROM decisions").scalar())
    pieces = [blob[i : i + 64] for blob in blobs[:3] for i in range(0, len(blob) - 64, 1024)]
    raw = place.raw()
    there = [piece for piece in pieces if piece in raw]
    assert len(there) > 0.9 * len(pieces)  # PostgreSQL cuts long values, here and there through a piece
    store.targets.delete("jane", 9.0, purge=True)
    store.targets.erase_traces()
    left = place.raw()
    assert not [piece for piece in pieces if piece in left]
    assert [target.id for target in store.targets.all()] == ["bob"]


def test_a_new_life_after_purge_has_no_past(store):
    put(store, "jane", 1)
    store.targets.delete("jane", 9.0, purge=True)
    assert store.targets.history("jane") == []
    assert store.targets.purged("jane")
    assert store.targets.next_versions(["jane"]) == {"jane": 2}  # no ETag of the old life fits the new one
    put(store, "jane", 2, name="Somebody Else")
    assert [t.version for t in store.targets.history("jane")] == [2]


def test_a_deleted_target_can_still_be_purged(store):
    put(store, "jane", 1)
    store.targets.delete("jane", 9.0, purge=False)
    assert store.targets.all() == []
    assert len(store.targets.history("jane")) == 1
    with pytest.raises(NotFound):
        store.targets.delete("jane", 9.0, purge=False)
    store.targets.delete("jane", 9.0, purge=True)
    assert store.targets.history("jane") == []
    with pytest.raises(NotFound):
        store.targets.delete("jane", 9.0, purge=True)


def decision(number: int, *targets: str, text: str | None = None) -> Record:
    body = {
        "id": f"d{number}",
        "tenant": None,
        "targets": [{"id": target, "score": 0.9} for target in targets],
        "events": [{"event": "cut", "target": target} for target in targets],
    }
    return Record(f"d{number}", float(number), None, "refuse", body, targets, text)


def test_decisions_name_a_target_until_it_is_purged(store, place):
    put(store, "jane-doe", 1)
    store.decisions.add([decision(1, "jane-doe", text="who is jane-doe?"), decision(2)])
    found = store.decisions.get("d1")
    assert (found["targets"][0]["id"], found["events"][0]["target"]) == ("jane-doe", "jane-doe")
    assert found["text"] == "who is jane-doe?"
    assert b"jane-doe" not in place.raw()
    store.targets.delete("jane-doe", 9.0, purge=True)
    put(store, "jane-doe", 2)  # the same id, another life
    found = store.decisions.get("d1")
    assert found["targets"][0]["id"].startswith("purged-")
    assert found["events"][0]["target"] == found["targets"][0]["id"]
    assert "text" not in found
    assert store.decisions.page(Filter(target="jane-doe"), limit=10).data == []


def test_a_decision_that_is_written_after_the_purge_names_nothing(store):
    put(store, "jane", 1)
    store.targets.delete("jane", 9.0, purge=True)
    store.decisions.add([decision(1, "jane", text="who is jane?")])
    found = store.decisions.get("d1")
    assert found["targets"][0]["id"].startswith("purged-")
    assert "text" not in found


def test_concurrent_writers_count_every_change_once(store):
    numbers: list[int] = []

    def write(name: str) -> None:
        for version in range(1, 6):
            numbers.append(put(store, name, version))

    threads = [threading.Thread(target=write, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(1, 21))
    assert store.snapshot == 20


def test_two_processes_of_one_store_do_not_lose_writes(store, place):
    other = place.open()
    put(store, "a", 1)
    put(other, "b", 1)
    assert store.snapshot == other.snapshot == 2
    assert [target.id for target in store.targets.all()] == ["a", "b"]


def test_a_write_that_judged_by_an_older_version_is_refused(store, place):
    spec = TargetSpec(name="Jane Roe")
    put(store, "jane", 1)
    with pytest.raises(PreconditionFailed):
        store.targets.put([Write("jane", spec, 2, seen=0)], 5.0)
    store.targets.put([Write("jane", spec, 2, seen=1)], 5.0)
    with pytest.raises(PreconditionFailed):
        store.targets.delete("jane", 6.0, purge=True, seen=1)
    store.targets.delete("jane", 6.0, purge=True, seen=2)
    with pytest.raises(PreconditionFailed):  # numbers go on behind the purge
        store.targets.put([Write("jane", spec, 1)], 7.0)
    with pytest.raises(PreconditionFailed):
        store.targets.put([Write("jane", spec, 3, seen=2)], 7.0)
    store.targets.put([Write("jane", spec, 3, seen=0)], 7.0)


def test_writers_of_several_processes_stand_in_one_line(store, place):
    """So decisions are numbered as they are seen: whoever reads on behind the newest misses none."""
    other = place.open()
    done = threading.Event()

    def write() -> None:
        other.decisions.add([decision(2)])
        done.set()

    with store._database.write() as connection:
        store.decisions._add(connection, decision(1), {})
        thread = threading.Thread(target=write)
        thread.start()
        assert not done.wait(1.0)
    thread.join()
    assert [found["id"] for found in store.decisions.page(Filter(), limit=9).data] == ["d2", "d1"]


def test_what_is_read_in_one_block_is_of_one_moment(store, place):
    other = place.open()
    with store._database.read() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM targets").scalar() == 0
        put(other, "jane", 1)
        assert connection.exec_driver_sql("SELECT count(*) FROM target_versions").scalar() == 0
    assert len(store.targets.all()) == 1


def test_threads_wait_for_their_turn_to_write_for_a_bounded_time(store, monkeypatch):
    monkeypatch.setattr("guard.store.database._WAIT_SECONDS", 0.2)
    told: list[Exception] = []

    def write() -> None:
        try:
            put(store, "jane", 1)
        except GuardUnavailable as error:
            told.append(error)

    with store._database.write():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join(30)
    assert len(told) == 1


RIVAL = """
import sys
from tests.guard.register_fakes import SECRETS
from guard.errors import PreconditionFailed
from guard.store import Store
from guard.store.targets import Write
from guard.targets import TargetSpec
store, name = Store(sys.argv[1], SECRETS), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
written = 0
while written < 15:
    version = store.targets.next_versions(["jane"])["jane"]
    try:
        number = store.targets.put([Write("jane", TargetSpec(name=name), version, seen=version - 1)], 1.0)
    except PreconditionFailed:
        continue
    print("put", version, number)
    written += 1
while job := store.jobs.claim(name, 20.0, 30.0):
    print("job", job.id)
"""


def test_rivals_in_several_processes_lose_no_write_and_share_no_job(store, place):
    names = [f"rival {letter}" for letter in "abc"]
    store.targets.put([Write("other", TargetSpec(name="Other"), 1)], 1.0)
    made = [store.jobs.create("adapter", "other", None, Request(), float(n)).id for n in range(15)]
    rivals = [
        subprocess.Popen(
            [sys.executable, "-c", RIVAL, place.url, name],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for rival in rivals:
        assert rival.stdout.readline() == "ready\n"
    for rival in rivals:
        rival.stdin.write("go\n")
        rival.stdin.flush()
    told = [line.split() for rival in rivals for line in rival.communicate()[0].splitlines()]
    written = {int(version): int(number) for kind, version, *rest in told if kind == "put" for number in rest}
    assert len([row for row in told if row[0] == "put"]) == 45
    assert sorted(written) == list(range(1, 46))  # each version was acknowledged to one of them
    assert [written[version] for version in sorted(written)] == list(range(2, 47))  # and counted in order
    assert [target.version for target in store.targets.history("jane")] == sorted(written)
    assert sorted(row[1] for row in told if row[0] == "job") == sorted(made)
