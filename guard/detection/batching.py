"""One model for many callers: what arrives while a batch runs forms the next one."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")
R = TypeVar("R")


class _Job(Generic[K, T, R]):
    """What one caller waits for: `todo` is in no batch yet, `missing` results are still to come."""

    def __init__(self, items: Mapping[K, T]) -> None:
        self.todo = deque(items.items())
        self.missing = len(items)
        self.results: dict[K, R] = {}
        self.error: BaseException | None = None

    @property
    def finished(self) -> bool:
        return self.missing == 0 or self.error is not None


class Batcher(Generic[K, T, R]):
    """Runs `model` on at most `size` items at a time and never twice at once.

    There is no thread of its own: whoever waits while the model is free runs the next batch, for everybody. A
    batch takes one item of each caller in turn, so that a short prompt does not wait for the end of a long one.
    """

    def __init__(self, model: Callable[[Mapping[K, T]], Mapping[K, R]], size: int) -> None:
        self._model = model
        self._size = size
        self._jobs: deque[_Job[K, T, R]] = deque()
        self._free = True
        self._changed = threading.Condition()

    def run(self, items: Mapping[K, T], until: float | None = None) -> dict[K, R]:
        """The model's result for each item. `until` is on the monotonic clock.

        Raises:
            TimeoutError: the results are not there at `until`; what is in no batch yet is dropped.
        """
        job: _Job[K, T, R] = _Job(items)
        with self._changed:
            self._jobs.append(job)
            try:
                while not job.finished:
                    left = None if until is None else until - time.monotonic()
                    if left is not None and left <= 0:
                        raise TimeoutError
                    if self._free:
                        self._run_batch()
                    else:
                        self._changed.wait(left)
            finally:
                if job in self._jobs:
                    self._jobs.remove(job)
        if job.error is not None:
            raise job.error
        return job.results

    def _run_batch(self) -> None:
        """Called with the lock held; gives it up while the model runs."""
        batch: dict[K, T] = {}
        waiting: dict[K, list[_Job[K, T, R]]] = {}
        while self._jobs and len(batch) < self._size:
            job = self._jobs.popleft()
            key, item = job.todo.popleft()
            batch[key] = item
            waiting.setdefault(key, []).append(job)
            if job.todo:
                self._jobs.append(job)
        results: Mapping[K, R] = {}
        error: BaseException | None = None
        self._free = False
        self._changed.release()
        try:
            results = self._model(batch)
        except BaseException as caught:  # its callers are told, each in its own thread
            error = caught
        finally:
            self._changed.acquire()
            self._free = True
        for key, jobs in waiting.items():
            for job in jobs:
                job.error = job.error or error
                if error is None:
                    job.results[key] = results[key]
                    job.missing -= 1
        self._changed.notify_all()
