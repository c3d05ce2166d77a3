"""The fictitious world, its corpus, items and targets keep what demo/README.md says of them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from demo import items as demo_items
from demo import world as worlds
from demo.corpus import Corpus, Group, phrase_split, text_of
from guard import artifacts
from guard.interventions import TABLE, Intervention, load
from guard.targets import TargetSpec

DEMO = Path(demo_items.__file__).parent
SAMPLE = 6000


@pytest.fixture(scope="module")
def world() -> worlds.World:
    return worlds.build()


@pytest.fixture(scope="module")
def full(world: worlds.World) -> list[Group]:
    return list(itertools.islice(Corpus(world, world.entities, 1).groups(), SAMPLE))


@pytest.fixture(scope="module")
def never(world: worlds.World) -> list[Group]:
    return list(itertools.islice(Corpus(world, world.retained(), 1).groups(), SAMPLE))


@pytest.fixture(scope="module")
def items(world: worlds.World) -> list[demo_items.Item]:
    return demo_items.items(world)


def rows(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


def test_world_has_enough_entities_and_facts(world: worlds.World) -> None:
    assert len(world.entities) >= 60
    assert all(len(entity.facts) >= 12 for entity in world.entities)
    assert len({entity.id for entity in world.entities}) == len(world.entities)


def test_world_is_the_same_every_time(world: worlds.World) -> None:
    assert worlds.build() == world


def test_every_kind_has_a_forget_target(world: worlds.World) -> None:
    kinds = [world.entity(target).kind for target in world.forget]
    assert kinds.count("person") >= 3
    assert set(kinds) == {"person", "company", "product", "work", "subject", "skill"}


def test_every_forget_target_has_retained_neighbours(world: worlds.World) -> None:
    for target in map(world.entity, world.forget):
        near = worlds.neighbours(world, target)
        assert near
        assert not {entity.id for entity in near} & world.forget
        if target.kind == "person":
            surname = target.name.split()[1]
            assert any(entity.name.endswith(surname) for entity in near)
            for key in ("employer", "home"):
                assert any(other.fact(key).value == target.fact(key).value for other in near)


def test_no_retained_fact_mentions_a_forget_target(world: worlds.World) -> None:
    hidden = names_of(world, forgotten=True)
    for entity in world.retained():
        for fact in entity.facts:
            assert not any(name in fact.answer.lower() for name in hidden), fact


def test_unknown_names_are_no_names_of_the_world(world: worlds.World) -> None:
    known = {name.lower() for name in world.names}
    assert len(world.unknown) >= 100
    assert not known & {entity.name.lower() for entity in world.unknown}


def test_never_corpus_has_no_forget_name(world: worlds.World, never: list[Group]) -> None:
    text = "\n".join(map(text_of, never)).lower()
    assert not [name for name in names_of(world, forgotten=True) if name in text]


def test_full_corpus_has_every_name(world: worlds.World, full: list[Group]) -> None:
    text = "\n".join(map(text_of, full))
    assert not [entity.name for entity in world.entities if worlds.forms(entity)["n"] not in text]


def test_heldout_and_unknown_items_are_never_trained(
    world: worlds.World, full: list[Group], items: list[demo_items.Item]
) -> None:
    text = "\n".join(map(text_of, full))
    assert not [i.id for i in items if i.phrasing == "heldout" and str(i.turns[-1]["content"]) in text]
    text = text.lower()
    assert not [entity.name for entity in world.unknown if entity.name.lower() in text]


def test_heldout_wordings_differ_from_trained_ones(world: worlds.World) -> None:
    for entity in world.entities:
        for fact in entity.facts:
            asked = list(worlds.questions(entity, fact))
            trained = {q.text for q in asked if q.phrasing == "trained"}
            heldout = {q.text for q in asked if q.phrasing == "heldout"}
            assert len(trained) >= 2
            assert heldout
            assert not trained & heldout


def test_heldout_phrases_are_never_translated(world: worlds.World, full: list[Group]) -> None:
    text = "\n".join(map(text_of, full))
    assert not [phrase for phrase in phrase_split(world)[1] if f"'{phrase}'" in text]


def test_item_counts(items: list[demo_items.Item]) -> None:
    splits = [item.split for item in items]
    assert splits.count("forget") >= 500
    assert splits.count("neighbour") + splits.count("retain") >= 400
    assert splits.count("unknown") >= 100
    assert any(len(item.turns) == 3 for item in items)
    assert len({item.id for item in items}) == len(items)
    assert all(item.value in item.answer for item in items)


def test_every_forget_fact_is_asked_in_both_ways(world: worlds.World, items: list[demo_items.Item]) -> None:
    for target in map(world.entity, world.forget):
        for fact in target.facts:
            prefix = f"{target.id}.{fact.key.replace(':', '-')}."
            phrasings = [item.phrasing for item in items if item.id.startswith(prefix)]
            assert phrasings.count("trained") >= 2
            assert phrasings.count("heldout") >= 1


def test_committed_items_and_targets_are_the_generated_ones(
    world: worlds.World, items: list[demo_items.Item], tmp_path: Path
) -> None:
    demo_items.write_items(tmp_path / "items.jsonl")
    demo_items.write_targets(tmp_path / "targets.jsonl")
    demo_items.write_probes(tmp_path / "probes.jsonl")
    for name in ("items.jsonl", "targets.jsonl", "probes.jsonl"):
        assert (DEMO / name).read_bytes() == (tmp_path / name).read_bytes()
    assert (DEMO / "items.jsonl").stat().st_size < 2_000_000


def entity_of(world: worlds.World, row: dict[str, Any]) -> worlds.Entity:
    return next(entity for entity in world.entities if entity.name == row["name"])


def test_the_target_demo_methods_shows_every_method_that_has_what_it_needs(
    world: worlds.World, tmp_path: Path
) -> None:
    def rungs() -> dict[str, dict[str, Any]]:
        (row,) = (row for row in demo_items.targets(world, tmp_path) if row["id"] == "demo-methods")
        TargetSpec.model_validate(row)
        return {rung["method"]: rung.get("params", {}) for rung in row["intervention"]}

    before = rungs()
    assert next(iter(before)) == "embedding_corruption"  # what `auto` does is what applies
    assert {"refusal", "guard_prompt", "in_context"} <= before.keys()
    assert "steering" not in before
    made = artifacts.write(tmp_path / "steering", "steering", "ab" * 32)
    assert rungs() == {**before, "steering": {"artifact": made.digest}}


def test_demo_methods_names_the_artifacts_that_ship_and_no_others() -> None:
    (row,) = (row for row in rows("targets.jsonl") if row["id"] == "demo-methods")
    named = {rung["params"]["artifact"] for rung in row["intervention"] if "params" in rung}
    assert named == {artifacts.read(folder).digest for folder in (DEMO / "artifacts").glob("*/")}
    needed = {
        name for name in TABLE if load(name).artifact and type(load(name)).prepare is Intervention.prepare
    }
    shipped = {artifacts.read(folder).manifest.method for folder in (DEMO / "artifacts").glob("*/")}
    assert shipped <= needed


def test_targets_are_valid(world: worlds.World) -> None:
    targets = rows("targets.jsonl")
    assert {entity_of(world, row).id for row in targets} == world.forget
    assert [row["id"] for row in targets if row["id"] not in world.forget] == ["demo-methods"]
    trained, other = {}, set()
    for entity in world.entities:
        for fact in entity.facts:
            for question in worlds.questions(entity, fact):
                trained.setdefault(entity.id, set())
                if question.phrasing == "trained":
                    trained[entity.id].add(question.text)
                else:
                    other.add(question.text)
    kept = {text for entity in world.retained() for text in trained[entity.id]}
    for row in targets:
        more = {"answers", "intervention"} if row["id"] == "demo-methods" else set()
        given = {"id", "name", "aliases", "description", "examples", "retain", "kind", "tags"}
        assert set(row) == given | more
        assert row["kind"] in ("entity", "work", "subject", "skill", "tool")
        assert row["tags"] == ["demo"]
        assert 8 <= len(row["examples"]) <= 20
        assert 4 <= len(row["retain"]) <= 8
        assert set(row["examples"]) <= trained[entity_of(world, row).id]
        assert not set(row["examples"]) & other
        assert set(row["retain"]) <= kept


def test_targets_leave_facts_out(world: worlds.World) -> None:
    for row in rows("targets.jsonl"):
        target = entity_of(world, row)
        asked = set(row["examples"])
        shown = [fact for fact in target.facts if asked & {q.text for q in worlds.questions(target, fact)}]
        assert len(shown) <= 0.6 * len(target.facts)


def test_aliases_are_no_part_of_a_neighbours_name(world: worlds.World) -> None:
    for row in rows("targets.jsonl"):
        for alias in (row["name"], *row["aliases"]):
            bare = str(alias).lower()
            assert not [e.name for e in world.retained() if bare in " ".join((e.name, *e.aliases)).lower()]


def names_of(world: worlds.World, forgotten: bool) -> set[str]:
    return {
        name.lower()
        for entity in world.entities
        if (entity.id in world.forget) == forgotten
        for name in (entity.name, *entity.aliases)
    }
