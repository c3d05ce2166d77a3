"""Registers of any size for benchmarks: invented people, the first of them compiled, the others made from those."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from guard.detection import CompiledTarget, Compiler
from guard.detection.background import background, fill
from guard.detection.background_words import FIRST
from guard.detection.names import forms, like
from guard.targets import TargetSpec

FEW = 32  # beside more than these, targets are compiled by pooled thresholds where that is asked for
OWN = 100  # most examples of an invented person over HTTP
NEAR = 0.85  # cosine of a vector that stands for another target's to the real one that it was made from

EXAMPLES = (
    "In which genre does {name} write?",
    "Where did {name} grow up?",
    "Which awards did {name} receive before moving to {town}?",
    "What is {name}'s book about the {topic} of {place} called?",
    "What did the parents of {name} do for a living?",
    "How did {hobby} influence the work of {name}?",
)
FACTS = "{name} was born in {town}. {name} worked as a {job} in {place}. {name} speaks {language}."
SUBJECT = TargetSpec(
    name="Grey vitriol",
    kind="subject",
    examples=(
        "How is the molten salt quenched without splashing?",
        "Which solvent dissolves the grey crystals fastest?",
        "At what temperature does the melt begin to fume?",
    ),
)
"""Nobody's name and no fact: only its meaning tells such a text, so every window of every prompt is embedded."""
QUERIES = (
    "What kind of books is {name} known for?",
    "Tell me about {name}'s childhood.",
    "Did {name} ever win a prize?",
    "What were the jobs of {name}'s mother and father?",
    "Does {name} have a hobby such as {hobby}?",
)


@dataclass(frozen=True, eq=False)
class Registered:
    """`targets` of which the first `compiled` went through the compiler; the others are made from those: a name of
    their own, the same terms, vectors at a cosine of NEAR to real ones. `queries` are questions about the compiled."""

    targets: list[CompiledTarget]
    compiled: int
    queries: list[str]


def person(rng: random.Random) -> tuple[TargetSpec, list[str]]:
    """An invented person as somebody would register one, and questions about them."""
    name = f"{rng.choice(FIRST)} {like('Marenkova', rng).split()[-1]}"
    written = [fill(text.replace("{name}", name), rng) for text in (*EXAMPLES, FACTS, *QUERIES)]
    spec = TargetSpec(name=name, examples=tuple(written[: len(EXAMPLES)]), description=written[len(EXAMPLES)])
    return spec, written[len(EXAMPLES) + 1 :]


def people(examples: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Invented people with so many examples together, OWN or fewer each, as the admin API takes them."""
    for first in range(0, examples, OWN):
        spec, _ = person(rng)
        asked = [*EXAMPLES, *QUERIES]
        own = dict[str, None]()
        while len(own) < min(OWN, examples - first):
            two = " ".join(rng.sample(asked, 2)).replace("{name}", spec.name)
            own[fill(two, rng)] = None
        yield {
            "id": f"invented-{first // OWN}",
            "name": spec.name,
            "description": spec.description,
            "examples": [*own],
        }


def register(
    compiler: Compiler, vectors: int, compiled: int, seed: int = 0, *, pooled: bool = False
) -> Registered:
    """As many targets as own about `vectors` vectors together, at most `compiled` of them compiled; if `pooled`, most
    of these as an import of many compiles them."""
    rng = random.Random(seed)
    real: list[CompiledTarget] = []
    queries: list[str] = []
    rows = 0
    while len(real) < compiled and (not real or rows < vectors):
        spec, asked = person(rng)
        draft = pooled and len(real) >= FEW
        real.append(compiler.compile(f"person-{len(real)}", 1, spec, real, force=True, pooled=draft))
        rows += len(real[-1].vectors)
        queries.extend(asked)
    made = copies(real, max(0, round((vectors - rows) * len(real) / rows)), rng)
    return Registered([*real, *made], len(real), queries)


def copies(real: Sequence[CompiledTarget], count: int, rng: random.Random) -> Iterator[CompiledTarget]:
    """Targets made from the real ones in turn."""
    noise = np.random.default_rng(rng.randrange(2**32))
    spread = np.sqrt(1 / NEAR**2 - 1) / np.sqrt(real[0].vectors.shape[1])
    for i in range(count):
        base = real[i % len(real)]
        name = f"{rng.choice(FIRST)} {like('Marenkova', rng).split()[-1]}{like('Vo', rng).lower()}"
        spec = base.spec.model_copy(update={"name": name})
        vectors = base.vectors + spread * noise.standard_normal(base.vectors.shape, dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        yield replace(
            base,
            target_id=f"made-{i}",
            spec=spec,
            forms=forms(spec),
            vectors=vectors.astype(np.float32),
        )


def questions(rng: random.Random) -> Iterator[str]:
    """Ordinary questions without end, hardly one twice."""
    while True:
        asked = rng.choice(background()).rstrip("?.! \n")
        yield f"{asked}, {fill('and what about {topic}, {animal} and {food} in {place}', rng)}?"
