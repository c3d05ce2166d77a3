"""What every method promises by standing in the table, shown on an engine whose batches are known exactly.

Isolation to the last bit, eager and compiled; the same answer for the same request in any order; chunked prefill,
preemption and recomputing like the whole prompt at once; a hit in the prefix cache like none; exact counts; a table
that is not there ends the request.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard import interventions
from tests.engine.samples import SAMPLES
from tests.engine.schedule import EDITED, LONG, REQUESTS, TOKENS

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]
ADAPTERS = sorted(name for name, sample in SAMPLES.items() if sample.lora)
OTHERS = sorted(SAMPLES.keys() - set(ADAPTERS))
TEXTUAL = {"refusal", "guard_prompt", "in_context"}


def test_every_method_that_acts_inside_the_model_has_a_sample() -> None:
    assert set(SAMPLES) | TEXTUAL >= set(interventions.TABLE)
    assert not set(SAMPLES) & TEXTUAL


def scheduled(model_dir: Path, out: Path, *flags: str) -> dict[str, Any]:
    environ = os.environ | {"VLLM_CACHE_ROOT": str(out.parent / "vllm"), "VLLM_LOGGING_LEVEL": "WARNING"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.schedule", str(model_dir), str(out), *flags],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return pickle.loads(out.read_bytes())


@pytest.fixture(scope="module")
def eager(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return scheduled(model_dir, tmp_path_factory.mktemp("eager") / "seen.pickle")


@pytest.fixture(scope="module")
def compiled(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    return scheduled(model_dir, tmp_path_factory.mktemp("compiled") / "seen.pickle", "--compiled")


@pytest.fixture(scope="module")
def adapters(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return scheduled(model_dir, tmp_path_factory.mktemp("adapters") / "seen.pickle", "--adapters")


# vLLM runs adapters eagerly on CPU, in an engine of their own.
CASES = [
    *(pytest.param(("eager", name), id=f"{name}-eager") for name in OTHERS),
    *(pytest.param(("compiled", name), id=f"{name}-compiled") for name in OTHERS),
    *(pytest.param(("adapters", name), id=f"{name}-eager") for name in ADAPTERS),
]
EAGER = [case for case in CASES if "compiled" not in case.id]


@pytest.fixture
def case(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the engine gave without edits, and with those of the method."""
    kind, name = request.param
    seen = request.getfixturevalue(kind)
    return seen, seen["methods"][name]


def same_bits(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def near(left: list[Any], right: list[Any]) -> bool:
    """Equal but for the rounding that another shape of the batch brings; -inf only where the other has it."""
    return len(left) == len(right) and all(
        np.allclose(a, b, atol=2e-3) for a, b in zip(left, right, strict=True)
    )


def rows(run: dict[str, Any]) -> dict[tuple[str, int], Any]:
    """What the model read last at each edited place and position."""
    return {
        (place, p): row
        for place, positions, new in run["rows"]
        for p, row in zip(positions, new, strict=True)
    }


@pytest.mark.parametrize("kind", ["eager", "compiled", "adapters"])
def test_a_schedule_repeats_to_the_last_bit(kind: str, request: pytest.FixtureRequest) -> None:
    """The control: without it the next test would prove nothing."""
    seen = request.getfixturevalue(kind)
    for name in REQUESTS:
        assert len(seen["clean"]["logits"][name]) >= TOKENS
        assert same_bits(seen["clean"]["logits"][name], seen["again"]["logits"][name])


@pytest.mark.parametrize("kind", ["eager", "compiled"])
def test_requests_that_a_gate_observes_do_not_notice_it(kind: str, request: pytest.FixtureRequest) -> None:
    seen = request.getfixturevalue(kind)
    for name in REQUESTS:
        assert same_bits(seen["clean"]["logits"][name], seen["observed"]["logits"][name]), name
    assert {record[0] for record in seen["observed"]["records"] if record[4]} == set(REQUESTS)


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_requests_without_edits_do_not_notice_those_with(case) -> None:
    seen, runs = case
    for name in REQUESTS.keys() - set(EDITED):
        assert same_bits(seen["clean"]["logits"][name], runs["edited"]["logits"][name]), name


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_edited_requests_change(case) -> None:
    seen, runs = case
    for name in EDITED:
        clean, edited = seen["clean"]["logits"][name], runs["edited"]["logits"][name]
        assert len(clean) == len(edited)
        assert any(not np.allclose(a, b, atol=1e-2) for a, b in zip(clean, edited, strict=True)), name


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_every_edit_is_counted(case, request: pytest.FixtureRequest) -> None:
    _, runs = case
    name = request.node.callspec.params["case"][1]
    records = {record[0]: record for record in runs["edited"]["records"]}
    assert records.keys() == set(EDITED)
    for request_name in EDITED:
        edits = SAMPLES[name].edits(REQUESTS[request_name][0])
        counts = [[e.site, e.layer, len(e.positions), len(e.positions), 0] for e in edits]
        assert records[request_name][2:4] == [counts, None]


@pytest.mark.parametrize("case", EAGER, indirect=True)
def test_the_same_request_gets_the_same_answer_in_any_order(case) -> None:
    _, runs = case
    for name in EDITED:
        assert same_bits(runs["edited"]["logits"][name], runs["repeated"]["logits"][name])
        assert runs["edited"]["tokens"][name] == runs["reversed"]["tokens"][name]
        assert near(runs["edited"]["logits"][name][-1:], runs["reversed"]["logits"][name][-1:])


@pytest.mark.parametrize("run", ["chunked", "preempted", "preempted early"])
@pytest.mark.parametrize("case", EAGER, indirect=True)
def test_chunks_and_recomputing_are_like_the_whole_prompt_at_once(case, run: str) -> None:
    _, runs = case
    whole, other = rows(runs["whole"]), rows(runs[run])
    assert other.keys() == whole.keys()
    assert all(np.allclose(whole[at], other[at], atol=2e-3) for at in whole)
    assert runs[run]["tokens"] == runs["whole"]["tokens"]
    assert near(runs[run]["logits"]["long"][-1:], runs["whole"]["logits"]["long"][-1:])


@pytest.mark.parametrize("run", ["whole", "chunked", "preempted", "preempted early"])
@pytest.mark.parametrize("case", EAGER, indirect=True)
def test_positions_are_counted_once_however_often_they_are_computed(
    case, run: str, request: pytest.FixtureRequest
) -> None:
    _, runs = case
    edits = SAMPLES[request.node.callspec.params["case"][1]].edits(LONG)
    (record,) = runs[run]["records"]
    assert record[2:4] == [[[e.site, e.layer, len(e.positions), len(e.positions), 0] for e in edits], None]


@pytest.mark.parametrize("case", EAGER, indirect=True)
def test_a_hit_in_the_prefix_cache_is_like_none(case) -> None:
    _, runs = case
    first, second = runs["cached"]["first"], runs["cached"]["second"]
    assert first["cached"]["first"] == 0
    assert second["cached"]["second"] >= LONG // 32 * 32
    assert first["tokens"]["first"] == second["tokens"]["second"]
    assert near(first["logits"]["first"][-TOKENS:], second["logits"]["second"][-TOKENS:])
    (record,) = second["records"]
    for _, _, planned, applied, from_cache in record[2]:
        assert planned == applied + from_cache


@pytest.mark.parametrize("case", EAGER, indirect=True)
def test_a_table_that_is_not_there_ends_the_request_and_nobody_else_notices(case) -> None:
    _, runs = case
    records = {record[0]: record[3] for record in runs["broken"]["records"]}
    assert records == {"broken": "EditError"}
    assert len(runs["broken"]["tokens"]["clean"]) == TOKENS


def test_a_malformed_order_is_a_failed_record_and_erases_its_own_rows_only(eager) -> None:
    seen = eager["malformed"]
    errors = {record[0]: record[3] for record in seen["records"]}
    assert errors == {"": "EditError", "edits": "EditError", "site": "EditError"}
    assert [record[3] for record in seen["records"]] == ["EditError"] * 4
    clean = seen["logits"]["clean"]
    for name in ("text", "empty", "edits", "site"):
        assert not any(np.allclose(a, b, atol=1e-2) for a, b in zip(seen["logits"][name], clean, strict=True))
        assert same_bits(seen["logits"][name], seen["logits"]["text"])
