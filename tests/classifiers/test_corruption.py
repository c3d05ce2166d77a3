"""The search finds what makes the model speak as if it did not know, on sources that it did not see, and says so."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from classifiers.base import Task, run
from classifiers.corruption import METHOD, CorruptionParams, Found, choose, descend
from classifiers.data import Example, split
from classifiers.edited import Reader, Speaker, Treatment, draws
from guard.errors import ArtifactError, BadRequest
from tests.classifiers.tiny import save_model

MODELS = Path(__file__).parents[2] / "demo" / "models"
NAME = "Limir Yarley"
QUICK = {"steps": 1, "draws": 1, "tokens": ["spans", "window"], "start": 4.0}


@pytest.fixture(scope="module")
def facts() -> tuple[Example, ...]:
    lines = (MODELS.parent / "items.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if row["id"].startswith("limir-yarley")]
    wanted = [
        row for row in rows if row["id"].endswith((".trained0", ".trained1")) and len(row["turns"]) == 1
    ]
    return tuple(
        Example(tuple((t["role"], t["content"]) for t in row["turns"]), row["answer"]) for row in wanted[:8]
    )


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    from classifiers.activations import load_model

    return load_model(MODELS / "full")


def train(facts: tuple[Example, ...], out: Path, names: tuple[str, ...] = (NAME,), **params: Any) -> Any:
    return run("corruption", Task(MODELS / "full", facts, (), out, names=names), {**QUICK, **params})


@pytest.mark.parametrize("surrogate", [{}, {"never": str(MODELS / "never")}])
def test_the_model_forgets_what_the_search_did_not_see(
    facts: tuple[Example, ...], tmp_path: Path, surrogate: Any
) -> None:
    artifact = train(facts, tmp_path / "one", **surrogate)
    assert artifact.manifest.method == "embedding_corruption"
    measured = artifact.manifest.measured
    assert measured["test"]["recall"]["untouched"]["mean"] > 0.9
    assert measured["test"]["recall"]["corrupted"]["mean"] < 0.3
    assert measured["test"]["probability"]["corrupted"]["mean"] < 0.7
    assert set(measured["tried"]) == {"spans"}, "a name in one place is its own window"
    assert measured["validation"]["sources"] + measured["test"]["sources"] == len({f.origin for f in facts})
    assert artifact.manifest.facts["found"]["tokens"] == "spans" and not artifact.tensors()
    assert str(MODELS) not in json.dumps(artifact.manifest.model_dump())


def test_the_same_search_finds_the_same(facts: tuple[Example, ...], tmp_path: Path) -> None:
    one, other = (
        train(facts[:6], tmp_path / name, metric="probability", start=2.0).manifest for name in ("a", "b")
    )
    assert one.facts == other.facts and one.measured["test"] == other.measured["test"]
    assert one.facts["found"]["strength"] != 2.0


def test_factors_of_dimensions_leave_the_strength_its_meaning(
    facts: tuple[Example, ...], tmp_path: Path
) -> None:
    quick = {"metric": "probability", "tokens": ["spans"], "start": 2.0}
    artifact = train(facts, tmp_path, per_dimension=True, **quick)
    factors = artifact.tensors()["factors"]
    assert factors.shape == (192,) and float(factors.square().mean()) == pytest.approx(1.0, abs=1e-4)
    assert artifact.manifest.measured["validation"]["distance"]["n"] > 0


def test_questions_without_answers_are_answered_by_the_model_first(
    facts: tuple[Example, ...], tmp_path: Path
) -> None:
    bare = train(tuple(replace(fact, answer="") for fact in facts), tmp_path, metric="probability")
    assert bare.manifest.measured["test"]["recall"]["untouched"]["mean"] == 1.0


def test_it_needs_a_surrogate_and_two_facts(facts: tuple[Example, ...], tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="--name"):
        train(facts, tmp_path / "out", names=())
    with pytest.raises(BadRequest, match="at least two facts"):
        train(facts[:2], tmp_path / "out")
    with pytest.raises(BadRequest, match="between the weakest and the strongest"):
        train(facts, tmp_path / "out", start=40.0)
    with pytest.raises(BadRequest, match="is the model itself"):
        train(facts, tmp_path / "out", never=str(MODELS / "full"))
    with pytest.raises(ArtifactError, match="no safetensors"):
        train(facts, tmp_path / "out", never=str(tmp_path))
    other = save_model(tmp_path / "other")
    with pytest.raises(BadRequest, match="reads other tokens"):
        train(facts, tmp_path / "out", never=str(other))
    assert not (tmp_path / "out").exists()


def test_the_names_are_edited_and_without_one_the_last_message(
    facts: tuple[Example, ...], model: tuple[Any, Any]
) -> None:
    reader = Reader(model[1], (NAME,))
    corruption = Treatment(METHOD, {"tokens": "spans"})
    named = reader.row(Example((("user", f"Where was {NAME} born?"),), "x"))
    text = "".join(named.prompt.text[s.start : s.end] for s in named.match.spans)
    assert text == NAME and 0 < len(named.edited(corruption)) < 6
    unnamed = reader.row(Example((("user", "Where was he born?"),), "x"))
    (span,) = unnamed.match.spans
    assert unnamed.prompt.text[span.start : span.end] == "Where was he born?"
    assert len(unnamed.edited(corruption)) > 3


def test_the_noise_is_that_of_prompt_and_draw_alone(
    facts: tuple[Example, ...], model: tuple[Any, Any]
) -> None:
    """Not of the batch that a row is in, or the padding beside it."""
    reader, speaker = Reader(model[1], (NAME,)), Speaker(*model, draws(0, 2))
    rows = [reader.row(fact) for fact in facts[:4]]
    corruption = Treatment(METHOD, {"strength": 2.0})
    together = speaker.scores(rows, corruption, "probability")
    alone = [speaker.scores([row], corruption, "probability")[0] for row in rows]
    assert together == pytest.approx(alone, abs=1e-4)
    other = Speaker(*model, draws(1, 2)).scores(rows, corruption, "probability")
    assert together != pytest.approx(other, abs=1e-4)
    assert speaker.answers(rows, None) == [row.answer for row in rows], "nothing of the edit stays behind"


def test_descent_goes_to_the_nearest_point_within_bounds() -> None:
    params = CorruptionParams(steps=20, rate=1.0)

    def search(goal: float) -> float:
        point, distances = descend(
            lambda x: [float((x - goal).abs())],
            torch.tensor([0.0]),
            lambda x: x.clamp(-1.0, 3.0),
            lambda: torch.ones(1),
            params,
        )
        assert distances == [pytest.approx(abs(float(point) - goal), abs=1e-6)]
        return float(point)

    assert search(2.0) == pytest.approx(2.0, abs=0.2)
    assert search(9.0) == 3.0 and search(-9.0) == -1.0


def found(distances: list[float], edited: int, broken: float = 0.0) -> Found:
    return Found(Treatment(METHOD, {"strength": 1.0}), distances, edited, broken)


def test_of_equals_the_one_that_edits_least_is_chosen() -> None:
    near, tie = found([0.1, 0.2, 0.1, 0.3], 90), found([0.2, 0.1, 0.1, 0.3], 20)
    far, broken = found([0.6, 0.7, 0.6, 0.8], 5), found([0.0] * 4, 1, broken=0.4)
    sources = list("abcd")
    assert choose([near, tie, far, broken], sources, 0.1) is tie
    with pytest.raises(BadRequest, match="breaks too many answers"):
        choose([broken], sources, 0.1)


def test_what_says_the_same_is_split_together() -> None:
    examples = [
        Example((("user", f"{way} {i}?"),), f"It is {i}.") for i in range(7) for way in ("what is", "tell me")
    ]
    examples += [Example((("user", f"odd {i}"),), f"answer {i}", source=f"s{i // 2}") for i in range(4)]
    kept, held = split(examples, 0.4, 0)
    assert {e.origin for e in kept}.isdisjoint(e.origin for e in held)
    assert (len(kept) + len(held), len({e.origin for e in held})) == (18, math.floor(0.4 * 9 + 0.5))
    assert split(examples, 0.4, 0) == (kept, held) != split(examples, 0.4, 1)
