"""The index and the layered finders: exact below a size, and above it the same findings after every change."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from guard.detection import CompiledTarget, Encoder, Gate
from guard.detection import index as index_module
from guard.detection.index import FLOOR, Index, relative
from guard.detection.layers import Layers
from guard.types import Prompt

from .conftest import AUTHOR

DIM, ROWS = 32, 5


@pytest.fixture(scope="module")
def target(compile_: Callable) -> CompiledTarget:
    return compile_(**AUTHOR)


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def _targets(like: CompiledTarget, count: int, seed: int = 0, name: str = "t") -> list[CompiledTarget]:
    """Targets with five random vectors each."""
    rng = np.random.default_rng(seed)
    vectors = _unit(rng.standard_normal((count, ROWS, DIM)))
    ceilings = rng.uniform(0.3, 0.9, (count, ROWS)).astype(np.float32)
    return [
        replace(like, target_id=f"{name}{i}", vectors=vectors[i], ceilings=ceilings[i]) for i in range(count)
    ]


def _near_to(targets: list[CompiledTarget], seed: int = 1) -> np.ndarray:
    """A window near the first row of each."""
    rows = np.stack([target.vectors[0] for target in targets])
    return _unit(rows + 0.03 * np.random.default_rng(seed).standard_normal(rows.shape))


def _expected(windows: np.ndarray, target: CompiledTarget) -> np.ndarray:
    return np.maximum(relative(windows @ target.vectors.T, target.ceilings).max(axis=1), FLOOR)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """An inverted file from 200 rows on."""
    monkeypatch.setattr(index_module, "EXACT", 200)


def test_few_rows_are_all_compared(target: CompiledTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_AT_ONCE", 700)  # more than one block
    targets = _targets(target, 60)
    windows = _near_to(targets)[:40]

    near = Index([replace(target, vectors=np.zeros((0, DIM), np.float32)), *targets]).near(windows)

    assert near.columns.tolist() == list(range(60))
    for column, one in enumerate(targets):
        assert np.allclose(near.scores[:, column], _expected(windows, one), atol=1e-5)


def test_no_targets_and_no_windows_are_no_trouble(target: CompiledTarget) -> None:
    assert Index([]).near(np.zeros((2, DIM), np.float32)).scores.shape == (2, 0)
    assert Index(_targets(target, 3)).near(np.zeros((0, DIM), np.float32)).scores.shape == (0, 3)


@pytest.mark.usefixtures("small")
def test_many_rows_are_found_where_they_are_near(target: CompiledTarget) -> None:
    targets = _targets(target, 400)
    windows = _near_to(targets)[:50]

    near = Index(targets).near(windows)

    own = np.searchsorted(near.columns, np.arange(50))
    assert (near.columns[own] == np.arange(50)).all()
    expected = [_expected(windows[i : i + 1], targets[i])[0] for i in range(50)]
    assert np.allclose(near.scores[np.arange(50), own], expected, atol=2e-3)


@pytest.mark.usefixtures("small")
def test_a_target_counts_from_the_change_on_that_brings_it_until_the_one_that_takes_it(
    target: CompiledTarget,
) -> None:
    targets = _targets(target, 400)
    first = Index(targets)
    (new,) = _targets(target, 1, seed=5, name="new")
    changed = replace(targets[3], version=2, vectors=-targets[3].vectors)

    second = Index([*targets[:3], changed, *targets[4:399], new], first)
    windows = np.concatenate([new.vectors[:1], changed.vectors[:1], targets[3].vectors[:1]])
    near = second.near(windows)

    best = near.scores.max(axis=1)
    at = [second.targets[near.columns[i]].target_id for i in near.scores.argmax(axis=1)]
    assert at[:2] == ["new0", "t3"]
    assert best[:2] == pytest.approx([1.0, 1.0], abs=1e-5)
    assert best[2] < 0.99
    assert first.near(windows[2:]).scores.max() == pytest.approx(1.0, abs=2e-3)


@pytest.mark.usefixtures("small")
def test_what_came_and_went_is_taken_into_the_next_file_beside_the_old_one(target: CompiledTarget) -> None:
    targets = _targets(target, 400)
    first = Index(targets)
    others = _targets(target, 60, seed=5, name="new")
    second = Index([*targets[100:], *others], first)
    second.wait()
    third = Index([*targets[100:], *others], second)

    assert first._file is second._file is not third._file
    assert len(second._new.columns) == 60
    assert len(third._new.columns) == 0
    assert len(third._file.owner) == 360 * ROWS
    for index in (second, third):
        near = index.near(_near_to(others))
        assert (near.scores.max(axis=1) > 0.8).all()
        assert index.near(_near_to(targets[:100])).scores.max() < 0.99


@pytest.mark.usefixtures("small")
def test_a_failed_build_leaves_the_old_file_in_use(
    target: CompiledTarget, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    targets = _targets(target, 400)
    first = Index(targets)
    monkeypatch.setattr(index_module, "_file", lambda *args: 1 / 0)
    second = Index(targets[100:], first)
    second.wait()

    assert Index(targets[100:], second)._file is first._file
    assert "could not be built anew" in caplog.text


@pytest.mark.usefixtures("small")
def test_other_targets_can_be_asked_for(target: CompiledTarget) -> None:
    targets = _targets(target, 400)
    index = Index(targets)
    windows = _near_to(targets)[:2]
    near = index.near(windows)
    far = next(i for i in range(400) if i not in near.columns)

    more = index.with_columns(near, windows, {far, int(near.columns[0])})

    assert more.columns.tolist() == sorted([*near.columns.tolist(), far])
    at = more.columns.tolist().index(far)
    assert np.allclose(more.scores[:, at], _expected(windows, targets[far]), atol=1e-5)
    assert np.array_equal(np.delete(more.scores, at, axis=1), near.scores)


def test_layers_cover_every_target_once_and_a_change_rebuilds_few(target: CompiledTarget) -> None:
    built: list[int] = []

    def build(targets: list[CompiledTarget]) -> list[str]:
        built.append(len(targets))
        return [target.target_id for target in targets]

    targets = _targets(target, 1_000)
    layers: Layers[list[str]] = Layers(build)
    for count in range(900, 1_001):
        layers = layers.renewed(targets[:count])
    assert sorted(i for layer in layers for i in layer) == sorted(t.target_id for t in targets)
    assert built[0] == 900
    assert max(built[1:]) <= 64
    assert len(list(layers)) <= 9

    replaced = replace(targets[5], version=2)
    changed = layers.renewed([replaced, *targets[6:]])
    assert changed.holds(replaced)
    assert not changed.holds(targets[5])
    assert not changed.holds(targets[0])
    assert layers.holds(targets[5])

    shrunk = changed.renewed(targets[600:])
    assert sum(len(layer) for layer in shrunk) <= 2 * 400


@pytest.mark.usefixtures("small")
def test_a_gate_above_the_size_finds_what_an_exact_one_finds(
    compile_: Callable, hashing: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    authors = [
        compile_(
            f"author-{i}",
            **{key: _renamed(value, i) for key, value in AUTHOR.items()},
        )
        for i in range(30)
    ]
    prompts = [
        *(text for i in range(30) for text in _renamed(AUTHOR["examples"], i)),
        "Which novelist, born in Tarvala in 1957, writes about lighthouses?",
        "What is The Salt Ledger about?",
        "Which awards exist for novels?",
    ]

    def found(gate: Gate) -> list[set[tuple[str, str]]]:
        return [{(d.target_id, d.detector) for d in gate.detect(Prompt(text))[0]} for text in prompts]

    gate = Gate(hashing, authors[:28])
    gate.index.wait()
    for count in range(29, 31):
        gate = Gate(hashing, authors[:count], gate)
    monkeypatch.setattr("guard.detection.classifier._PREPARED", 10)
    monkeypatch.setattr("guard.detection.classifier._RARE", 4)
    many = Gate(hashing, authors, gate)
    assert gate.index._file is not None
    monkeypatch.setattr(index_module, "EXACT", 100_000)
    monkeypatch.setattr("guard.detection.classifier._PREPARED", 10_000)
    exact = found(Gate(hashing, authors))

    assert any(exact)
    assert found(gate) == exact
    assert found(many) == exact


def test_words_that_many_targets_share_are_weighed_where_they_decide(
    compile_: Callable, hashing: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    towns = ["Tarvala"] * 3 + [f"Orvik{chr(97 + i)}" for i in range(27)]
    authors = []
    for i, town in enumerate(towns):
        spec = {key: _renamed(value, i) for key, value in AUTHOR.items()}
        spec["description"] = spec["description"].replace("Tarvala", town)
        authors.append(compile_(f"author-{i}", **spec))
    text = "Which novelist, born in Tarvala in 1957, writes about lighthouses?"

    def found(lower: float) -> set[str]:
        eager = [replace(one, evidence_threshold=one.evidence_threshold - lower) for one in authors]
        return {one.target_id for one in Gate(hashing, eager).detect(Prompt(text))[0]}

    steps = np.arange(0.0, 12.0, 0.25)
    exact = [found(lower) for lower in steps]
    monkeypatch.setattr("guard.detection.classifier._PREPARED", 10)
    monkeypatch.setattr("guard.detection.classifier._RARE", 2)
    assert {len(one) for one in exact} >= {0, 3}
    assert [found(lower) for lower in steps] == exact


def _renamed(value: str | list[str], i: int) -> str | list[str]:
    if isinstance(value, list):
        return [str(_renamed(one, i)) for one in value]
    return value.replace("Marenko", f"Marenko{chr(97 + i)}").replace("Ferry", f"Ferry{chr(97 + i)}")
