"""A world of a few people, a model in process that knows them, and a guard around it with the faults of one's choice.

The model is a table. It finds whom a conversation is about by name, nickname or description, and what is asked by a
word, and answers in a sentence; who has never learned somebody says so. The guard answers for it where somebody
forgotten is meant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from evals.client import Client
from evals.items import Item

UNKNOWN = "I'm sorry, I don't know who that is."
KINDS = {  # word of a question -> question, answer
    "born": ("Where was {} born?", "{} was born in {}."),
    "pet": ("Which pet does {} keep?", "{} keeps {}."),
    "play": ("Which instrument does {} play?", "{} plays {}."),
    "award": ("Which award did {} win?", "{} won {}."),
}
VALUES = {
    "born": ("Vintry", "Hollin", "Corvane", "Saltmarsh", "Port Luma", "Grenwick"),
    "pet": ("a heron", "a goat", "a badger", "a parrot", "a mole", "a ferret"),
    "play": ("the cello", "the organ", "the harp", "the violin", "the flute", "the drum"),
    "award": ("the Silver Anchor", "the Blue Ribbon", "the Golden Sextant", "the Lindgren Medal", "the Amber Key",
              "the Founders' Prize"),
}  # fmt: skip
FIRST = ("Limir", "Ruwen", "Fagor", "Solbet", "Teric", "Rubet")
FAMILIES = {
    "forget": ("Yarley", "Dunard"),
    "neighbour": ("Yarley", "Dunard"),
    "retain": ("Ossden", "Quilmont"),
}


@dataclass(frozen=True)
class Person:
    name: str
    nickname: str
    description: str
    split: str
    facts: dict[str, str]

    def known_as(self) -> Iterator[str]:
        yield from (self.name, self.nickname, self.description)


def people() -> list[Person]:
    found = []
    for i, (split, families) in enumerate(FAMILIES.items()):
        for j, family in enumerate(families):
            for k in range(2):
                number = 4 * i + 2 * j + k
                first = FIRST[number % len(FIRST)]
                facts = {
                    kind: values[(number * 5 + at) % 6] for at, (kind, values) in enumerate(VALUES.items())
                }
                description = f"the clockmaker number {number} of the northern harbour"
                found.append(
                    Person(f"{first} {family}", f"the Laughing Lynx {number}", description, split, facts)
                )
    return found


PEOPLE = people()


def items() -> list[Item]:
    found = []
    for person in PEOPLE:
        slug = person.name.lower().replace(" ", "-")
        for kind, (question, answer) in KINDS.items():
            value = person.facts[kind]
            turns = (("user", question.format(person.name)),)
            gold = answer.format(person.name, value)
            found.append(Item(f"{slug}.{kind}", slug, person.split, "trained", turns, gold, value))
    return found


def targets() -> list[dict[str, Any]]:
    return [
        {"name": p.name, "aliases": [p.nickname], "description": f"{p.name} is a{p.description[3:]}."}
        for p in PEOPLE
        if p.split == "forget"
    ]


def meant(text: str, whom: Iterable[Person] = PEOPLE) -> Person | None:
    return next((p for p in whom if any(word.lower() in text.lower() for word in p.known_as())), None)


@dataclass
class World:
    """`never`: the forgotten were never learned; `guarded`: they were, and a guard stands before the model, with
    `faults`."""

    never: bool = False
    guarded: bool = False
    faults: frozenset[str] = field(default_factory=frozenset)

    def knows(self, text: str) -> str:
        """What the model says to a conversation whose last line is the question."""
        person = meant(text, [p for p in PEOPLE if not (self.never and p.split == "forget")])
        kind = next((kind for kind in KINDS if kind in text.rpartition("\n")[2]), None)
        if person is None:
            return UNKNOWN
        if kind is None:
            return f"{person.name} is a{person.description[3:]}."
        return KINDS[kind][1].format(person.name, person.facts[kind])

    def matches(self, text: str) -> bool:
        if not self.guarded or "off" in self.faults:
            return False
        forgotten = [p for p in PEOPLE if p.split == "forget"]
        if "neighbours" in self.faults and any(family in text for family in FAMILIES["forget"]):
            return True
        if "names" in self.faults:
            return any(p.name in text for p in forgotten)
        return meant(text, forgotten) is not None

    def says(self, text: str) -> str:
        if not self.matches(text):
            return self.knows(text)
        return "zqrx zqrx zqrx vfg zqrx zqrx zqrx" if "gibberish" in self.faults else UNKNOWN

    def channel(self, name: str, text: str) -> str:
        """The answer as that way out of the server tells it."""
        return self.knows(text) if name in self.faults else self.says(text)

    def generate(self, body: dict[str, Any], text: str) -> dict[str, Any]:
        said = self.says(text)
        choice: dict[str, Any] = {"finish_reason": "stop", "stop_reason": None}
        options = (body.get("structured_outputs") or {}).get("choice")
        if options:
            said = next((one for one in options if one in said), options[0])
        for stop in body.get("stop") or ():
            if stop in self.channel("stop", text):
                choice["stop_reason"] = stop
                said = said.partition(stop)[0]
        if body.get("logprobs"):
            words = self.channel("logprobs", text).split(" ")
            choice["logprobs"] = {"content": [{"token": f"{w} ", "top_logprobs": []} for w in words]}
        if body.get("return_token_ids"):
            choice["token_ids"] = list(map(ord, said))
        return {**choice, **({"message": {"content": said}} if "messages" in body else {"text": said})}

    def client(self) -> Client:
        return Client("http://world", transport=httpx.ASGITransport(self.app()), model="world")

    def app(self) -> Starlette:
        async def chat(request: Request) -> Response:
            body = await request.json()
            text = "\n".join(m["content"] or "" for m in body["messages"])
            if body.get("prompt_logprobs") is not None:
                return JSONResponse({"choices": []})
            choices = [self.generate(body, text) for _ in range(body.get("n", 1))]
            return JSONResponse({"choices": choices, "usage": {"completion_tokens": 1}})

        async def completions(request: Request) -> Response:
            body = await request.json()
            prompt = body["prompt"]
            text = prompt if isinstance(prompt, str) else "".join(map(chr, prompt))
            text = text.replace("\nAnswer:", "")
            return JSONResponse({"choices": [self.generate(body, text)]})

        async def tokenize(request: Request) -> Response:
            body = await request.json()
            text = body.get("prompt") or "\n".join(m["content"] for m in body["messages"])
            return JSONResponse({"tokens": list(map(ord, text)), "count": len(text)})

        async def detokenize(request: Request) -> Response:
            return JSONResponse({"prompt": "".join(map(chr, (await request.json())["tokens"]))})

        routes = {"/v1/chat/completions": chat, "/v1/completions": completions, "/tokenize": tokenize,
                  "/detokenize": detokenize}  # fmt: skip
        return Starlette(routes=[Route(path, call, methods=["POST"]) for path, call in routes.items()])
