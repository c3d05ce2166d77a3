"""The register: enforced when a write returns, untouched when it fails."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from guard import ledger
from guard.errors import BadRequest, Forbidden, NotFound, PreconditionFailed, StartupError, TargetRefused
from guard.ledger import FEW
from guard.register import Caller, Precondition, TargetExists
from tests.guard.register_fakes import COMMON, POISON, Clock, FakeGate, make_register, matched, open_store

JANE = {"name": "Jane Doe"}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path)
    yield store
    store.close()


@pytest.fixture
async def register(store, clock):
    register = make_register(store, clock=clock)
    await register.load()
    yield register
    register.close()


def expecting(etag: str) -> Caller:
    return Caller(precondition=Precondition(if_match=etag))


async def test_a_target_is_enforced_when_put_returns(register):
    before = register.snapshot
    view, created = await register.put("jane", JANE)
    assert created
    assert matched(register, "who is Jane Doe?") == {"jane"}
    assert (view["id"], view["state"], view["version"]) == ("jane", "active", 1)
    assert view["calibration"] == {"threshold": 0.8}
    assert register.snapshot.targets["jane"].ladder[0].method == "embedding_corruption"
    assert register.snapshot.version == before.version + 1
    assert not before.armed  # what was given out does not change


async def test_a_replaced_target_is_another_version(register):
    await register.put("jane", JANE)
    view, created = await register.put("jane", {"name": "Jane Roe"})
    assert (created, view["version"]) == (False, 2)
    assert matched(register, "Jane Doe or Jane Roe") == {"jane"}
    assert matched(register, "Jane Doe") == set()


async def test_a_read_can_be_written_back(register):
    view, _ = await register.put("jane", {**JANE, "threshold": {"score": 0.4}, "metadata": {"a": [1]}})
    again, _ = await register.put("jane", view)
    ignored = {"version", "updated_at"}
    assert {k: v for k, v in again.items() if k not in ignored} == {
        k: v for k, v in view.items() if k not in ignored
    }


@pytest.mark.parametrize(
    ("raw", "error", "param"),
    [
        ({"name": COMMON}, TargetRefused, "name"),
        ({**JANE, "tags": [POISON]}, RuntimeError, None),
        ({**JANE, "aliasses": []}, BadRequest, "aliasses"),
        ({**JANE, "id": "john"}, BadRequest, "id"),
        ({**JANE, "policy": {"on_error": "maybe"}}, BadRequest, "policy.on_error"),
        ({**JANE, "intervention": {"method": "nope"}}, BadRequest, "intervention"),
        (
            {**JANE, "intervention": {"method": "refusal", "params": {"x": 1}}},
            BadRequest,
            "intervention.params.x",
        ),
        ({**JANE, "intervention": [{"method": "refusal", "score": 1}]}, BadRequest, "intervention.0.score"),
        ({**JANE, "force": "yes"}, BadRequest, "force"),
        ({}, BadRequest, "name"),
    ],
)
async def test_what_cannot_be_enforced_changes_nothing(register, store, raw, error, param):
    await register.put("jane", JANE)
    before, stored = register.snapshot, store.targets.all()
    with pytest.raises(error) as caught:
        await register.put("jane", raw)
    assert getattr(caught.value, "param", None) == param
    assert register.snapshot is before
    assert store.targets.all() == stored
    assert store.snapshot == before.version


async def test_a_gate_that_cannot_be_built_changes_nothing(store, clock):
    def build(compiled):
        if compiled:
            raise RuntimeError("out of memory")
        return FakeGate(compiled)

    register = make_register(store, clock=clock)
    register._ledger._build_gate = build
    await register.load()
    with pytest.raises(RuntimeError):
        await register.put("jane", JANE)
    assert store.targets.all() == []
    assert not register.snapshot.armed
    register.close()


async def test_force_takes_what_would_be_refused(register):
    with pytest.raises(TargetRefused) as caught:
        await register.put("the", {"name": COMMON})
    assert caught.value.details["rate"] == 0.31
    view, _ = await register.put("the", {"name": COMMON, "force": True})
    assert view["state"] == "active"
    assert "force" not in view
    patched = await register.patch("the", {"tags": ["x"]})  # detection is as it was accepted
    assert patched["tags"] == ["x"]
    with pytest.raises(TargetRefused):
        await register.patch("the", {"aliases": ["of"]})


async def test_if_match_protects_from_lost_updates(register):
    await register.put("jane", JANE)
    _, etag = register.view("jane")
    await register.put("jane", {"name": "Jane Roe"}, expecting(etag))
    for write in (
        register.put("jane", JANE, expecting(etag)),
        register.patch("jane", {"tags": ["x"]}, expecting(etag)),
        register.delete("jane", caller=expecting(etag)),
        register.put("new", JANE, expecting("*")),
        register.put("jane", JANE, Caller(precondition=Precondition(if_none_match="*"))),
    ):
        with pytest.raises(PreconditionFailed):
            await write
    assert register.view("jane")[0]["version"] == 2
    await register.delete("jane", caller=expecting(f'"other.1", {register.view("jane")[1]}'))


async def test_an_etag_never_comes_back(register):
    await register.put("jane", JANE)
    _, etag = register.view("jane")
    await register.delete("jane", purge=True)
    await register.put("jane", JANE)
    with pytest.raises(PreconditionFailed):
        await register.put("jane", JANE, expecting(etag))


async def test_patch_merges_and_null_resets(register):
    await register.put(
        "jane", {**JANE, "aliases": ["JD"], "policy": {"max_tries": 5}, "metadata": {"a": 1, "b": 2}}
    )
    view = await register.patch(
        "jane",
        {
            "aliases": None,
            "policy": {"output": "reprompt"},
            "metadata": {"a": None},
            "threshold": {"score": 0.3},
        },
    )
    assert (view["aliases"], view["metadata"], view["threshold"]) == ([], {"b": 2}, {"score": 0.3})
    assert (view["policy"]["max_tries"], view["policy"]["output"]) == (5, "reprompt")
    with pytest.raises(NotFound):
        await register.patch("john", {})
    with pytest.raises(BadRequest):
        await register.patch("jane", {"name": None})


async def test_created_targets_get_an_id_of_their_own(register):
    assert [(await register.create(JANE))["id"] for _ in range(2)] == ["jane-doe", "jane-doe-2"]
    assert (await register.create({"name": "Import"}))["id"] == "import-2"
    with pytest.raises(TargetExists):
        await register.create({**JANE, "id": "jane-doe"})


@pytest.mark.parametrize("target_id", ["Jane", "a_b", "-a", "", "validate", "import", "export", "x" * 65])
async def test_an_id_must_be_a_slug_that_no_route_uses(register, target_id):
    with pytest.raises(BadRequest) as caught:
        await register.put(target_id, JANE)
    assert caught.value.param == "id"


@pytest.mark.parametrize("purge", [False, True])
async def test_a_deleted_target_is_enforced_no_more(register, purge):
    await register.put("jane", JANE)
    await register.delete("jane", purge=purge)
    assert matched(register, "Jane Doe") == set()
    for call in (lambda: register.view("jane"), lambda: register._ledger.find("jane")):
        with pytest.raises(NotFound):
            call()
    with pytest.raises(NotFound):
        await register.delete("jane")


async def test_a_purge_erases_the_content_from_disk(register, store, tmp_path):
    await register.put("jane", JANE)
    with store._database.read() as connection:
        (sealed,) = connection.exec_driver_sql("SELECT sealed FROM target_versions").one()
    await register.delete("jane")
    assert sealed[:64] in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    await register.delete("jane", purge=True)
    assert sealed[:64] not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


async def test_off_is_stored_and_not_detected_and_shadow_is_detected(register):
    await register.put("jane", {**JANE, "mode": "off"})
    assert "jane" not in register.snapshot.targets
    assert register.view("jane")[0]["mode"] == "off"
    await register.patch("jane", {"mode": "shadow"})
    assert matched(register, "Jane Doe") == {"jane"}


async def test_an_expired_target_leaves_the_snapshot_under_a_new_number(register, clock):
    expires_at = datetime.fromtimestamp(clock.now + 10, UTC).isoformat()
    await register.put("jane", {**JANE, "expires_at": expires_at})
    number = register.snapshot.version
    assert not await register.expire()
    clock.now += 10
    assert await register.expire()
    assert matched(register, "Jane Doe") == set()
    assert register.snapshot.version == number + 1
    assert register.view("jane")[0]["state"] == "expired"
    assert not await register.expire()
    await register.patch("jane", {"expires_at": None})
    assert matched(register, "Jane Doe") == {"jane"}


async def test_expiry_is_watched_within_a_second(register, clock):
    expires_at = datetime.fromtimestamp(clock.now + 10, UTC).isoformat()
    await register.put("jane", {**JANE, "expires_at": expires_at})
    watching = asyncio.create_task(register.watch())
    await asyncio.sleep(0)
    clock.now += 10
    async with asyncio.timeout(5):
        while register.snapshot.armed:  # noqa: ASYNC110 - a snapshot is a reference, nothing announces it
            await asyncio.sleep(0.02)
    watching.cancel()


async def test_concurrent_writes_each_get_their_number(register):
    seen: list[int] = []

    async def write(i: int) -> None:
        await register.put(f"t{i % 4}", {"name": f"Name {i}"})
        seen.append(register.snapshot.version)

    await asyncio.gather(*(write(i) for i in range(12)))
    assert register.snapshot.version == 12
    assert seen == sorted(seen)
    assert [view["version"] for view in register.views()[0]] == [3, 3, 3, 3]


async def test_a_caller_that_goes_away_leaves_memory_and_store_agreeing(register, store):
    task = asyncio.create_task(register.put("jane", JANE))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await register.put("bob", {"name": "Bob Ray"})  # behind the first write, if it ran
    assert [target.id for target in store.targets.all()] == sorted(register.snapshot.targets)


async def test_a_restart_enforces_what_was_stored(register, store):
    await register.put("jane", JANE)
    await register.put("the", {"name": COMMON, "force": True})
    again = make_register(store)
    await again.load()
    assert matched(again, "the Jane Doe") == {"jane", "the"}
    assert again.snapshot.version == register.snapshot.version
    again.close()


async def test_a_target_is_compiled_beside_those_that_came_before(register, store, clock):
    for name in ("b", "a", "c", "b"):
        await register.put(name, {"name": f"Name {name}"})
        clock.now += 1

    def beside(register) -> dict[str, frozenset[str]]:
        return {name: target.compiled.beside for name, target in register.snapshot.targets.items()}

    assert beside(register) == {"a": {"b"}, "c": {"a", "b"}, "b": {"a", "c"}}
    again = make_register(store)
    await again.load()
    assert beside(again) == {"a": set(), "c": {"a"}, "b": {"a", "c"}}
    again.close()


@pytest.mark.parametrize("on_error", ["closed", "open"])
async def test_a_target_that_fails_at_start_stops_it_unless_its_policy_is_open(register, store, on_error):
    await register.put("jane", {**JANE, "policy": {"on_error": on_error}})
    await register.put("bob", {"name": "Bob Ray"})
    again = make_register(store)
    compile_target = again._ledger._compile
    again._ledger._compile = lambda target_id, *rest, **options: (
        1 / 0 if target_id == "jane" else compile_target(target_id, *rest, **options)
    )
    if on_error == "closed":
        with pytest.raises(StartupError, match="'jane' cannot be enforced"):
            await again.load()
    else:
        await again.load()
        assert again.status()["targets"]["failed"] == 1
        assert again.status()["failed"][0]["id"] == "jane"
        assert (again.view("jane")[0]["state"], matched(again, "Bob Ray Jane Doe")) == ("failed", {"bob"})
    again.close()


def lines(*targets: object) -> list[bytes]:
    return [target if isinstance(target, bytes) else json.dumps(target).encode() for target in targets]


async def test_import_takes_what_it_can_in_one_snapshot(register):
    await register.put("jane", JANE)
    number = register.snapshot.version
    result = await register.import_lines(
        lines(
            {"name": "Bob Ray"},
            b"",
            {"id": "jane", "name": "Jane Roe"},
            b"{",
            {"name": COMMON},
            {"name": "Bob Ray"},
        )
    )
    assert (result["created"], result["updated"]) == (1, 1)
    assert [line["line"] for line in result["rejected"]] == [4, 5, 6]
    assert "repeats the id of line 1" in result["rejected"][2]["error"]
    assert matched(register, "Bob Ray, Jane Roe") == {"bob-ray", "jane"}
    assert register.snapshot.version == number + 1


async def test_an_atomic_import_takes_all_or_none(register, store):
    before = register.snapshot
    result = await register.import_lines(lines({"name": "Bob Ray"}, {"name": COMMON}), atomic=True)
    assert (result["created"], [line["line"] for line in result["rejected"]]) == (0, [2])
    assert register.snapshot is before
    assert store.targets.all() == []
    result = await register.import_lines(
        lines({"name": "Bob Ray"}, {"name": COMMON, "force": True}), atomic=True
    )
    assert result == {"created": 2, "updated": 0, "rejected": []}


async def test_an_export_imports_to_the_same_targets(register, tmp_path):
    await register.put(
        "jane", {**JANE, "aliases": ["JD"], "expires_at": "2090-01-01T00:00:00Z", "tags": ["a"]}
    )
    await register.put("bob", {"name": "Bob Ray", "intervention": [{"method": "refusal", "min_score": 0.5}]})
    exported = list(register.export())
    (tmp_path / "other").mkdir()
    other = make_register(store := open_store(tmp_path / "other"))
    await other.load()
    assert (await other.import_lines(lines(*exported)))["created"] == 2
    assert list(other.export()) == exported
    other.close()
    store.close()


async def test_validate_stores_nothing(register, store):
    assert await register.validate(JANE) == []
    (problem,) = await register.validate({"name": COMMON})
    assert (problem["field"], problem["rate"], problem["code"]) == ("name", 0.31, "target_refused")
    (problem,) = await register.validate({"name": "A B", "mode": "of"})
    assert problem["field"] == "mode"
    assert store.targets.all() == []


async def test_lists_are_paged_and_filtered(register):
    for i in range(5):
        await register.put(f"t{i}", {"name": f"Name {i}", "tags": ["even"] if i % 2 == 0 else []})
    page, after = register.views(limit=2)
    assert ([view["id"] for view in page], after) == (["t0", "t1"], "t1")
    page, after = register.views(limit=3, after=after)
    assert ([view["id"] for view in page], after) == (["t2", "t3", "t4"], None)
    assert [view["id"] for view in register.views(tag="even")[0]] == ["t0", "t2", "t4"]
    assert register.views(state="expired") == ([], None)


async def test_defaults_fill_what_a_target_leaves_out(store):
    register = make_register(store, defaults={"mode": "shadow", "reply": {"style": "error"}})
    await register.load()
    view, _ = await register.put("jane", {**JANE, "reply": {"style": "natural"}})
    assert (view["mode"], view["reply"]["style"]) == ("shadow", "natural")
    register.close()


async def test_a_caller_of_a_tenant_sees_and_writes_its_own_targets_only(register):
    acme = Caller(tenant="acme")
    mine = {"name": "Acme Plan", "scope": {"tenants": ["acme"]}}
    await register.put("jane", JANE)
    await register.put("plan", mine, acme)
    assert [view["id"] for view in register.views(tenant="acme")[0]] == ["plan"]
    assert [target["id"] for target in register.export("acme")] == ["plan"]
    for write in (
        register.put("x", JANE, acme),
        register.put("jane", mine, acme),
        register.create(JANE, acme),
    ):
        with pytest.raises(Forbidden):
            await write
    with pytest.raises(Forbidden):
        await register.patch("plan", {"scope": {"tenants": []}}, acme)
    for write in (register.patch("jane", {}, acme), register.delete("jane", purge=True, caller=acme)):
        with pytest.raises(NotFound):
            await write
    result = await register.import_lines(
        lines({**mine, "id": "jane"}, JANE, {**mine, "id": "two"}), caller=acme
    )
    assert (result["created"], [line["line"] for line in result["rejected"]]) == (1, [1, 2])
    assert matched(register, "Acme Plan", tenant="acme") == {"plan", "two"}
    assert matched(register, "Acme Plan", tenant="rival") == set()


def names(count: int) -> list[bytes]:
    return lines(*({"id": f"t{i}", "name": f"Name {i}"} for i in range(count)))


def pooled(register) -> set[str]:
    return {view["id"] for view in register.views(limit=1_000)[0] if view["calibration"].get("pooled")}


async def test_a_long_import_is_in_force_at_once_and_calibrated_afterwards_in_one_swap(register):
    await register.import_lines(names(FEW + 1))
    assert len(pooled(register)) == register.status()["pooled"] == FEW + 1
    assert matched(register, "Name 7") == {"t7"}
    number = register.snapshot.version

    assert await register.calibrate()

    assert pooled(register) == set() and register.snapshot.version == number + 1
    assert register.view("t7")[0]["calibration"] == {"threshold": 0.8}
    assert register.snapshot.targets["t7"].compiled.beside == {f"t{i}" for i in range(FEW + 1)} - {"t7"}
    assert not await register.calibrate() and register.snapshot.version == number + 1


async def test_a_short_import_and_a_single_write_are_calibrated_before_they_answer(register):
    await register.import_lines(names(FEW))
    await register.put("jane", JANE)
    assert pooled(register) == set()


async def test_beside_many_targets_a_single_write_does_not_wait_for_its_calibration(register, monkeypatch):
    monkeypatch.setattr(ledger, "MANY", 2)
    await register.import_lines(names(3))
    view, _ = await register.put("jane", JANE)
    assert view["calibration"] == {"pooled": True}
    assert await register.calibrate() and pooled(register) == set()


async def test_a_start_with_many_targets_does_not_wait_for_their_calibration(register, store):
    await register.import_lines(names(FEW + 1))
    await register.calibrate()
    again = make_register(store)
    await again.load()
    assert len(pooled(again)) == FEW + 1
    again.close()


async def test_what_is_written_while_targets_are_calibrated_stays(register):
    await register.import_lines(names(FEW + 1))
    made = register._ledger.calibrated(lambda _: False)
    await register.put("t1", {"name": "Jane Roe"})
    await register.delete("t2")
    register._ledger.adopt(made)
    assert register.view("t1")[0]["name"] == "Jane Roe"
    assert matched(register, "Name 1, Name 2, Name 3") == {"t3"} and pooled(register) == set()


async def test_what_cannot_be_calibrated_goes_on_by_the_thresholds_of_others(register):
    await register.import_lines(names(FEW + 1))
    compile_target = register._ledger._compile
    tried = []

    def compile_(target_id, *rest, **options):
        tried.append(target_id)
        return 1 / 0 if target_id == "t1" else compile_target(target_id, *rest, **options)

    register._ledger._compile = compile_
    assert await register.calibrate()
    assert pooled(register) == {"t1"} and matched(register, "Name 1") == {"t1"}
    assert not await register.calibrate() and tried.count("t1") == 1  # it is not tried again and again


async def test_swaps_are_a_second_and_a_share_of_the_targets_apart(register, monkeypatch):
    await register.import_lines(names(200))
    monkeypatch.setattr("guard.register.SWAP_SECONDS", 0.0)
    number = register.snapshot.version
    assert await register.calibrate()
    assert len(pooled(register)) == 198 and register.snapshot.version == number + 1


async def test_targets_are_calibrated_beside_the_server(register):
    await register.import_lines(names(FEW + 1))
    watch = asyncio.create_task(register.watch())
    for _ in range(100):
        await asyncio.sleep(0.02)
        if not pooled(register):
            break
    watch.cancel()
    assert pooled(register) == set()


@pytest.mark.parametrize("count", [1, FEW + 1])
async def test_no_calibration_of_another_encoder_is_shown_as_current(store, count):
    """Nothing that depends on the encoder is stored: a start measures all of it anew."""

    def started(encoder: str):
        made = make_register(store)
        compile_target = made._ledger._compile

        def compile_(*rest, **options):
            found = compile_target(*rest, **options)
            return replace(found, calibration={**found.calibration, "encoder": encoder})

        made._ledger._compile = compile_
        return made

    first = started("first")
    await first.import_lines(names(count))
    await first.calibrate()
    first.close()
    second = started("second")
    await second.load()
    stale_until_calibrated = {"pooled": True} if count > FEW else {"threshold": 0.8}
    assert second.view("t0")[0]["calibration"] == {**stale_until_calibrated, "encoder": "second"}
    await second.calibrate()
    assert second.view("t0")[0]["calibration"] == {"threshold": 0.8, "encoder": "second"}
    second.close()


async def test_a_write_that_judged_by_what_another_process_has_changed_is_refused(register, tmp_path):
    await register.put("jane", JANE)
    elsewhere = open_store(tmp_path)
    other = make_register(elsewhere)
    await other.load()
    await register.put("jane", {"name": "Jane Roe"})
    _, etag = other.view("jane")
    for stale in (
        lambda: other.put("jane", JANE, expecting(etag)),
        lambda: other.patch("jane", {"tags": ["x"]}),
        lambda: other.delete("jane", caller=expecting(etag)),
    ):
        with pytest.raises(PreconditionFailed):
            await stale()
    assert matched(other, "Jane Doe") == {"jane"}  # what failed changed nothing
    await other.put("jane", JANE)  # who sets no condition replaces what is there
    assert [target.version for target in elsewhere.targets.history("jane")] == [1, 2, 3]
    other.close()
    elsewhere.close()
