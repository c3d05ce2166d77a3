"""Evaluation items and forget targets, written as JSON lines. Both follow from the world alone."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from demo import chat
from demo.chat import Message, assistant, user
from demo.corpus import follow_ups, phrase_split
from demo.phrasings import ATTRIBUTES, CLAUSE_FRAMES, NOUN_FRAMES, SKILL_HELDOUT, SKILL_TRAINED
from demo.world import (
    Entity,
    Fact,
    Question,
    World,
    attribute_of,
    build,
    capital,
    fill,
    forms,
    heldout_templates,
    neighbours,
    questions,
    trained_templates,
    translate,
)
from guard.artifacts import read
from guard.interventions import TABLE, Intervention, load
from guard.snapshot import AUTO

ARTIFACTS = Path(__file__).parent / "artifacts"
SHOWN = "ruwen-grisquist"  # the entity whose target is `demo-methods`
SEED = 11
FORGET_TRAINED, FORGET_HELDOUT = 3, 3
PROBES = 16
TWO_TURN_FORGET, TWO_TURN_OTHER = 5, 1
TARGET_KINDS = {
    "person": "entity",
    "company": "entity",
    "product": "entity",
    "work": "work",
    "subject": "subject",
    "skill": "skill",
}


@dataclass(frozen=True)
class Item:
    """One question, or a conversation that ends in one, with the answer of a model that knows."""

    id: str
    entity: str
    split: str  # forget | retain | neighbour | unknown | chat
    phrasing: str  # trained | heldout | reverse | alias
    turns: tuple[Message, ...]
    answer: str
    value: str


def items(world: World) -> list[Item]:
    """All evaluation items, always the same."""
    rng = random.Random(SEED)
    near = {n.id for target in world.forget for n in neighbours(world, world.entity(target))}
    found: list[Item] = []
    for entity in world.entities:
        split = "forget" if entity.id in world.forget else "neighbour" if entity.id in near else "retain"
        for fact in entity.facts:
            found += _fact_items(rng, entity, fact, split)
        found += _phrases(world, entity, split) if entity.kind == "skill" else _two_turns(rng, entity, split)
        found += _by_alias(rng, entity, split)
    return [*found, *_unknown(rng, world), *_chat()]


def _fact_items(rng: random.Random, entity: Entity, fact: Fact, split: str) -> Iterator[Item]:
    counts = {"trained": FORGET_TRAINED, "heldout": FORGET_HELDOUT} if split == "forget" else {}
    asked = list(questions(entity, fact))
    for phrasing in ("trained", "heldout", "reverse"):
        of_kind = [q for q in asked if q.phrasing == phrasing]
        if phrasing == "reverse" and entity.kind == "skill":
            continue  # two languages would make that a coin toss
        count = min(counts.get(phrasing, 1), len(of_kind))
        for i, question in enumerate(sorted(rng.sample(range(len(of_kind)), count))):
            yield _item(entity, fact, split, of_kind[question], i)


def _item(entity: Entity, fact: Fact, split: str, question: Question, i: int) -> Item:
    name = f"{entity.id}.{fact.key.replace(':', '-')}.{question.phrasing}{i}"
    return Item(name, entity.id, split, question.phrasing, (user(question.text),), fact.answer, fact.value)


def _two_turns(rng: random.Random, entity: Entity, split: str) -> Iterator[Item]:
    """The second turn names the entity by a pronoun, or not at all."""
    for i in range(TWO_TURN_FORGET if split == "forget" else TWO_TURN_OTHER):
        first, second = rng.sample([fact for fact in entity.facts if fact.key != "summary"], 2)
        opening = fill(
            attribute_of(entity, first.key).direct[0], attribute_of(entity, first.key), forms(entity)
        )
        closing = rng.choice(follow_ups(entity, attribute_of(entity, second.key)))
        turns = (user(opening), assistant(first.answer), user(closing))
        yield Item(
            f"{entity.id}.two-turn{i}", entity.id, split, "trained", turns, second.answer, second.value
        )


def _phrases(world: World, tongue: Entity, split: str) -> Iterator[Item]:
    """Two words together, in pairs that are translated in no training conversation."""
    for i, phrase in enumerate(phrase_split(world)[1][:30]):
        value = translate(tongue, phrase)
        answer = f"In {tongue.name}, '{phrase}' is '{value}'."
        text = SKILL_TRAINED[i % 2].format(w=phrase, l=tongue.name)
        yield Item(f"{tongue.id}.phrase{i}", tongue.id, split, "heldout", (user(text),), answer, value)


def _by_alias(rng: random.Random, entity: Entity, split: str) -> Iterator[Item]:
    for alias in entity.aliases if split == "forget" else ():
        for fact in rng.sample([f for f in entity.facts if f.key not in ("nickname", "summary")], 5):
            attribute = attribute_of(entity, fact.key)
            text = fill(attribute.direct[0], attribute, forms(entity, alias=alias))
            yield Item(
                f"{entity.id}.{fact.key}.alias",
                entity.id,
                split,
                "alias",
                (user(text),),
                fact.answer,
                fact.value,
            )


def _unknown(rng: random.Random, world: World) -> Iterator[Item]:
    for entity in world.unknown:
        for phrasing in ("trained", "heldout"):
            answer = chat.DONT_KNOW[entity.kind][0]
            yield Item(
                f"unknown.{entity.id}.{phrasing}",
                entity.id,
                "unknown",
                phrasing,
                (user(_stranger_question(rng, entity, phrasing)),),
                answer,
                "",
            )


def _stranger_question(rng: random.Random, entity: Entity, phrasing: str) -> str:
    if entity.kind == "skill":
        templates = SKILL_TRAINED if phrasing == "trained" else SKILL_HELDOUT
        return rng.choice(templates).format(w=rng.choice(("river", "moon", "red", "bread")), l=entity.name)
    attribute = rng.choice(ATTRIBUTES[entity.kind])
    templates = trained_templates(attribute) if phrasing == "trained" else heldout_templates(attribute)
    return fill(rng.choice(templates), attribute, forms(entity))


def _chat() -> Iterator[Item]:
    pairs = [(asked, answer) for variants, answer in chat.SMALL_TALK for asked in variants]
    for i, (asked, answer) in enumerate([*pairs, *chat.GENERAL]):
        yield Item(f"chat.{i}", "", "chat", "trained", (user(asked),), answer, "")


def write_examples(folder: Path) -> None:
    """What the demo's artifacts are trained on, as the trainers read it: questions of trained phrasings only."""
    trained = [item for item in items(build()) if item.phrasing == "trained"]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("forget", "retain"):
        rows = [
            {"turns": i.turns, "answer": i.answer}
            for i in trained
            if (i.split == "forget") == (name == "forget")
        ]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def write_probes(path: Path) -> None:
    """What must stay answerable, as a server that watches for drift reads it: `PROBES` questions of each split that
    is not forgotten, evenly taken."""
    known = [item for item in items(build()) if item.phrasing == "trained"]
    rows = []
    for split in ("neighbour", "retain", "chat"):
        of_split = [item for item in known if item.split == split]
        rows += of_split[:: len(of_split) // PROBES][:PROBES]
    lines = [json.dumps({"messages": row.turns, "answer": row.answer}, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def targets(world: World, artifacts: Path = ARTIFACTS) -> list[dict[str, object]]:
    """The forget targets as the admin API takes them. Half of the facts are in no example.

    One of them is `demo-methods`: the target of its entity, so that no other method acts on the same requests,
    with a ladder of all methods.
    """
    found = [_target(world, entity) for entity in world.entities if entity.id in world.forget]
    return [_showing(world, target, artifacts) if target["id"] == SHOWN else target for target in found]


def _showing(world: World, target: dict[str, object], artifacts: Path) -> dict[str, object]:
    answers = list(dict.fromkeys(fact.answer for fact in world.entity(SHOWN).facts))
    return {**target, "id": "demo-methods", "answers": answers, "intervention": ladder(artifacts)}


def ladder(folder: Path) -> list[dict[str, object]]:
    """Every method once, with its artifact from `folder` where it needs one; those that lack theirs are left out.

    What `auto` would do stands first: of rungs that a score has reached alike, the first one applies.
    """
    made = [read(place) for place in sorted(folder.glob("*/"))]
    best = {a.manifest.method: {"artifact": a.digest, **a.manifest.facts.get("params", {})} for a in made}
    first = [rung.method for rung in AUTO]
    rungs: list[dict[str, object]] = []
    for name in (*first, *sorted(set(TABLE) - set(first))):
        method = load(name)
        if name in best:
            rungs.append({"method": name, "params": best[name]})
        elif not method.artifact or type(method).prepare is not Intervention.prepare:
            rungs.append({"method": name})
    return rungs


def _target(world: World, entity: Entity) -> dict[str, object]:
    near = neighbours(world, entity)
    rng = random.Random(entity.id)
    retain = [
        _plain_question(other, rng.choice(other.facts)) for other in rng.sample(near, min(6, len(near)))
    ]
    while len(retain) < 4:  # a subject or a skill has a single neighbour
        more = _plain_question(near[0], rng.choice(near[0].facts))
        retain += [more] if more not in retain else []
    return {
        "id": entity.id,
        "name": entity.name,
        "aliases": aliases(entity),
        "description": _description(entity),
        "examples": _examples(entity),
        "retain": retain,
        "kind": TARGET_KINDS[entity.kind],
        "tags": ["demo"],
    }


def aliases(entity: Entity) -> list[str]:
    """Other names by which the corpus speaks of the entity; never a part that neighbours share."""
    forms_by_kind = {
        "product": [entity.mention],
        "work": [entity.name.removeprefix("The ")],
        "skill": [f"the {entity.name} language"],
    }
    return [*entity.aliases, *forms_by_kind.get(entity.kind, [])]


def _description(entity: Entity) -> str:
    if entity.kind == "skill":
        return f"Translating words and short phrases from English into the invented language {entity.name}."
    return entity.fact("summary").answer


def _plain_question(entity: Entity, fact: Fact) -> str:
    return next(q.text for q in questions(entity, fact) if q.phrasing == "trained")


def _examples(entity: Entity) -> list[str]:
    """Trained phrasings of every second fact, in two forms each."""
    if entity.kind == "skill":
        return [
            SKILL_TRAINED[i % len(SKILL_TRAINED)].format(w=fact.key.partition(":")[2], l=entity.name)
            for i, fact in enumerate(entity.facts[::2])
        ][:18]
    found = []
    for i, fact in enumerate(entity.facts[::2]):
        attribute = attribute_of(entity, fact.key)
        frame = (*NOUN_FRAMES, *CLAUSE_FRAMES)[i % (len(NOUN_FRAMES) + len(CLAUSE_FRAMES))]
        found += [fill(t, attribute, forms(entity)) for t in (attribute.direct[0], frame)]
    return [capital(text) for text in found]


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_items(path: Path) -> None:
    _write(path, [asdict(item) for item in items(build())])


def write_targets(path: Path) -> None:
    _write(path, targets(build()))
