import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from guard.detection.batching import Batcher


class Model:
    """Doubles numbers; the first batch waits until it is let go."""

    def __init__(self, error: Exception | None = None) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Event()
        self.go = threading.Event()
        self.error = error

    def __call__(self, batch: Mapping[int, int]) -> dict[int, int]:
        self.batches.append(list(batch))
        self.started.set()
        assert self.go.wait(10)
        if self.error:
            raise self.error
        return {key: 2 * item for key, item in batch.items()}


def _wait_for(jobs: int, batcher: Batcher) -> None:
    while len(batcher._jobs) < jobs:
        time.sleep(0.001)


def _numbers(*of: int) -> dict[int, int]:
    return {i: i for i in of}


def test_what_arrives_while_a_batch_runs_forms_the_next_one() -> None:
    model = Model()
    batcher: Batcher[int, int, int] = Batcher(model, size=8)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(batcher.run, _numbers(1))
        assert model.started.wait(10)
        later = [pool.submit(batcher.run, _numbers(*of)) for of in ((2, 3), (4,), (3, 5))]
        _wait_for(3, batcher)
        model.go.set()
        results = [job.result(10) for job in (first, *later)]

    assert results == [{1: 2}, {2: 4, 3: 6}, {4: 8}, {3: 6, 5: 10}]
    assert [sorted(batch) for batch in model.batches] == [[1], [2, 3, 4, 5]]


def test_a_short_job_does_not_wait_for_the_end_of_a_long_one() -> None:
    model = Model()
    batcher: Batcher[int, int, int] = Batcher(model, size=2)
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(batcher.run, _numbers(*range(100)))
        assert model.started.wait(10)
        short = pool.submit(batcher.run, _numbers(1000))
        _wait_for(2, batcher)
        model.go.set()
        assert short.result(10) == {1000: 2000}
        assert len(long.result(10)) == 100

    assert 1000 in model.batches[1]


def test_a_late_job_is_dropped_and_the_model_does_not_work_for_it() -> None:
    model = Model()
    batcher: Batcher[int, int, int] = Batcher(model, size=8)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(batcher.run, _numbers(1))
        assert model.started.wait(10)
        with pytest.raises(TimeoutError):
            batcher.run(_numbers(2), time.monotonic() + 0.05)
        model.go.set()
        assert first.result(10) == {1: 2}

    assert batcher.run(_numbers(3)) == {3: 6}
    assert model.batches == [[1], [3]]


def test_an_error_reaches_everybody_in_the_batch_and_nobody_else() -> None:
    model = Model(ValueError("boom"))
    model.go.set()
    batcher: Batcher[int, int, int] = Batcher(model, size=8)
    with pytest.raises(ValueError, match="boom"):
        batcher.run(_numbers(1))
    model.error = None
    assert batcher.run(_numbers(2)) == {2: 4}


def test_many_callers_all_get_their_own() -> None:
    model = Model()
    model.go.set()
    batcher: Batcher[int, int, int] = Batcher(model, size=3)
    with ThreadPoolExecutor(8) as pool:
        jobs = {n: pool.submit(batcher.run, _numbers(*range(n, n + n % 7 + 1))) for n in range(200)}
        for n, job in jobs.items():
            assert job.result(10) == {i: 2 * i for i in range(n, n + n % 7 + 1)}
