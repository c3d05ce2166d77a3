"""Ladders hold only what is ready: artifacts come and go, and no rung is ever applied without its own."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from guard.decide import decide
from guard.errors import ArtifactError, BadRequest, GuardUnavailable, NotFound
from guard.types import Detection, Prompt
from tests.guard.artifact_fakes import FakeWorkers, Own, make_artifact, methods, standing  # noqa: F401
from tests.guard.register_fakes import make_register, open_store

pytestmark = pytest.mark.usefixtures("methods")

JANE = {"name": "Jane Doe"}
ABSENT = "0" * 64


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def workers():
    return FakeWorkers()


@pytest.fixture
async def register(store, tmp_path, workers):
    """With its engine running."""
    register = make_register(store, tmp_path / "artifacts")
    await register.load()
    await register.attach(workers)
    yield register
    register.close()


def trained(digest: str | None, **rung):
    return {"method": "tuned", "params": {"artifact": digest}, **rung}


def add(register, folder: Path, method: str = "tuned", **facts) -> str:
    """An artifact in the register's store, not loaded yet."""
    make_artifact(folder, method, **facts)
    return register._library.store.add(folder).digest


def verdict(register, score: float = 1.0):
    """What a prompt about Jane gets: the action, and the methods."""
    snapshot = register.snapshot
    found = [Detection("jane", "lexical", score, 0.5)]
    decision = decide(found, snapshot.targets, Prompt("x"), snapshot=snapshot.version)
    return decision.action, [chosen.method for chosen in decision.chosen]


@pytest.mark.parametrize("digest", [None, ABSENT])
async def test_without_its_artifact_a_target_is_accepted_pending_and_refuses(register, digest):
    view, _ = await register.put("jane", {**JANE, "intervention": trained(digest)})
    assert (view["state"], standing(view)) == ("pending", [("tuned", digest, "pending")])
    assert view["artifacts"][0]["reason"].endswith(".")
    assert verdict(register) == ("refuse", [])
    assert [one["id"] for one in register.views(state="pending")[0]] == ["jane"]
    assert register.status()["targets"]["pending"] == 1


@pytest.mark.parametrize(
    ("ladder", "score", "applies"),
    [
        ([trained(ABSENT), {"method": "guard_prompt"}], 1.0, "guard_prompt"),
        ([{"method": "guard_prompt"}, trained(ABSENT, min_score=0.9)], 1.0, "guard_prompt"),
        ([trained(ABSENT), {"method": "guard_prompt", "min_score": 0.9}], 0.6, "guard_prompt"),
        (
            [
                {"method": "guard_prompt", "min_score": 0.9},
                trained(ABSENT),
                {"method": "embedding_corruption"},
            ],
            0.6,
            "embedding_corruption",
        ),
    ],
)
async def test_the_next_ready_rung_applies(register, ladder, score, applies):
    view, _ = await register.put("jane", {**JANE, "intervention": ladder})
    assert view["state"] == "pending"
    assert verdict(register, score) == ("intervene", [applies])


async def test_an_artifact_that_comes_puts_waiting_rungs_in_force(register, workers, tmp_path):
    digest = add(register, tmp_path / "a", scale=2)
    before, _ = await register.put("jane", {**JANE, "intervention": trained(digest)})
    number = register.snapshot.version
    row = await register.load_artifact(digest)
    assert (row["digest"], row["state"], row["method"], row["facts"]) == (
        digest,
        "loaded",
        "tuned",
        {"scale": 2},
    )
    assert workers.held == {digest: True}  # with a canary
    view, etag = register.view("jane")
    assert (view["state"], standing(view)) == ("active", [("tuned", digest, "ready")])
    assert etag == f'"jane.{before["version"]}"'
    assert register.snapshot.targets["jane"].ladder[0].facts == {"scale": 2}
    assert verdict(register) == ("intervene", ["tuned"])
    assert register.snapshot.version == number + 1
    await register.load_artifact(digest)  # already there: nothing changes
    assert (register.snapshot.version, len(workers.log)) == (number + 1, 1)


async def test_what_the_workers_refuse_is_never_in_a_ladder(register, workers, tmp_path):
    digest = add(register, tmp_path / "a")
    workers.refusals[digest] = "It changes nothing."
    await register.put("jane", {**JANE, "intervention": trained(digest)})
    with pytest.raises(ArtifactError, match="changes nothing"):
        await register.load_artifact(digest)
    view, _ = register.view("jane")
    assert (view["state"], view["artifacts"][0]["reason"]) == ("pending", "It changes nothing.")
    assert verdict(register) == ("refuse", [])
    assert [(row["state"], row["error"]) for row in await register.artifacts()] == [
        ("refused", "It changes nothing.")
    ]
    del workers.refusals[digest]
    assert (await register.load_artifact(digest))["error"] is None
    assert register.view("jane")[0]["state"] == "active"


async def test_a_changed_artifact_is_refused(register, tmp_path):
    digest = add(register, tmp_path / "a")
    (tmp_path / "artifacts" / digest / "data.bin").write_bytes(b"other weights")
    with pytest.raises(ArtifactError, match=r"data\.bin"):
        await register.load_artifact(digest)
    (row,) = await register.artifacts()
    assert (row["state"], row["method"]) == ("refused", None)


async def test_an_artifact_serves_only_the_method_it_was_made_for(register, tmp_path):
    digest = add(register, tmp_path / "a", "other")
    await register.load_artifact(digest)
    view, _ = await register.put("jane", {**JANE, "intervention": trained(digest)})
    assert (view["state"], "other" in view["artifacts"][0]["reason"]) == ("pending", True)
    assert verdict(register) == ("refuse", [])


async def test_no_snapshot_names_an_artifact_when_the_workers_forget_it(register, workers, tmp_path):
    digest = add(register, tmp_path / "a")
    await register.load_artifact(digest)
    await register.put("jane", {**JANE, "intervention": trained(digest)})
    seen = []
    unload = workers.unload
    workers.unload = lambda gone: (seen.append(verdict(register)), unload(gone))
    await register.remove_artifact(digest)
    assert seen == [("refuse", [])]
    assert register.view("jane")[0]["state"] == "pending"
    assert (workers.held, list((tmp_path / "artifacts").iterdir())) == ({}, [])
    for call in (register.remove_artifact(digest), register.load_artifact(digest)):
        with pytest.raises(NotFound):
            await call


async def test_a_start_loads_what_is_stored_and_reports_what_it_cannot(store, tmp_path, workers):
    first = make_register(store, tmp_path / "artifacts")
    await first.load()
    good, bad = add(first, tmp_path / "a"), add(first, tmp_path / "b", layer=9)
    workers.refusals[bad] = "It does not fit."
    await first.put("jane", {**JANE, "intervention": trained(good)})
    await first.put("john", {"name": "John Roe", "intervention": trained(bad)})
    assert verdict(first) == ("refuse", [])  # no engine, nothing ready
    number = first.snapshot.version
    await first.attach(workers)
    assert [first.view(name)[0]["state"] for name in ("jane", "john")] == ["active", "pending"]
    assert verdict(first) == ("intervene", ["tuned"])
    assert first.snapshot.version == store.snapshot == number + 1
    first.close()


async def test_a_start_that_changes_no_ladder_has_no_new_snapshot(register, store):
    assert register.snapshot.version == store.snapshot == 0


async def test_a_layer_that_is_not_installed_is_refused_and_named(register, workers, tmp_path):
    digest = add(register, tmp_path / "a")
    await register.load_artifact(digest)
    wrong = {"method": "tuned", "params": {"artifact": digest, "layer": 7}}
    with pytest.raises(BadRequest, match="residual at layer 7"):
        await register.put("jane", {**JANE, "intervention": wrong})
    assert not register.snapshot.armed


async def test_a_stored_target_whose_layer_is_gone_waits(store, tmp_path):
    everywhere = FakeWorkers(places=frozenset({("residual", 7)}))
    for workers, state in ((everywhere, "active"), (FakeWorkers(), "pending")):
        register = make_register(store, tmp_path / "artifacts")
        await register.load()
        await register.attach(workers)
        if state == "active":
            digest = add(register, tmp_path / "a", layer=7)
            await register.load_artifact(digest)
            await register.put("jane", {**JANE, "intervention": trained(digest)})
        assert register.view("jane")[0]["state"] == state
        register.close()
    assert "layer 7" in register.view("jane")[0]["artifacts"][0]["reason"]


OWN = {**JANE, "answers": ["born in Vintry in May"], "intervention": {"method": "own"}}


async def test_what_a_method_makes_of_a_target_is_loaded_when_put_returns(register, workers, tmp_path):
    view, _ = await register.put("jane", OWN)
    ((method, digest, state),) = standing(view)
    assert (view["state"], method, state) == ("active", "own", "ready")
    assert workers.held == {digest: False}  # nothing was trained that could be without effect
    assert workers.files["answers.txt"] == b"born in Vintry in May"
    (rung,) = register.snapshot.targets["jane"].ladder
    assert (rung.params["artifact"], rung.facts["answers"]) == (digest, ["born in Vintry in May"])
    assert view["intervention"]["params"] == {}  # what was written stays as it was written


async def test_what_was_made_of_a_target_lies_nowhere_on_disk(register, workers, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    await register.put("jane", OWN)
    (folder,) = workers.folders
    assert folder.is_relative_to(tmp_path / "tmp")
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"Vintry" in content for content in kept)
    assert await register.artifacts() == []


async def test_what_was_made_of_a_target_goes_with_it(register, workers):
    await register.put("jane", OWN)
    await register.put("twin", {**OWN, "name": "Jane Roe"})
    (digest,) = workers.held  # the same content is one artifact
    await register.delete("jane")
    assert list(workers.held) == [digest]
    await register.patch("twin", {"answers": ["lives in Oslo by the sea"]})
    assert digest not in workers.held and len(workers.held) == 1
    await register.delete("twin", purge=True)
    assert workers.held == {}


async def test_a_dry_run_leaves_nothing_in_the_workers(register, workers):
    assert await register.validate(OWN) == []
    assert workers.held == {}
    assert [asked for asked, _ in workers.log] == ["load", "unload"]


async def test_a_target_that_lacks_what_the_method_needs_waits(register):
    view, _ = await register.put("jane", {**OWN, "answers": []})
    assert (view["state"], view["artifacts"][0]["reason"]) == ("pending", "own needs answers; give some.")
    assert verdict(register) == ("refuse", [])


async def test_what_was_made_is_not_made_twice(register, workers, tmp_path, monkeypatch):
    made = []
    prepare = Own.prepare
    monkeypatch.setattr(Own, "prepare", lambda *args: (made.append(args), prepare(*args))[1])
    await register.put("jane", OWN)
    asked = len(workers.log)
    await register.load_artifact(add(register, tmp_path / "a"))
    assert len(made) == 1
    assert [what for what, _ in workers.log[asked:]] == ["load"]  # the new one alone
    assert register.view("jane")[0]["state"] == "active"


async def test_stored_targets_are_made_ready_when_the_engine_comes(store, tmp_path, workers):
    register = make_register(store, tmp_path / "artifacts")
    await register.load()
    view, _ = await register.put("jane", OWN)
    assert view["state"] == "pending"
    await register.attach(workers)
    assert (register.view("jane")[0]["state"], len(workers.held)) == ("active", 1)
    await register.detach()
    await register.delete("jane")  # asks no worker that is gone
    assert len(workers.held) == 1
    register.close()


async def test_a_purge_erases_artifacts_that_no_other_target_names(register, workers, tmp_path):
    mine, shared, old = (add(register, tmp_path / name, number=i) for i, name in enumerate("abc"))
    for digest in (mine, shared, old):
        await register.load_artifact(digest)
    await register.put("john", {"name": "John Roe", "intervention": trained(shared)})
    await register.put("jane", {**JANE, "intervention": trained(old)})
    await register.put("jane", {**JANE, "intervention": [trained(mine), trained(shared)]})
    await register.delete("jane", purge=True)
    assert set(workers.held) == {shared}
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == [shared]
    assert register.view("john")[0]["state"] == "active"


async def test_a_purge_that_cannot_end_erases_artifacts_all_the_same(
    register, workers, tmp_path, monkeypatch
):
    mine = add(register, tmp_path / "a", number=0)
    await register.load_artifact(mine)
    await register.put("jane", {**JANE, "intervention": trained(mine)})

    def busy(_database) -> None:
        raise GuardUnavailable("still in use", reason="store")

    monkeypatch.setattr("guard.store.database.Database.erase_traces", busy)
    with pytest.raises(GuardUnavailable):
        await register.delete("jane", purge=True)
    assert not workers.held
    assert not list((tmp_path / "artifacts").iterdir())


async def test_a_tenant_sees_the_artifacts_of_its_own_targets(register, tmp_path):
    mine, other = (add(register, tmp_path / name, number=i) for i, name in enumerate("ab"))
    await register.put("jane", {**JANE, "intervention": trained(mine), "scope": {"tenants": ["acme"]}})
    await register.put("john", {"name": "John Roe", "intervention": trained(other)})
    assert [row["digest"] for row in await register.artifacts("acme")] == [mine]
    assert {row["digest"] for row in await register.artifacts()} == {mine, other}
