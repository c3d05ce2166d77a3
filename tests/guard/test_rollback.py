"""Back to an earlier snapshot: all of it or nothing, and never back to what was purged."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from guard.errors import BadRequest, Forbidden, NotFound, PreconditionFailed
from guard.register import Caller, Precondition
from guard.store import schema
from guard.store.audit import Filter
from guard.store.targets import Write
from guard.targets import TargetSpec
from tests.guard import register_fakes
from tests.guard.register_fakes import COMMON, make_register, matched

EVERYBODY = "Jane Doe, Jane Roe, Bob Ray and Ann Lee"


@pytest.fixture
def store(place):
    return place.open()


@pytest.fixture
async def register(store):
    register = make_register(store)
    await register.load()
    yield register
    register.close()


async def history(register) -> int:
    """Jane and Bob; the number at which they were. Then Jane is another, Bob gone, and Ann there."""
    await register.put("jane", {"name": "Jane Doe", "tags": ["first"]})
    await register.put("bob", {"name": "Bob Ray"})
    then = register.snapshot.version
    await register.put("jane", {"name": "Jane Roe"})
    await register.delete("bob")
    await register.put("ann", {"name": "Ann Lee"})
    assert matched(register, EVERYBODY) == {"jane", "ann"}
    return then


async def test_targets_become_what_they_were_as_new_versions(register, store):
    then = await history(register)
    done = await register.roll_back(then)
    assert (done["created"], done["updated"], done["deleted"]) == (["bob"], ["jane"], ["ann"])
    assert done["snapshot"] == register.snapshot.version == store.snapshot
    assert matched(register, EVERYBODY) == {"jane", "bob"}
    assert register.view("jane")[0]["tags"] == ["first"]
    assert [(t.version, t.spec.name) for t in store.targets.history("jane")] == [
        (1, "Jane Doe"),
        (2, "Jane Roe"),
        (3, "Jane Doe"),
    ]
    again = make_register(store)
    await again.load()
    assert matched(again, EVERYBODY) == {"jane", "bob"}
    again.close()


async def test_a_rollback_can_be_rolled_back(register):
    then = await history(register)
    before = register.snapshot.version
    await register.roll_back(then)
    await register.roll_back(before)
    assert matched(register, EVERYBODY) == {"jane", "ann"}
    assert register.view("jane")[0]["name"] == "Jane Roe"


async def test_what_was_purged_stays_purged(register, store):
    then = await history(register)
    await register.delete("jane", purge=True)
    await register.delete("bob", purge=True)
    done = await register.roll_back(then)
    assert (done["created"], done["updated"], done["deleted"]) == ([], [], ["ann"])
    assert matched(register, EVERYBODY) == set()
    assert store.targets.all() == [] and store.targets.history("jane") == []


async def test_a_new_life_of_a_purged_id_does_not_become_the_old_one(register):
    then = await history(register)
    await register.delete("jane", purge=True)
    await register.put("jane", {"name": "Jane Poe"})
    done = await register.roll_back(then)
    assert "jane" in done["deleted"] and "jane" not in done["created"] + done["updated"]
    assert matched(register, EVERYBODY + " and Jane Poe") == {"bob"}


async def test_a_purge_by_another_process_between_reading_and_writing_refuses_all(register, store, place):
    then = await history(register)
    other = place.open()
    at = store.targets.at

    def purged_behind(number):
        past = at(number)
        other.targets.delete("bob", 5.0, purge=True)
        return past

    store.targets.at = purged_behind
    with pytest.raises(PreconditionFailed):
        await register.roll_back(then)
    assert matched(register, EVERYBODY) == {"jane", "ann"}
    assert {target.spec.name for target in store.targets.all()} == {"Jane Roe", "Ann Lee"}
    assert store.targets.history("bob") == []


async def test_a_write_by_another_process_refuses_all(register, store, place):
    then = await history(register)
    other, at = place.open(), store.targets.at

    def written_behind(number):
        past = at(number)
        other.targets.put([Write("new", TargetSpec(name="New One"), 1)], 5.0)
        return past

    store.targets.at = written_behind
    number = store.snapshot
    with pytest.raises(PreconditionFailed):
        await register.roll_back(then)
    assert store.snapshot == number + 1
    assert {target.id for target in store.targets.all()} == {"jane", "ann", "new"}


async def test_a_dry_run_changes_nothing(register, store):
    then = await history(register)
    before, number = register.snapshot, store.snapshot
    plan = await register.roll_back(then, dry_run=True)
    assert (plan["created"], plan["updated"], plan["deleted"]) == (["bob"], ["jane"], ["ann"])
    assert (register.snapshot, store.snapshot, plan["snapshot"]) == (before, number, number)


async def test_a_rollback_to_the_same_writes_nothing(register, store):
    await history(register)
    number = store.snapshot
    done = await register.roll_back(number)
    assert (done["created"], done["updated"], done["deleted"]) == ([], [], [])
    assert store.snapshot == number


async def test_one_target_that_cannot_be_enforced_keeps_all_as_they_are(register, store, monkeypatch):
    then = await history(register)
    compiled = register_fakes.compile_target

    def failing(target_id, *args, **options):
        if target_id == "bob":
            raise BadRequest("The encoder does not know this.")
        return compiled(target_id, *args, **options)

    monkeypatch.setattr(register._ledger, "_compile", failing)
    number = store.snapshot
    with pytest.raises(BadRequest, match=r"'bob'.*nothing was changed"):
        await register.roll_back(then)
    assert store.snapshot == number
    assert matched(register, EVERYBODY) == {"jane", "ann"}


async def test_what_was_forced_once_comes_back(register):
    await register.put("the", {"name": COMMON}, Caller(force=True))
    then = register.snapshot.version
    await register.delete("the")
    await register.roll_back(then)
    assert matched(register, "the end") == {"the"}


async def test_only_the_snapshot_that_was_read_is_rolled_back(register):
    then = await history(register)
    stale = Caller(precondition=Precondition(f'"{then}"'))
    with pytest.raises(PreconditionFailed):
        await register.roll_back(then, caller=stale)
    current = Caller(precondition=Precondition(f'"{register.snapshot.version}"'))
    assert (await register.roll_back(then, caller=current))["created"] == ["bob"]


async def test_snapshots_that_are_not_known_are_not_found(register):
    await history(register)
    for number in (-1, register.snapshot.version + 1, 10**30):
        with pytest.raises(NotFound, match="that can be gone back to are 0 to"):
            await register.roll_back(number)


async def test_a_tenant_cannot_roll_back(register):
    then = await history(register)
    with pytest.raises(Forbidden):
        await register.roll_back(then, caller=Caller("acme"))


async def test_the_trail_tells_of_the_rollback(register, store):
    then = await history(register)
    done = await register.roll_back(then)
    row = store.audit.page(Filter(snapshots=True), limit=1).data[0]
    assert (row["action"], row["subject"], row["snapshot"]) == (
        "targets.rollback",
        str(then),
        done["snapshot"],
    )
    assert row["detail"] == {"created": 1, "updated": 1, "deleted": 1}


async def test_what_another_process_wrote_before_is_rolled_back_too(register, store, place):
    then = await history(register)
    place.open().targets.put([Write("new", TargetSpec(name="New One"), 1)], 5.0)
    done = await register.roll_back(then)
    assert done["deleted"] == ["ann", "new"]
    assert {target.id for target in store.targets.all()} == {"jane", "bob"}


def test_a_store_of_before_the_history_goes_back_to_its_update_at_most(tmp_path):
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'lethe.db'}")
    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        connection.execute(schema.meta.insert().values(name="snapshot", value="5"))
    engine.dispose()
    store = register_fakes.open_store(tmp_path)
    assert (store.targets.first, store.targets.at(5).targets) == (5, {})
    with pytest.raises(NotFound, match="are 5 to 5"):
        store.targets.at(4)
    store.close()
