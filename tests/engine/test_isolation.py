"""With a fixed schedule, edited rows change and every other row's logits stay equal to the last bit."""

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

from tests.engine.schedule import EDITED, REQUESTS, TOKENS

pytestmark = pytest.mark.engine
ROOT = Path(__file__).parents[2]


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


@pytest.fixture(params=["eager", "compiled"])
def seen(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.getfixturevalue(request.param)


def same_bits(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_schedule_repeats_to_the_last_bit(seen):
    """The control: without it the next test would prove nothing."""
    for name in REQUESTS:
        assert len(seen["clean"]["logits"][name]) >= TOKENS
        assert same_bits(seen["clean"]["logits"][name], seen["again"]["logits"][name])


def test_requests_without_edits_do_not_notice_those_with(seen):
    for name in REQUESTS.keys() - EDITED.keys():
        assert same_bits(seen["clean"]["logits"][name], seen["edited"]["logits"][name]), name


def test_edited_requests_change_at_every_token(seen):
    for name in EDITED:
        clean, edited = seen["clean"]["logits"][name], seen["edited"]["logits"][name]
        assert len(clean) == len(edited)
        assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(clean, edited, strict=True)), name


def test_every_edit_is_counted(seen):
    records = {record[0]: record for record in seen["edited"]["records"]}
    assert records.keys() == EDITED.keys()
    for name, edits in EDITED.items():
        counts = [["embedding", None, len(e.positions), len(e.positions), 0] for e in edits]
        assert records[name][2:] == [counts, None]


def rows(run: dict[str, Any]) -> dict[int, Any]:
    """Position -> embedding row that the model read there last."""
    return {p: row for positions, new in run["edits"] for p, row in zip(positions, new, strict=True)}


@pytest.mark.parametrize("run", ["chunked", "preempted", "preempted_early"])
def test_chunks_and_recomputing_see_the_same_noise(eager, run):
    whole, other = rows(eager["whole"]), rows(eager[run])
    assert sorted(whole) == sorted(other) == list(range(2, 100, 3))
    assert all(np.array_equal(whole[p], other[p]) for p in whole)
    assert eager[run]["tokens"] == eager["whole"]["tokens"]
    assert len(eager[run]["edits"]) > len(eager["whole"]["edits"])
    assert np.allclose(eager[run]["logits"]["long"][-1], eager["whole"]["logits"]["long"][-1], atol=1e-3)


@pytest.mark.parametrize("run", ["whole", "chunked", "preempted", "preempted_early"])
def test_positions_are_counted_once_however_often_they_are_computed(eager, run):
    (record,) = eager[run]["records"]
    assert record[2:] == [[["embedding", None, 33, 33, 0]], None]


def test_a_malformed_order_is_a_failed_record_and_erases_its_own_rows_only(eager):
    seen = eager["malformed"]
    errors = {record[0]: record[3] for record in seen["records"]}
    assert errors == {"": "EditError", "edits": "EditError", "site": "EditError"}
    assert [record[3] for record in seen["records"]] == ["EditError"] * 4
    clean = seen["logits"]["clean"]
    for name in ("text", "empty", "edits", "site"):
        assert not any(np.allclose(a, b, atol=1e-2) for a, b in zip(seen["logits"][name], clean, strict=True))
        assert same_bits(seen["logits"][name], seen["logits"]["text"])
