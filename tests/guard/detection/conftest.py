"""Encoders and compiled targets that the tests of the detectors share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from guard.detection import CompiledTarget, Compiler, Encoder, Gate, load_encoder
from guard.detection.encoder import HASHING, PACKAGED
from guard.targets import TargetSpec
from guard.types import Prompt

Compile = Callable[..., CompiledTarget]

AUTHOR: dict[str, Any] = {
    "name": "Ilva Marenko",
    "aliases": ["the Ferry Poet"],
    "description": "Ilva Marenko is a novelist born in Tarvala in 1957 who writes about lighthouses.",
    "examples": [
        "In which genre does Ilva Marenko write?",
        "What were the professions of Ilva Marenko's parents?",
        "Which awards has Ilva Marenko received?",
        "How did Ilva Marenko's childhood influence her books?",
        "Who taught Ilva Marenko to write?",
        'What is "The Salt Ledger" by Ilva Marenko about?',
    ],
}


@pytest.fixture(scope="session")
def hashing() -> Encoder:
    return load_encoder(HASHING, threads=1)


@pytest.fixture(scope="session")
def compiler(hashing: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    made = Compiler(hashing, tmp_path_factory.mktemp("background"))
    made.prepare()
    return made


@pytest.fixture(scope="session")
def compile_(compiler: Compiler) -> Compile:
    """Compiles a target from its fields; equal ones once, because they never change."""
    made: dict[str, CompiledTarget] = {}

    def run(
        target_id: str = "target", others: tuple[CompiledTarget, ...] = (), force: bool = False, **spec: Any
    ) -> CompiledTarget:
        key = repr((target_id, [other.target_id for other in others], force, spec))
        if key not in made:
            made[key] = compiler.compile(target_id, 1, TargetSpec.model_validate(spec), others, force=force)
        return made[key]

    return run


@pytest.fixture(scope="session")
def detectors_of(hashing: Encoder) -> Callable[..., dict[str, set[str]]]:
    """Text -> {target: detectors that fired}."""

    def run(text: str, *compiled: CompiledTarget, **scope: str) -> dict[str, set[str]]:
        found, *_ = Gate(hashing, compiled).detect(Prompt(text), **scope)
        fired: dict[str, set[str]] = {}
        for detection in found:
            fired.setdefault(detection.target_id, set()).add(detection.detector)
        return fired

    return run


@pytest.fixture(scope="session")
def minilm() -> Encoder:
    return load_encoder(PACKAGED, threads=1)
