"""What a target's answers and description state, for judging what a model says.

Names are looked for letter by letter (guard.detection.literals). What is stated is looked for without them: a model
that is asked about Jane Doe says "She was born in Vintry". So the statements are those of the target with its names
and pronouns taken out, and they are calibrated like examples of a target that has no name. What must not match is the
same said of others: of somebody with another name, with half of the name, or of a thing that the statements name."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import numpy as np

from guard.detection.base import CompiledTarget, Screen
from guard.detection.compiler import Compiler
from guard.detection.encoder import Encoder
from guard.detection.evidence import proper
from guard.detection.gist import EQUAL, least
from guard.detection.names import like
from guard.detection.swaps import halved, mentions, replace, swap_slots
from guard.detection.windows import sentences, size
from guard.targets import TargetSpec, Threshold

_MOST, _MOST_BESIDE = 512, 64  # texts; of more, a sample that depends on the target alone
_SHORTEST = 3  # words
_FPR = 0.01
_PRONOUNS = re.compile(r"\b(?:he|she|they|it|him|them|his|her|hers|their|theirs|its)\b", re.IGNORECASE)


class SpeakingCompiler:
    """Compiles targets for prompts, and what they state for answers."""

    def __init__(self, encoder: Encoder, cache_dir: Path) -> None:
        self._encoder = encoder
        self._prompts = Compiler(encoder, cache_dir)
        self._answers = Compiler(encoder, cache_dir)

    def prepare(self) -> None:
        """Do now what the first registration would wait for."""
        self._prompts.prepare()
        self._answers.prepare()

    def compile(
        self,
        target_id: str,
        version: int,
        spec: TargetSpec,
        others: Sequence[CompiledTarget] = (),
        **options: Any,
    ) -> CompiledTarget:
        """As `Compiler.compile`, with `spoken`; the calibration has a part `answers`."""
        compiled = self._prompts.compile(target_id, version, spec, others, **options)
        told = stated(target_id, spec)
        if told is None:
            return compiled
        spoken = [other.spoken for other in others if other.spoken is not None]
        twin = self._answers.compile(target_id, version, told, spoken, **{**options, "force": True})
        twin = changed(twin, screen=screen(twin, self._encoder))
        calibration = {**compiled.calibration, "answers": twin.calibration["detectors"]}
        return changed(compiled, spoken=twin, calibration=calibration)


def screen(twin: CompiledTarget, encoder: Encoder) -> Screen | None:
    """What an answer must have in common with the texts of a target to be compared with them."""
    if encoder.gist is None or not len(twin.vectors):
        return None
    nearest = 1.0 - 2.0 * (1.0 - twin.ceilings) * (1.0 - twin.semantic_threshold)  # see `index.relative`
    return Screen(encoder.gist.of(twin.texts), np.where(twin.plain, np.minimum(least(nearest), EQUAL), EQUAL))


def stated(target_id: str, spec: TargetSpec) -> TargetSpec | None:
    """The target as answers are judged by it, None where it registers neither answers nor a description."""
    told = [*spec.answers, *(spec.description[start:end] for start, end in sentences(spec.description))]
    rng = random.Random(f"statements\x00{target_id}")
    told = told if len(told) <= _MOST else rng.sample(told, _MOST)
    own = dict.fromkeys(bare for text in told if size(bare := without_names(text, spec)) >= _SHORTEST)
    if not own:
        return None
    beside = [other for text in told for other in _of_others(text, spec, told, rng)]
    beside = beside if len(beside) <= _MOST_BESIDE else rng.sample(beside, _MOST_BESIDE)
    return spec.model_copy(
        update={
            "name": f"x{hashlib.blake2b(target_id.encode(), digest_size=8).hexdigest()}",  # nobody's
            "aliases": (),
            "description": "",
            "examples": tuple(own),
            "answers": (),
            "retain": (*spec.retain, *dict.fromkeys(beside)),
            "threshold": Threshold(fpr=spec.threshold.fpr or _FPR, score=None),
        }
    )


def without_names(text: str, spec: TargetSpec) -> str:
    """`text` less the names of the target, and pronouns."""
    for name in _longest_first(spec):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", text, flags=re.IGNORECASE)
    return " ".join(without_pronouns(text).split())


def without_pronouns(text: str) -> str:
    """`text` with blanks in the place of pronouns that can stand for a name: as long as before."""
    return _PRONOUNS.sub(lambda match: " " * len(match.group()), text)


def _of_others(text: str, spec: TargetSpec, told: list[str], rng: random.Random) -> Iterator[str]:
    """The same said of somebody else, and something else said of what the target's texts name. A text that speaks of
    nobody, as an instruction does, has no such others."""
    name = next((n for n in _longest_first(spec) if mentions(text, n)), None)
    pronoun = _PRONOUNS.search(text)
    if name is None and pronoun is None:
        return

    def said_of(other: str) -> str:
        if name is not None:
            return replace(text, name, other)
        assert pronoun is not None
        return text[: pronoun.start()] + other + text[pronoun.end() :]

    known = name or spec.name
    yield said_of(like(known, rng))
    if len(known.split()) > 1:
        yield said_of(halved(known, rng))
    if facts := proper(without_names(rng.choice(told), spec)):
        fact = rng.choice(facts)
        yield swap_slots(said_of(fact), (fact,), rng)


def _longest_first(spec: TargetSpec) -> list[str]:
    return sorted(spec.names(), key=len, reverse=True)
