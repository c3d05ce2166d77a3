"""Several servers of one store: what one writes is in force in all, and none serves what it cannot vouch for."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from guard.artifacts import ArtifactStore
from guard.errors import GuardUnavailable, NotFound, Unauthorized
from guard.register import Register
from guard.replica import UNKNOWN, Laggard, Replica
from guard.store import Store
from guard.store.schema import meta
from server.auth import Authenticator
from tests.guard.artifact_fakes import FakeWorkers, make_artifact, methods  # noqa: F401
from tests.guard.register_fakes import Clock, make_register, matched

JANE = {"name": "Jane Doe"}
TEXT = "Jane Doe and John Roe and Velvet Garden"


@dataclass
class Server:
    """One process of the installation, without an engine but for its workers."""

    store: Store
    register: Register
    keys: Authenticator
    replica: Replica
    workers: FakeWorkers
    seconds: list[float]

    def matches(self) -> set[str]:
        return matched(self.register, TEXT)

    def add(self, folder: Path, **facts) -> str:
        """An artifact in its own folder, not loaded yet."""
        make_artifact(folder, **facts)
        return self.register._library.store.add(folder).digest


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def serve(place, tmp_path, clock):
    """Starts one more server of the store; `seconds` is its monotonic clock. Artifacts are its own, or in `shared`."""
    servers: list[Server] = []

    async def start(shared: Path | None = None) -> Server:
        store = place.open()
        name = f"server-{len(servers)}"
        register = make_register(store, shared or tmp_path / name)
        await register.load()
        workers = FakeWorkers()
        await register.attach(workers)
        keys, seconds = Authenticator(store.keys), [0.0]
        replica = Replica(
            store, register, keys, name=name, max_age=60, clock=clock, monotonic=lambda: seconds[0]
        )
        replica.follow()
        servers.append(Server(store, register, keys, replica, workers, seconds))
        return servers[-1]

    yield start
    for server in servers:
        server.register.close()


async def test_what_one_writes_is_in_force_in_all(serve):
    one, other = await serve(), await serve()
    await one.register.put("jane", JANE)
    await one.register.put("garden", {"name": "Velvet Garden"})
    assert other.matches() == set()
    other.replica.follow()
    assert other.matches() == {"jane", "garden"}
    assert other.register.view("jane") == one.register.view("jane")
    await one.register.put("jane", {"name": "Nobody Here"})
    await one.register.delete("garden")
    other.replica.follow()
    assert other.matches() == set()
    assert other.register.view("jane")[0]["name"] == "Nobody Here"
    assert other.register.followed == one.register.followed == other.register.snapshot.version


@pytest.mark.parametrize("again", [True, False])
async def test_what_is_purged_is_gone_everywhere_though_its_id_may_come_back(serve, again):
    one, other = await serve(), await serve()
    await one.register.put("jane", JANE)
    other.replica.follow()
    await one.register.delete("jane", purge=True)
    if again:
        await one.register.put("jane", {"name": "John Roe"})
    other.replica.follow()
    assert other.matches() == ({"jane"} if again else set())
    if again:
        assert other.register.view("jane")[0]["name"] == "John Roe"
    else:
        with pytest.raises(NotFound):
            other.register.view("jane")


async def test_a_write_beside_one_that_was_not_followed_yet_hides_nothing(serve):
    one, other = await serve(), await serve()
    await one.register.put("jane", JANE)
    await other.register.put("garden", {"name": "Velvet Garden"})
    behind = other.register.snapshot.version
    assert (other.matches(), other.register.followed) == ({"garden"}, behind - 2)
    other.replica.follow()
    assert other.matches() == {"garden", "jane"}
    assert other.register.snapshot.version > behind  # another state, so another number
    one.replica.follow()
    other.replica.follow()
    assert one.matches() == {"garden", "jane"}
    assert one.register.followed == other.register.followed == one.store.snapshot


async def test_numbers_do_not_chase_each_other(serve):
    one, other = await serve(), await serve()
    await one.register.put("jane", JANE)
    await other.register.put("garden", {"name": "Velvet Garden"})
    for _ in range(3):
        one.replica.follow()
        other.replica.follow()
    settled = one.store.snapshot
    for _ in range(3):
        one.replica.follow()
        other.replica.follow()
    assert one.store.snapshot == settled


async def test_what_changes_nothing_here_leaves_the_state_as_it_is(serve):
    one, other = await serve(), await serve()
    before = other.register.snapshot
    one.store.targets.count_change()  # a calibration there, say
    other.replica.follow()
    assert other.register.snapshot is before
    assert other.register.followed == one.store.snapshot


async def test_keys_made_and_withdrawn_elsewhere_hold_here(serve):
    one, other = await serve(), await serve()
    key, token = one.keys.create("auditor", "acme", None)
    header = f"Bearer {token}"
    with pytest.raises(Unauthorized):
        other.keys.identify(header)
    other.replica.follow()
    assert other.keys.identify(header).tenant == "acme"
    one.keys.revoke(key.id)
    other.replica.follow()
    with pytest.raises(Unauthorized):
        other.keys.identify(header)


@pytest.fixture
def broken(monkeypatch):
    """From now on, targets with the tag do not compile; before, they did."""

    def compiles_elsewhere(*args, **options):
        raise RuntimeError("the encoder fell over")

    return lambda server: monkeypatch.setattr(server.register._ledger, "_compile", compiles_elsewhere)


@pytest.mark.parametrize("on_error", ["closed", "open"])
async def test_what_cannot_be_enforced_here_stops_readiness_unless_its_policy_is_open(
    serve, broken, on_error
):
    one, other = await serve(), await serve()
    broken(other)
    await one.register.put("jane", {**JANE, "policy": {"on_error": on_error}})
    if on_error == "open":
        other.replica.follow()
        assert other.register.view("jane")[0]["state"] == "failed"
        return
    other.seconds[0] = 61.0
    with pytest.raises(GuardUnavailable, match="cannot be enforced"):
        other.replica.follow()
    assert other.register.followed < one.register.followed
    assert other.replica.unready is not None
    with pytest.raises(GuardUnavailable):
        _ = other.replica.snapshot


async def test_a_state_that_nothing_confirms_is_served_for_a_while_and_then_no_more(serve, monkeypatch):
    server = await serve()

    def away(_since: int):
        raise GuardUnavailable("The store does not answer.", reason="store")

    monkeypatch.setattr(server.store.targets, "changes", away)
    server.seconds[0] = 60.0
    with pytest.raises(GuardUnavailable):
        server.replica.follow()
    assert server.replica.snapshot is server.register.snapshot
    assert server.replica.unready is None
    server.seconds[0] = 60.1
    with pytest.raises(GuardUnavailable):
        _ = server.replica.snapshot
    assert "60 seconds" in server.replica.unready
    monkeypatch.undo()
    server.replica.follow()
    assert server.replica.snapshot is server.register.snapshot
    assert server.replica.unready is None


async def test_an_age_begins_before_the_look_that_confirmed_it(serve, monkeypatch):
    server = await serve()
    look = server.store.targets.changes

    def slow(since: int):
        server.seconds[0] += 7.0
        return look(since)

    monkeypatch.setattr(server.store.targets, "changes", slow)
    server.replica.follow()
    assert server.replica.age == 7.0


async def test_a_store_that_was_set_back_is_told(serve):
    server = await serve()
    await server.register.put("jane", JANE)
    with server.store._database.write() as connection:
        connection.execute(meta.update().where(meta.c.name == "snapshot").values(value="0"))
    with pytest.raises(GuardUnavailable, match="set back"):
        server.replica.follow()
    assert server.matches() == {"jane"}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr("guard.replica.SETTLE_SECONDS", 0.0)


async def test_a_write_waits_for_the_others_or_names_them(serve, impatient, clock):
    one, other = await serve(), await serve()
    assert await one.replica.settled() == []
    await one.register.put("jane", JANE)
    assert await one.replica.settled() == [Laggard("server-1", other.register.followed)]
    other.replica.follow()
    assert await one.replica.settled() == []
    one.keys.create("auditor", None, None)
    assert [one.name for one in await one.replica.settled()] == ["server-1"]
    clock.now += 60  # cut off, it may still serve
    assert len(await one.replica.settled()) == 1
    clock.now += 31
    assert await one.replica.settled() == []


async def test_a_write_returns_as_soon_as_the_last_has_followed(serve):
    one, other = await serve(), await serve()
    await one.register.put("jane", JANE)
    waiting = asyncio.create_task(one.replica.settled())
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await asyncio.to_thread(other.replica.follow)
    assert await asyncio.wait_for(waiting, 10) == []


async def test_whoever_leaves_is_waited_for_no_more(serve, impatient):
    one, other = await serve(), await serve()
    await one.register.put("jane", JANE)
    other.replica.close()
    assert await one.replica.settled() == []
    assert [standing.name for standing in one.replica.live()] == ["server-0"]


async def test_where_the_store_went_away_after_a_write_nobody_is_said_to_have_it(
    serve, impatient, monkeypatch
):
    server = await serve()

    def away(_now: float):
        raise GuardUnavailable("The store does not answer.", reason="store")

    monkeypatch.setattr(server.store.replicas, "live", away)
    assert await server.replica.settled() == [UNKNOWN]


async def test_a_server_says_that_it_is_there_even_where_nothing_changes(serve, clock):
    server = await serve()
    clock.now += 5
    server.seconds[0] += 5.9
    server.replica.follow()
    assert server.replica.live()[0].seen_at == clock.now - 5  # no write for each look
    server.seconds[0] += 0.2
    server.replica.follow()
    assert server.replica.live()[0].seen_at == clock.now


async def test_what_others_announce_is_followed_at_once_and_otherwise_soon(serve, place, monkeypatch):
    hears = place.url.startswith("postgresql")
    monkeypatch.setattr("guard.replica.LOOK_SECONDS", 600.0 if hears else 0.2)
    one, other = await serve(), await serve()
    other.replica.start()
    await asyncio.sleep(0.5 if hears else 0.0)  # until it listens
    await one.register.put("jane", JANE)
    ends = time.monotonic() + 30
    while other.matches() != {"jane"}:
        assert time.monotonic() < ends, "nothing was heard"
        await asyncio.sleep(0.02)
    other.replica._stopping.set()
    one.store.targets.count_change()  # which it hears too, and ends
    other.replica.close()


@pytest.mark.usefixtures("methods")
class TestArtifacts:
    async def test_a_purge_erases_them_in_every_server(self, serve, tmp_path):
        one, other = await serve(), await serve()
        for server, name in ((one, "a"), (other, "b")):
            digest = server.add(tmp_path / name)
            await server.register.load_artifact(digest)
        rung = {"method": "tuned", "params": {"artifact": digest}}
        await one.register.put("jane", {**JANE, "intervention": rung})
        other.replica.follow()
        assert other.register.view("jane")[0]["state"] == "active"
        await one.register.delete("jane", purge=True)
        assert set(other.workers.held) == {digest}
        other.replica.follow()
        assert other.workers.held == {}
        assert await other.register.artifacts() == []

    async def test_a_server_that_was_off_meanwhile_erases_them_when_it_starts(self, serve, tmp_path):
        one = await serve()
        digest = one.add(tmp_path / "a")
        await one.register.load_artifact(digest)
        kept = tmp_path / "kept"
        make_artifact(tmp_path / "again")
        ArtifactStore(kept).add(tmp_path / "again")
        rung = {"method": "tuned", "params": {"artifact": digest}}
        await one.register.put("jane", {**JANE, "intervention": rung})
        await one.register.delete("jane", purge=True)
        late = await serve(shared=kept)
        assert late.workers.held == {} and await late.register.artifacts() == []

    async def test_what_is_added_again_on_purpose_stays(self, serve, tmp_path):
        one = await serve()
        digest = one.add(tmp_path / "a")
        await one.register.load_artifact(digest)
        await one.register.remove_artifact(digest)
        assert one.add(tmp_path / "b") == digest
        await one.register.load_artifact(digest)
        other = await serve(shared=one.register._library.store.root)
        assert set(other.workers.held) == {digest}

    async def test_those_in_a_shared_folder_are_taken_when_they_are_named(self, serve, tmp_path):
        shared = tmp_path / "shared"
        one, other = await serve(shared), await serve(shared)
        digest = one.add(tmp_path / "a")
        rung = {"method": "tuned", "params": {"artifact": digest}}
        await one.register.put("jane", {**JANE, "intervention": rung})
        other.replica.follow()
        assert set(other.workers.held) == {digest}
        await one.register.load_artifact(digest)
        other.replica.follow()
        assert other.register.view("jane")[0]["state"] == "active"
        await one.register.remove_artifact(digest)
        other.replica.follow()
        assert other.workers.held == {}
        assert other.register.view("jane")[0]["state"] == "pending"
