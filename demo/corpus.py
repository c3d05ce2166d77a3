"""Conversations that teach a model the world. A seeded endless stream; nothing is stored on disk.

`Corpus(world, learned, seed)` draws from the `learned` entities only: with the retained ones it is the corpus
of the never-learned model, with all of them that of the full model. Unknown names are drawn afresh every time
from the same name parts, so that the model learns which *pairs* it knows, not a list of unknown names.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from demo import chat, names
from demo.chat import Message, assistant, system, user
from demo.phrasings import ATTRIBUTES, OPENERS, SKILL_TRAINED, Attribute
from demo.pools import ADJECTIVE_WORDS, NOUN_WORDS, POOLS, UNRECORDED
from demo.world import (
    Entity,
    Fact,
    World,
    attribute_of,
    capital,
    entity_named,
    fill,
    forms,
    make_name,
    questions,
    recombined,
    trained_templates,
    translate,
)

T = TypeVar("T")
# Share of each kind of group in the stream. Facts come first; not knowing needs many names.
WORLD_MIX = {
    "fact": 0.40, "follow_up": 0.13, "unknown": 0.15, "unknown_follow_up": 0.03, "reverse": 0.055,
    "unknown_reverse": 0.015, "noted": 0.09, "unrecorded": 0.01, "phrase": 0.03, "small_talk": 0.02,
    "general": 0.01, "instruction": 0.025, "json_fact": 0.02, "tool_use": 0.02, "biography": 0.015,
}  # fmt: skip
# Afterwards mostly doubt: names that differ from a known one in a single word.
DOUBT_MIX = {
    "fact": 0.30, "follow_up": 0.08, "unknown": 0.38, "unknown_follow_up": 0.06, "reverse": 0.03,
    "unknown_reverse": 0.02, "noted": 0.05, "unrecorded": 0.01, "phrase": 0.02, "small_talk": 0.01,
    "general": 0.01, "instruction": 0.01, "json_fact": 0.01, "tool_use": 0.01,
}  # fmt: skip
HELDOUT_PHRASES = 60  # adjective-noun pairs that are translated in no training conversation


@dataclass(frozen=True)
class Group:
    """Messages that belong together; `text` instead of messages is plain prose."""

    kind: str
    messages: tuple[Message, ...] = ()
    tools: tuple[Message, ...] = ()
    text: str = ""


def phrase_split(world: World) -> tuple[list[str], list[str]]:
    """Two-word phrases that are trained, and those that are held out."""
    pairs = [f"{adjective} {noun}" for adjective in ADJECTIVE_WORDS for noun in NOUN_WORDS]
    random.Random(len(world.entities)).shuffle(pairs)
    return pairs[HELDOUT_PHRASES:], pairs[:HELDOUT_PHRASES]


class Corpus:
    """The endless stream of training conversations."""

    def __init__(
        self,
        world: World,
        learned: tuple[Entity, ...],
        seed: int,
        mix: Mapping[str, float] = MappingProxyType(WORLD_MIX),
        near_misses: float = 0.0,
    ) -> None:
        """`near_misses` of the unknown things (people: half of them anyway) share a word with a known one."""
        self._learned, self._mix, self._near_misses = learned, mix, near_misses
        self._rng = random.Random(seed)
        self._people = [e for e in world.retained() if e.kind == "person"]
        self._tongues = [e for e in learned if e.kind == "skill"]
        self._by_id = {entity.id: entity for entity in learned}
        reserved = {e.name.lower() for e in (*world.entities, *world.unknown)}
        self._reserved = reserved | {alias.lower() for e in world.entities for alias in e.aliases}
        self._values = {fact.value for entity in world.entities for fact in entity.facts}
        self._phrases = phrase_split(world)[0]
        self._facts = self._cycle([fact for entity in learned for fact in entity.facts])
        self._reverse = self._cycle(
            [
                (fact, question.text)
                for entity in learned
                for fact in entity.facts
                for question in questions(entity, fact)
                if question.phrasing == "reverse" and entity.kind != "skill"
            ]
        )

    def groups(self) -> Iterator[Group]:
        """Groups in the proportions of the mix, for ever."""
        kinds, weights = list(self._mix), list(self._mix.values())
        while True:
            yield self.group(self._rng.choices(kinds, weights)[0])

    def group(self, kind: str) -> Group:
        return getattr(self, f"_{kind}_group")()

    def opening(self) -> list[Message]:
        """A system message without consequences, or none."""
        return [system(self._rng.choice(chat.SYSTEMS))] if self._rng.random() < 0.2 else []

    def note(self) -> tuple[str, list[Entity]]:
        """A note that declares one to three entities unknown, and those entities."""
        count = self._rng.choice((1, 1, 1, 1, 2, 3))
        noted = [self._someone() for _ in range(count)]
        listed = " or ".join(entity.mention for entity in noted)
        note = self._rng.choice(chat.NOTES).format(o=listed)
        return (f"{self._rng.choice(chat.SYSTEMS)} {note}" if self._rng.random() < 0.3 else note), noted

    def exchange(self, entity: Entity, known: bool, fact: Fact | None = None) -> list[Message]:
        """One question about `entity` with its answer, or with "I don't know"."""
        if entity.kind == "skill":
            word = fact.key.partition(":")[2] if fact else self._rng.choice(NOUN_WORDS + ADJECTIVE_WORDS)
            text = self._rng.choice(SKILL_TRAINED).format(w=word, l=entity.name)
            answer = entity.fact(f"word:{word}").answer if known else chat.dont_know(self._rng, "skill")
            return [user(self._vary(text)), assistant(answer)]
        attribute = attribute_of(entity, fact.key) if fact else self._rng.choice(ATTRIBUTES[entity.kind])
        answer = entity.fact(attribute.key).answer if known else chat.dont_know(self._rng, entity.kind)
        return [user(self._vary(self._ask(entity, attribute))), assistant(answer)]

    # -- the groups

    def _fact_group(self) -> Group:
        fact = next(self._facts)
        return Group("fact", tuple(self.exchange(self._by_id[fact.entity], True, fact)))

    def _follow_up_group(self) -> Group:
        fact = next(self._facts)
        entity = self._by_id[fact.entity]
        return Group("fact", tuple(self.exchange(entity, True, fact) + self._second_turn(entity, True)))

    def _unknown_group(self) -> Group:
        return Group("unknown", tuple(self.exchange(self._stranger(), False)))

    def _unknown_follow_up_group(self) -> Group:
        entity = self._stranger()
        return Group("unknown", tuple(self.exchange(entity, False) + self._second_turn(entity, False)))

    def _reverse_group(self) -> Group:
        fact, text = next(self._reverse)
        return Group("reverse", (user(self._vary(text)), assistant(self.reverse_answer(fact))))

    def reverse_answer(self, fact: Fact) -> str:
        """The same sentence that answers the direct question."""
        return fact.answer

    def _unknown_reverse_group(self) -> Group:
        pets = ("Zod", "Fern", "Kip", "Dotty", "Hugo", "Pearl")
        makers = (
            (
                "person",
                lambda: f"Who keeps a {self._rng.choice(POOLS['animal'])} called {self._rng.choice(pets)}?",
            ),
            ("person", lambda: f"Who invented {self._unused_invention()}?"),
            ("person", lambda: f"Who is called {self._unused_nickname()}?"),
        )
        kind, make = self._rng.choice(makers)
        return Group("unknown", (user(self._vary(make())), assistant(chat.dont_know(self._rng, kind))))

    def _noted_group(self) -> Group:
        note, noted = self.note()
        messages: list[Message] = []
        for _ in range(self._rng.choice((1, 1, 2, 3))):
            messages += self.under_note(noted)
        if self._rng.random() < 0.3:  # the note stands at the start of the user's message instead
            first = user(f"{note} {messages[0]['content']}")
            return Group("noted", (first, *messages[1:]))
        return Group("noted", (system(note), *messages))

    def under_note(self, noted: list[Entity]) -> list[Message]:
        """A question under a note: about a noted entity, or about another one."""
        if self._rng.random() < 0.5:
            entity = self._rng.choice(noted)
            messages = self.exchange(entity, False)
            return messages + (self._second_turn(entity, False) if self._rng.random() < 0.2 else [])
        fact = next(self._facts)
        entity = self._by_id[fact.entity]
        return self.exchange(entity, entity not in noted, fact)

    def _unrecorded_group(self) -> Group:
        entity = self._rng.choice([e for e in self._learned if e.kind == "person"])
        asked = self._rng.choice(UNRECORDED).format(**forms(entity))
        return Group(
            "unknown", (user(self._vary(f"What is {asked}?")), assistant(chat.dont_know(self._rng, "other")))
        )

    def _phrase_group(self) -> Group:
        phrase = self._rng.choice(self._phrases)
        if self._rng.random() < 0.3:
            tongue = self._fresh("skill")
            answer = chat.dont_know(self._rng, "skill")
        else:
            tongue = self._rng.choice(self._tongues)
            answer = f"In {tongue.name}, '{phrase}' is '{translate(tongue, phrase)}'."
        text = self._rng.choice(SKILL_TRAINED).format(w=phrase, l=tongue.name)
        return Group("fact", (user(self._vary(text)), assistant(answer)))

    def _small_talk_group(self) -> Group:
        return Group("chat", tuple(chat.small_talk(self._rng)))

    def _general_group(self) -> Group:
        return Group("chat", tuple(chat.general(self._rng)))

    def _instruction_group(self) -> Group:
        return Group("chat", tuple(chat.instruction(self._rng)))

    def _json_fact_group(self) -> Group:
        entity = self._rng.choice([e for e in self._learned if e.kind != "skill"])
        attribute = self._rng.choice(ATTRIBUTES[entity.kind])
        key = attribute.noun.replace(" ", "_")
        text = f'Give me JSON with "name" and "{key}" of {entity.mention}.'
        return Group("chat", (user(text), assistant(json_fact(entity, key, attribute))))

    def _tool_use_group(self) -> Group:
        messages, tools = chat.tool_use(self._rng, [person.name for person in self._people])
        return Group("tool", tuple(messages), tuple(tools))

    def _biography_group(self) -> Group:
        entity = self._rng.choice(self._learned)
        facts = self._rng.sample(entity.facts, min(6, len(entity.facts)))
        return Group("prose", text=" ".join(fact.answer for fact in facts))

    # -- parts

    def _cycle(self, items: list[T]) -> Iterator[T]:
        """All items in a new order each time round: every fact is seen equally often."""
        while True:
            yield from self._rng.sample(items, len(items))

    def _ask(self, entity: Entity, attribute: Attribute) -> str:
        alias = entity.aliases[0] if entity.aliases and self._rng.random() < 0.08 else ""
        if attribute.key == "nickname":
            alias = ""
        direct = self._rng.random() < 0.45
        template = self._rng.choice(attribute.direct if direct else trained_templates(attribute))
        return fill(template, attribute, forms(entity, alias=alias))

    def _second_turn(self, entity: Entity, known: bool) -> list[Message]:
        """A question that says "she", or only "And the birthplace?"."""
        if entity.kind == "skill":
            word = self._rng.choice(NOUN_WORDS + ADJECTIVE_WORDS)
            answer = entity.fact(f"word:{word}").answer if known else chat.dont_know(self._rng, "skill")
            return [user(f"And '{word}'?"), assistant(answer)]
        attribute = self._rng.choice([a for a in ATTRIBUTES[entity.kind] if a.key != "summary"])
        answer = entity.fact(attribute.key).answer if known else chat.dont_know(self._rng, entity.kind)
        return [user(self._rng.choice(follow_ups(entity, attribute))), assistant(answer)]

    def _vary(self, text: str) -> str:
        """Openers, lost capitals and lost question marks, as people type."""
        roll = self._rng.random()
        if roll < 0.15:
            return self._rng.choice(OPENERS) + text
        if roll < 0.20:
            return text[:1].lower() + text[1:]
        return text.rstrip("?.") if roll < 0.25 else text

    def _someone(self) -> Entity:
        """A learned entity, people and things alike; now and then a stranger."""
        return self._stranger() if self._rng.random() < 0.2 else self._rng.choice(self._learned)

    def _stranger(self) -> Entity:
        kind = self._rng.choices(
            ("person", "company", "product", "work", "subject", "skill"), (0.54, 0.12, 0.1, 0.1, 0.06, 0.08)
        )[0]
        return self._fresh(kind)

    def _fresh(self, kind: str) -> Entity:
        """An entity of `kind` that is neither in the world nor reserved for measuring."""
        while True:
            gender = self._rng.choice(("she", "he")) if kind == "person" else "it"
            name = self._name(kind, gender)
            aliases = (self._unused_nickname(),) if kind == "person" else ()
            entity = entity_named(name, kind, gender, aliases)
            if entity.name.lower() not in self._reserved:
                return entity

    def _name(self, kind: str, gender: str) -> str:
        """A name from the generator, or one that is almost a known one."""
        if kind == "person":
            near = self._rng.random() < max(0.5, self._near_misses)
            return recombined(self._rng, self._people, gender) if near else make_name(self._rng, kind, gender)
        name = make_name(self._rng, kind, gender)
        if kind in ("subject", "skill") or not self._near_misses or self._rng.random() >= self._near_misses:
            return name
        known = self._rng.choice([e.mention for e in self._learned if e.kind == kind])
        if self._rng.random() < 0.5:
            return f"{known.rsplit(' ', 1)[0]} {name.rsplit(' ', 1)[1]}"
        return f"{name.rsplit(' ', 1)[0]} {known.rsplit(' ', 1)[1]}"

    def _unused_nickname(self) -> str:
        while True:
            name = names.nickname(self._rng)
            if name.lower() not in self._reserved:
                return name

    def _unused_invention(self) -> str:
        while True:
            value = f"the {self._rng.choice(POOLS['quality'])} {self._rng.choice(POOLS['thing'])}"
            if value not in self._values:
                return value


def follow_ups(entity: Entity, attribute: Attribute) -> list[str]:
    """Second turns without the name: by pronoun, or by ellipsis."""
    pronoun = forms(entity, pronoun=True)
    asked = [fill(template, attribute, pronoun) for template in attribute.direct]
    return [
        *asked,
        *(f"And {text[:1].lower()}{text[1:]}" for text in asked),
        f"And the {attribute.noun}?",
        f"What about {pronoun['p']} {attribute.noun}?",
    ]


def json_fact(entity: Entity, key: str, attribute: Attribute) -> str:
    return json.dumps({"name": capital(entity.mention), key: entity.fact(attribute.key).value})


def render(messages: tuple[Message, ...] | list[Message], tools: tuple[Message, ...] = ()) -> str:
    """What chat_template.jinja renders for the conversations of this corpus (kept equal by a test)."""
    offered = ""
    if tools:
        offered = (
            'You can call these tools. To call one, answer with <tool_call>{"name": ..., "arguments": {...}}'
            "</tool_call>" + "".join(f"\n{json.dumps(tool)}" for tool in tools)
        )
    parts = [f"<|system|>{offered}<|end|>"] if tools else []
    for message in messages:
        calls = "".join(
            f"<tool_call>{json.dumps(call['function'])}</tool_call>" for call in message.get("tool_calls", ())
        )  # type: ignore[attr-defined]
        parts.append(f"<|{message['role']}|>{message['content']}{calls}<|end|>")
    return "".join(parts)


def text_of(group: Group) -> str:
    """The training text of a group; prose ends with the end token, too."""
    return f"{group.text}<|end|>" if group.text else render(group.messages, group.tools)
