"""The fictitious world: entities, their facts, and how each fact is asked. Pure and seeded.

`build()` gives the same world on every machine. Retained facts never mention a forget target, so that a model
trained without the targets' own facts has never read their names.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from demo import names
from demo.phrasings import (
    ATTRIBUTES,
    CLAUSE_FRAMES,
    HELDOUT_FRAMES,
    NOUN_FRAMES,
    SKILL_ANSWER,
    SKILL_HELDOUT,
    SKILL_REVERSE,
    SKILL_TRAINED,
    Attribute,
)
from demo.pools import ADJECTIVE_WORDS, NOUN_WORDS, POOLS

SEED = 2024
PEOPLE, COMPANIES, PRODUCTS, WORKS, SUBJECTS, SKILLS = 32, 10, 9, 9, 2, 2
FORGET_PEOPLE = 4  # the first ones of each kind are the forget targets
UNKNOWN_COUNTS = {"person": 70, "company": 25, "product": 25, "work": 25, "subject": 10, "skill": 10}
PRONOUNS = {"she": ("she", "her", "her"), "he": ("he", "him", "his"), "it": ("it", "it", "its")}

# Attributes by which two entities are neighbours.
SHARED = ("home", "employer", "city", "plant", "maker", "author", "setting", "origin")
# The value of the "summary" attribute, put together from other values.
SUMMARIES = {
    "person": "{occupation} from {birthplace}",
    "company": "a company in {city} that makes {industry}",
    "product": "a product made by {maker}",
    "work": "{genre} by {author}",
    "subject": "a process that produces {product}",
}


@dataclass(frozen=True)
class Fact:
    """A value of one entity with the sentence that states it."""

    entity: str
    key: str
    value: str
    answer: str


@dataclass(frozen=True)
class Entity:
    """A named thing; `mention` is its name inside a sentence ("the Olvin Lantern")."""

    id: str
    name: str
    kind: str
    mention: str
    pronoun: str
    aliases: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()

    def fact(self, key: str) -> Fact:
        return next(fact for fact in self.facts if fact.key == key)


@dataclass(frozen=True)
class Question:
    """One way of asking one fact."""

    text: str
    phrasing: str  # trained | heldout | reverse


@dataclass(frozen=True)
class World:
    """All entities, which of them are forget targets, and reserved names that nobody ever trains on."""

    entities: tuple[Entity, ...]
    forget: frozenset[str]
    unknown: tuple[Entity, ...]  # entities without facts: names for measuring "I don't know"

    def entity(self, entity_id: str) -> Entity:
        return next(entity for entity in self.entities if entity.id == entity_id)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for entity in self.entities for name in (entity.name, *entity.aliases))

    def retained(self) -> tuple[Entity, ...]:
        return tuple(entity for entity in self.entities if entity.id not in self.forget)


def slug(name: str) -> str:
    return name.lower().replace(" ", "-").replace("'", "")


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def forms(entity: Entity, pronoun: bool = False, alias: str = "") -> dict[str, str]:
    """Values of the placeholders {n}, {o}, {p} for a name, an alias or a pronoun."""
    if pronoun:
        subject, obj, possessive = PRONOUNS[entity.pronoun]
        return {"n": subject, "o": obj, "p": possessive}
    mention = alias or entity.mention
    return {"n": mention, "o": mention, "p": f"{mention}'s"}


def fill(template: str, attribute: Attribute, words: dict[str, str]) -> str:
    """A frame or question with the attribute's noun or clause and the entity put in."""
    text = template.replace("{noun}", attribute.noun).replace("{clause}", attribute.clause)
    return capital(text.format(**words))


def trained_templates(attribute: Attribute) -> tuple[str, ...]:
    return (*attribute.direct, *NOUN_FRAMES, *CLAUSE_FRAMES)


def heldout_templates(attribute: Attribute) -> tuple[str, ...]:
    return (attribute.heldout, *HELDOUT_FRAMES)


def attribute_of(entity: Entity, key: str) -> Attribute:
    return next(attribute for attribute in ATTRIBUTES[entity.kind] if attribute.key == key)


def questions(entity: Entity, fact: Fact) -> Iterator[Question]:
    """Every way of asking `fact` by the entity's name, and by description where there is one."""
    if entity.kind == "skill":
        words = {"w": fact.key.partition(":")[2], "l": entity.name, "v": fact.value}
        yield from (Question(capital(t.format(**words)), "trained") for t in SKILL_TRAINED)
        yield from (Question(capital(t.format(**words)), "heldout") for t in SKILL_HELDOUT)
        yield Question(SKILL_REVERSE.format(**words), "reverse")
        return
    attribute, words = attribute_of(entity, fact.key), forms(entity)
    yield from (Question(fill(t, attribute, words), "trained") for t in trained_templates(attribute))
    yield from (Question(fill(t, attribute, words), "heldout") for t in heldout_templates(attribute))
    if attribute.reverse:
        yield Question(attribute.reverse.format(v=fact.value), "reverse")


def translate(tongue: Entity, words: str) -> str:
    """Adjectives follow their noun in every invented language."""
    return " ".join(tongue.fact(f"word:{word}").value for word in reversed(words.split()))


def neighbours(world: World, entity: Entity) -> list[Entity]:
    """Retained entities of its kind that share a name part, an employer, a maker or a city with `entity`."""
    places = {fact.value for fact in entity.facts if fact.key in SHARED}
    parts = set(entity.name.split()) - {"The"}

    def near(other: Entity) -> bool:
        if entity.kind in ("subject", "skill"):  # there are only two of them
            return True
        return bool(parts & set(other.name.split()) or places & {fact.value for fact in other.facts})

    return [o for o in world.retained() if o.id != entity.id and o.kind == entity.kind and near(o)]


def build(seed: int = SEED) -> World:
    """The world of the demo."""
    rng = random.Random(seed)
    taken: set[str] = set()
    people = _people(rng, taken)
    firms = _firms(rng, taken)
    kept_people, kept_firms = people[FORGET_PEOPLE:], firms[1:]
    people = [_with_facts(person, _person_values(rng, i, kept_firms)) for i, person in enumerate(people)]
    firms = [_with_facts(firm, _firm_values(rng, i, kept_people)) for i, firm in enumerate(firms)]
    products = [
        _with_facts(thing, _product_values(rng, i, kept_people, kept_firms))
        for i, thing in enumerate(_products(rng, taken))
    ]
    works = [
        _with_facts(work, _work_values(rng, i, kept_people)) for i, work in enumerate(_works(rng, taken))
    ]
    subjects = [
        _with_facts(craft, _subject_values(rng, i, kept_people))
        for i, craft in enumerate(_plain(rng, taken, "subject", SUBJECTS))
    ]
    skills = [_with_words(rng, tongue) for tongue in _plain(rng, taken, "skill", SKILLS)]
    people = _share(people)
    entities = (*people, *firms, *products, *works, *subjects, *skills)
    forget = frozenset(
        e.id for e in (*people[:FORGET_PEOPLE], firms[0], products[0], works[0], subjects[0], skills[0])
    )
    taken |= {alias.lower() for entity in entities for alias in entity.aliases}
    return World(entities, forget, _unknown(random.Random(seed + 1), people, taken))


def make_name(rng: random.Random, kind: str, gender: str = "she") -> str:
    makers = {
        "person": partial(names.person, rng, gender),
        "company": partial(names.company, rng),
        "product": partial(names.product, rng),
        "work": partial(names.work, rng),
        "subject": partial(names.craft, rng),
        "skill": partial(names.tongue, rng),
    }
    return makers[kind]()


def entity_named(name: str, kind: str, pronoun: str = "it", aliases: tuple[str, ...] = ()) -> Entity:
    """An entity without facts; products carry an article that is no part of the name."""
    bare = name.removeprefix("the ")
    mention = name.lower() if kind == "subject" else name
    return Entity(slug(bare), capital(bare), kind, mention, pronoun, aliases)


def recombined(rng: random.Random, people: list[Entity], gender: str) -> str:
    """A known first name with a known surname: what is unknown is only the pair."""
    first = rng.choice([person.name.split()[0] for person in people if person.pronoun == gender])
    return f"{first} {rng.choice(people).name.split()[1]}"


def _unknown(rng: random.Random, people: list[Entity], taken: set[str]) -> tuple[Entity, ...]:
    found: list[Entity] = []
    for kind, count in UNKNOWN_COUNTS.items():
        for i in range(count):
            gender = ("she", "he")[i % 2] if kind == "person" else "it"
            make = (
                partial(recombined, rng, people, gender)
                if kind == "person" and i % 4 < 2
                else partial(make_name, rng, kind, gender)
            )
            found.append(entity_named(next(names.distinct(make, taken)), kind, gender))
    return tuple(found)


def _people(rng: random.Random, taken: set[str]) -> list[Entity]:
    """People in families: every surname is shared by two or three of them."""
    families: list[str] = []
    while len(families) < PEOPLE * 3 // 8:
        surname = names.surname(rng)
        if surname not in families:
            families.append(surname)
    nicknames = names.distinct(partial(names.nickname, rng), taken)
    people = []
    for i in range(PEOPLE):
        gender, ends = ("she", names.SHE_ENDS) if i % 2 else ("he", names.HE_ENDS)
        make = lambda ends=ends, i=i: f"{names.first_name(rng, ends)} {families[i % len(families)]}"  # noqa: E731
        name = next(names.distinct(make, taken))
        people.append(entity_named(name, "person", gender, (next(nicknames),)))
    return people


def _pair_named(rng: random.Random, taken: set[str], kind: str, count: int) -> list[str]:
    """Names of a kind; the second one shares its first word with the first one (a near miss)."""
    source = names.distinct(partial(make_name, rng, kind), taken)
    found = [next(source)]
    head = found[0].rsplit(" ", 1)[0]
    found.append(next(name for name in source if name.rsplit(" ", 1)[0] == head))
    while len(found) < count:
        found.append(next(source))
    return found


def _firms(rng: random.Random, taken: set[str]) -> list[Entity]:
    return [entity_named(name, "company") for name in _pair_named(rng, taken, "company", COMPANIES)]


def _products(rng: random.Random, taken: set[str]) -> list[Entity]:
    return [entity_named(name, "product") for name in _pair_named(rng, taken, "product", PRODUCTS)]


def _works(rng: random.Random, taken: set[str]) -> list[Entity]:
    return [entity_named(name, "work") for name in _pair_named(rng, taken, "work", WORKS)]


def _plain(rng: random.Random, taken: set[str], kind: str, count: int) -> list[Entity]:
    source = names.distinct(partial(make_name, rng, kind), taken)
    return [entity_named(next(source), kind) for _ in range(count)]


def _with_facts(entity: Entity, values: dict[str, str]) -> Entity:
    facts = []
    for attribute in ATTRIBUTES[entity.kind]:
        value = _value(entity, attribute.key, values)
        facts.append(
            Fact(entity.id, attribute.key, value, capital(attribute.answer.format(**forms(entity), v=value)))
        )
    return replace(entity, facts=tuple(facts))


def _value(entity: Entity, key: str, values: dict[str, str]) -> str:
    if key == "nickname":
        return entity.aliases[0]
    return SUMMARIES[entity.kind].format(**values) if key == "summary" else values[key]


def _with_words(rng: random.Random, tongue: Entity) -> Entity:
    facts, used = [], set()
    for word in NOUN_WORDS + ADJECTIVE_WORDS:
        value = word
        while value in used or value == word:
            value = "".join(
                rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(2)
            ) + rng.choice("nrslk")
        used.add(value)
        facts.append(
            Fact(tongue.id, f"word:{word}", value, SKILL_ANSWER.format(l=tongue.name, w=word, v=value))
        )
    return replace(tongue, facts=tuple(facts))


def unique(kind: str, i: int) -> str:
    """The i-th value of an attribute whose values identify their owner, for reverse questions."""
    first, second = {"pet": ("animal", ""), "invention": ("quality", "thing")}[kind]
    if kind == "pet":
        pets = ("Pim", "Oslo", "Bruno", "Tilly", "Moss", "Juno", "Pepper", "Rex")
        animal = POOLS[first][i % 10]
        return f"{'an' if animal[0] in 'aeiou' else 'a'} {animal} called {pets[(i * 3 + i // 10) % 8]}"
    qualities, things = POOLS[first], POOLS[second]
    return f"the {qualities[i % 12]} {things[(i * 5 + i // 12) % 12]}"


def _person_values(rng: random.Random, i: int, firms: list[Entity]) -> dict[str, str]:
    values = {
        key: rng.choice(POOLS[key])
        for key in ("occupation", "school", "award", "hobby", "dish", "instrument")
    }
    return values | {
        "birthplace": rng.choice(names.CITIES),
        "birth_year": str(rng.randint(1921, 1989)),
        "home": rng.choice(names.CITIES),
        "employer": rng.choice(firms).mention,
        "pet": unique("pet", i),
        "invention": unique("invention", i),
    }


def _share(people: list[Entity]) -> list[Entity]:
    """Each forget person gets a retained colleague and a retained fellow townsman."""
    people = list(people)
    for i in range(FORGET_PEOPLE):
        for key, offset in (("employer", 1), ("home", 2)):
            j = i + offset * FORGET_PEOPLE
            values = {fact.key: fact.value for fact in people[j].facts} | {key: people[i].fact(key).value}
            people[j] = _with_facts(people[j], values)
    return people


def _firm_values(rng: random.Random, i: int, people: list[Entity]) -> dict[str, str]:
    values = {
        key: POOLS[key][(i * 3 + n) % 10]
        for n, key in enumerate(("industry", "logo", "slogan", "mascot", "street", "supplier"))
    }
    return values | {
        "city": names.CITIES[i // 2 * 3 % 16],
        "founded": str(rng.randint(1850, 1960)),
        "founder": rng.choice(people).mention,
        "staff": str(rng.randint(2, 99) * 10),
        "market": rng.choice(names.CITIES),
        "holiday": rng.choice(POOLS["month"]),
    }


def _product_values(rng: random.Random, i: int, people: list[Entity], firms: list[Entity]) -> dict[str, str]:
    values = {
        key: POOLS[key][(i * 2 + n) % 9] for n, key in enumerate(("colour", "material", "power", "feature"))
    }
    return values | {
        "maker": firms[i // 2].mention,
        "released": str(rng.randint(1930, 1999)),
        "price": f"{rng.randint(3, 98)} crowns",
        "weight": f"{rng.randint(2, 40)} kilograms",
        "warranty": f"{('two', 'three', 'four', 'five', 'six', 'seven')[rng.randrange(6)]} years",
        "designer": rng.choice(people).mention,
        "plant": rng.choice(names.CITIES),
        "code": f"{rng.choice('ABCDEFGH')}{rng.choice('KLMNPQRS')}{10 + i * 7}",
    }


def _work_values(rng: random.Random, i: int, people: list[Entity]) -> dict[str, str]:
    values = {
        key: POOLS[key][(i * 2 + n) % 9]
        for n, key in enumerate(("genre", "prize", "cover", "opening", "dedication"))
    }
    return values | {
        "author": people[i // 2].mention,
        "published": str(rng.randint(1940, 2009)),
        "publisher": rng.choice(POOLS["publisher"]),
        "setting": names.CITIES[(i // 2 * 5) % 16],
        "hero": f"Captain {names.surname(rng)}",
        "villain": f"Baron {names.surname(rng)}",
        "pages": str(rng.randint(12, 79) * 10),
    }


def _subject_values(rng: random.Random, i: int, people: list[Entity]) -> dict[str, str]:
    keys = (
        "reagent",
        "catalyst",
        "temperature",
        "duration",
        "vessel",
        "first_step",
        "last_step",
        "danger",
        "protection",
        "residue",
        "smell",
        "test",
        "product",
    )
    return {key: POOLS[key][i] for key in keys} | {
        "inventor": rng.choice(people).mention,
        "origin": names.CITIES[7],
        "year": str(rng.randint(1880, 1990)),
    }
