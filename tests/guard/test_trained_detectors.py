"""Artifacts of detectors: named by targets, read in this process alone, and asked beside the other detectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from guard import artifacts, detection
from guard.detection import Compiler, Gates, read_head
from guard.detection.encoder import hashing_encoder
from guard.detection.gate import load_detector
from guard.detection.heads import findings, with_head
from guard.errors import ArtifactError
from guard.library import Library
from guard.register import Register
from guard.targets import TargetSpec
from guard.types import Prompt
from tests.guard.artifact_fakes import FakeWorkers, make_artifact, methods, standing  # noqa: F401
from tests.guard.register_fakes import open_store

pytestmark = pytest.mark.usefixtures("methods")

ENCODER = hashing_encoder()
ABSENT = "0" * 64
JANE = {"name": "Jane Doe", "examples": ["who is Jane Doe", "where does Jane Doe work as a singer"]}
OTHERWISE = "the lighthouse at the end of the road"
"""A prompt that only the word that was trained for tells."""


@dataclass(frozen=True, eq=False)
class WordHead:
    """Sure of windows that hold a word."""

    tells = False

    word: str
    threshold: float = 0.5

    @classmethod
    def read(cls, artifact, encoder):
        if "word" not in artifact.manifest.facts:
            raise ArtifactError("The artifact holds no word.")
        return cls(artifact.manifest.facts["word"])

    def scores(self, reading, asked):
        return np.array([float(self.word in reading.windows[i][1].text) for i in asked])

    def shown(self, score):
        return 0.9 * score


class Word:
    head = WordHead

    def __init__(self, compiled, before=None):
        self._heads = with_head(compiled, WordHead)

    def detect(self, reading):
        yield from findings(self._heads, reading)


@pytest.fixture(autouse=True)
def word_detector(monkeypatch):
    monkeypatch.setitem(detection.DETECTORS, "word", f"{__name__}:Word")


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    made = Compiler(ENCODER, tmp_path_factory.mktemp("cache"))
    made.prepare()
    return made


@pytest.fixture
def workers():
    return FakeWorkers()


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path)
    yield store
    store.close()


def register_on(store, folder, compiler) -> Register:
    library = Library(artifacts.ArtifactStore(folder), lambda artifact: read_head(artifact, ENCODER))
    return Register(store, library, compiler.compile, Gates(ENCODER))


@pytest.fixture
async def register(store, tmp_path, compiler, workers):
    register = register_on(store, tmp_path / "artifacts", compiler)
    await register.load()
    await register.attach(workers)
    yield register
    register.close()


def add(register, folder, method="word", encoder=ENCODER.digest, **facts) -> str:
    """A detector's artifact in the register's store, not loaded."""
    artifacts.write(folder, method, encoder, facts=facts)
    return register._library.store.add(folder).digest


def detectors(register, text: str) -> dict[str, float]:
    """Detectors that find a target in the text, with the score that they show."""
    found, *_ = register.snapshot.gate.detect(Prompt(text), tenant=None, model=None)
    return {one.detector: one.score for one in found}


async def test_a_target_names_a_trained_detector_and_only_it_finds_a_prompt(register, workers, tmp_path):
    await register.put("jane", JANE)
    assert detectors(register, OTHERWISE) == {}
    digest = add(register, tmp_path / "made", word="lighthouse")
    view, _ = await register.put("jane", {**JANE, "detectors": [digest]})
    assert (view["state"], view["detectors"], standing(view)) == (
        "active",
        [digest],
        [("word", digest, "ready")],
    )
    assert detectors(register, OTHERWISE) == {"word": 0.9}
    assert "lexical" in detectors(register, "who is Jane Doe")
    await register.put("jane", {**JANE, "detectors": []})
    assert detectors(register, OTHERWISE) == {}
    assert workers.log == []


async def test_it_acts_for_the_target_that_names_it_alone(register, tmp_path):
    digest = add(register, tmp_path / "made", word="lighthouse")
    await register.put("jane", {**JANE, "detectors": [digest]})
    await register.put("john", {"name": "John Roe"})
    found, *_ = register.snapshot.gate.detect(Prompt(OTHERWISE), tenant=None, model=None)
    assert [one.target_id for one in found] == ["jane"]


async def test_a_window_that_names_somebody_else_is_not_the_target_s(register, tmp_path):
    digest = add(register, tmp_path / "made", word="lighthouse")
    await register.put("jane", {**JANE, "detectors": [digest]})
    assert detectors(register, "the lighthouse where Ottokar Vessel lives") == {}
    await register.put("light", {"name": "Light keeping", "kind": "skill", "detectors": [digest]})
    found, *_ = register.snapshot.gate.detect(
        Prompt("the lighthouse where Ottokar Vessel lives"), tenant=None, model=None
    )
    assert [one.target_id for one in found] == ["light"]


async def test_a_missing_one_is_waited_for_and_the_others_act(register, tmp_path):
    digest = add(register, tmp_path / "made", word="lighthouse")
    view, _ = await register.put("jane", {**JANE, "detectors": [ABSENT, digest]})
    assert (view["state"], standing(view)) == (
        "pending",
        [(None, ABSENT, "pending"), ("word", digest, "ready")],
    )
    assert view["artifacts"][0]["reason"].startswith(f"There is no artifact {ABSENT[:16]} here")
    assert detectors(register, OTHERWISE) == {"word": 0.9}
    await register.remove_artifact(digest)
    assert detectors(register, OTHERWISE) == {} and "lexical" in detectors(register, "who is Jane Doe")
    register._library.store.add(tmp_path / "made")
    await register.load_artifact(digest)
    assert detectors(register, OTHERWISE) == {"word": 0.9}


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (
            {"word": "x", "encoder": "ab" * 32},
            f"was made for the encoder {'ab' * 8}, and the one here is {ENCODER.digest[:16]}; train it again.",
        ),
        ({}, "The artifact holds no word."),
        ({"method": "lexical"}, "The detector lexical is made at registration and takes no artifact."),
    ],
)
async def test_what_is_not_for_this_encoder_or_detector_is_refused_with_a_sentence(
    register, workers, tmp_path, made, why
):
    digest = add(register, tmp_path / "made", **made)
    view, _ = await register.put("jane", {**JANE, "detectors": [digest]})
    assert view["state"] == "pending" and view["artifacts"][0]["reason"].endswith(why)
    with pytest.raises(ArtifactError, match=why[-20:]):
        await register.load_artifact(digest)
    (row,) = await register.artifacts()
    assert (row["digest"], row["state"]) == (digest, "refused") and row["error"].endswith(why)


async def test_an_artifact_of_a_method_is_no_detector(register, workers, tmp_path):
    make_artifact(tmp_path / "made", "tuned")
    digest = register._library.store.add(tmp_path / "made").digest
    view, _ = await register.put("jane", {**JANE, "detectors": [digest]})
    assert view["artifacts"][0]["reason"].endswith("was made for tuned, which is no detector.")
    assert workers.log == []


async def test_after_a_start_it_acts_before_the_engine_runs_and_no_worker_gets_it(
    store, tmp_path, compiler, workers
):
    first = register_on(store, tmp_path / "artifacts", compiler)
    digest = add(first, tmp_path / "made", word="lighthouse")
    unused = add(first, tmp_path / "unused", word="harbour")
    await first.put("jane", {**JANE, "detectors": [digest]})
    first.close()
    again = register_on(store, tmp_path / "artifacts", compiler)
    await again.load()
    assert detectors(again, OTHERWISE) == {"word": 0.9}
    await again.attach(workers)
    states = {row["digest"]: row["state"] for row in await again.artifacts()}
    assert states == {digest: "loaded", unused: "stored"}
    assert again._library.loaded() == set()
    await again.remove_artifact(unused)
    assert workers.log == []
    again.close()


async def test_a_purge_erases_it(register, tmp_path):
    digest = add(register, tmp_path / "made", word="lighthouse")
    await register.put("jane", {**JANE, "detectors": [digest]})
    await register.delete("jane", purge=True)
    assert register._library.store.digests() == []


async def test_a_tenant_sees_those_of_its_targets(register, tmp_path):
    own = add(register, tmp_path / "own", word="lighthouse")
    add(register, tmp_path / "other", word="harbour")
    await register.put("jane", {**JANE, "detectors": [own], "scope": {"tenants": ["acme"]}})
    assert [row["digest"] for row in await register.artifacts("acme")] == [own]


def test_a_target_without_trained_detectors_is_judged_as_before(compiler, monkeypatch):
    compiled = compiler.compile("jane", 1, TargetSpec.model_validate(JANE), force=True)
    texts = ["who is Jane Doe", OTHERWISE, "where does Jane Doe work as a singer", "Who is Ottokar Vessel?"]
    beside = [Gates(ENCODER)([compiled]).detect(Prompt(text))[0] for text in texts]
    for name, path in list(detection.DETECTORS.items()):
        if hasattr(load_detector(path), "head"):
            monkeypatch.delitem(detection.DETECTORS, name)
    assert set(detection.DETECTORS) == {"lexical", "semantic", "classifier"}
    assert beside == [Gates(ENCODER)([compiled]).detect(Prompt(text))[0] for text in texts] and any(beside)
