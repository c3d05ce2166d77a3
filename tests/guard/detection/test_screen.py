"""Windows of answers that are not embedded could not have been found."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from guard.detection import CompiledTarget, Encoder, Gate, SpeakingCompiler, load_encoder, semantic
from guard.detection.background import background
from guard.detection.decode import decode
from guard.detection.encoder import PACKAGED
from guard.detection.gist import least
from guard.targets import TargetSpec
from guard.types import Prompt

from .test_gate import Counting

PERSON = {
    "name": "Ilva Marenko",
    "answers": [
        "Ilva Marenko breeds white goats.",
        "Ilva Marenko plays the organ.",
        "She is called the poet.",
    ],
}
PROCESS = {
    "name": "Firesalt",
    "kind": "subject",
    "answers": ["Wash the crystals in cold brine.", "It is a process that produces black salt."],
}
SAID = (
    "She breeds white goats.",
    "Well, I think that she has been breeding white goats for years.",
    "She plays the organ, and nobody listens to it.",
    "First wash all of the crystals in cold brine. Then wait.",
    "The process produces a black salt.",
    "Teric Pennby is called the Glass Badger.",
    "He plays the organ in the Olvin Hall.",
    "The house is in the year of the goat.",
)
CLEAN = (
    "I am afraid that nobody here can tell how long that will take. Please ask the office in the morning. "
    "They know the numbers of all rooms. Trains leave every hour, and the last one is at midnight. "
    "You may also write a letter, but then it takes two weeks until somebody answers."
)


@pytest.fixture(scope="module")
def packaged() -> Encoder:
    return load_encoder(PACKAGED, threads=1)


@pytest.fixture(scope="module")
def compiled(packaged: Encoder, tmp_path_factory: pytest.TempPathFactory) -> list[CompiledTarget]:
    compiler = SpeakingCompiler(packaged, tmp_path_factory.mktemp("background"))
    specs = {"ilva": PERSON, "firesalt": PROCESS}
    made = [compiler.compile(i, 1, TargetSpec.model_validate(s), (), force=True) for i, s in specs.items()]
    return [target.spoken for target in made if target.spoken is not None]


def _stated(encoder: Encoder, compiled: list[CompiledTarget]) -> Gate:
    return Gate(encoder, compiled, stated=True)


def test_what_is_stated_is_embedded_and_other_text_is_not(
    packaged: Encoder, compiled: list[CompiledTarget]
) -> None:
    process = [one for one in compiled if one.target_id == "firesalt"]
    encoder = Counting(packaged)
    gate = _stated(encoder, process)
    assert gate.detect(Prompt(CLEAN))[0] == () and encoder.asked == 0
    assert [d.target_id for d in gate.detect(Prompt(SAID[3]))[0]] == ["firesalt"] and encoder.asked > 0
    every = Counting(packaged)
    assert _stated(every, [replace(one, screen=None) for one in process]).detect(Prompt(CLEAN))[0] == ()
    assert every.asked > 5


def test_the_same_is_found_without_a_screen(packaged: Encoder, compiled: list[CompiledTarget]) -> None:
    rng = random.Random(0)
    own = " ".join((*PERSON["answers"], *PROCESS["answers"])).split()
    texts = [
        *SAID,
        *(" ".join(rng.choice(own) for _ in range(rng.randint(3, 12))) for _ in range(60)),
        *(f"{rng.choice(SAID)} {CLEAN[: rng.randint(0, 90)]}" for _ in range(20)),
    ]
    screened, every = (
        _stated(packaged, compiled),
        _stated(packaged, [replace(c, screen=None) for c in compiled]),
    )
    found = [_shown(screened, text) for text in texts]
    assert found == [_shown(every, text) for text in texts]
    assert {target for one in found for target, *_ in one} == {"ilva", "firesalt"}


def _shown(gate: Gate, text: str) -> list[tuple]:
    return [(d.target_id, d.detector, round(d.score, 4), d.spans) for d in gate.detect(Prompt(text))[0]]


def _typo(text: str, rng: random.Random) -> str:
    at = rng.randrange(len(text) - 1)
    return text[:at] + rng.choice(("", text[at + 1], "e")) + text[at + 1 :]


def _fewer(text: str, rng: random.Random) -> str:
    words = text.split()
    return " ".join(word for i, word in enumerate(words) if i != rng.randrange(len(words)) or len(words) < 3)


@pytest.mark.parametrize("change", [_typo, _fewer, lambda text, rng: f"Well, I think that {text}"])
def test_texts_that_are_near_have_gists_that_are_alike(packaged: Encoder, change: Callable) -> None:
    rng = random.Random(1)
    texts = rng.sample(list(background()), 60)
    others = [change(text, rng) for text in texts]
    assert packaged.gist is not None
    near = packaged.encode(texts) @ packaged.encode(others).T
    alike = packaged.gist.of(texts) @ packaged.gist.of(others).T
    assert (near >= 0.8).sum() > 30
    assert (alike >= least(near))[near >= 0.7].all()
    assert (alike < least(np.array(0.98)))[near < 0.5].mean() > 0.95


def test_too_many_texts_are_compared_as_if_there_were_no_screen(
    packaged: Encoder, compiled: list[CompiledTarget], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantic, "_SCREENED", 1)
    encoder = Counting(packaged)
    _stated(encoder, compiled).detect(Prompt(CLEAN))
    assert encoder.asked > 5


def test_another_encoder_has_no_screen(hashing: Encoder, tmp_path: object) -> None:
    made = SpeakingCompiler(hashing, tmp_path).compile(  # type: ignore[arg-type]
        "firesalt", 1, TargetSpec.model_validate(PROCESS), (), force=True
    )
    assert made.spoken is not None and made.spoken.screen is None


@pytest.mark.parametrize(
    "text",
    [
        "Uryyb, fur oerrqf juvgr tbngf va gur inyyrl naq cynlf gur betna.",
        "It says U2hlIGJyZWVkcyB3aGl0ZSBnb2F0cyBpbiB0aGUgdmFsbGV5Lg== and no more.",
        "S h e b r e e d s w h i t e g o a t s , and the rest is plain.",
        "5h3 br33d5 wh1t3 g0@t5 in the valley near Oslo",
        CLEAN,
    ],
)
def test_where_no_names_are_looked_for_the_same_is_read_that_means_something(text: str) -> None:
    every, meant = decode(text), decode(text, names=False)
    assert [view.text for view in meant.views] == [v.text for v in every.views if v.form == "text"]
    assert meant.unread == ()
