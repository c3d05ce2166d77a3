"""A step costs what is edited in it: nothing is allocated or looked at for requests that are not."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from guard.engine import sites
from guard.engine.edits import KEY, Order, to_wire
from guard.engine.records import Ring
from guard.engine.sites import Site
from guard.engine.steps import EditBook
from guard.types import Edit

STEPS = 50
SEED = "0123456789abcdef"
BYTES = 512  # what interpreter and tracer need themselves; a list over 64 requests is larger


class Seen(Mapping):
    """The batch's places; tells what was asked of it."""

    def __init__(self, size: int) -> None:
        self.places = {f"r{i}": i for i in range(size)}
        self.asked: list[str] = []

    def __getitem__(self, key: str) -> int:
        self.asked.append(key)
        return self.places[key]

    def __iter__(self):
        raise AssertionError("a step walks through its whole batch")

    def __len__(self) -> int:
        raise AssertionError("a step counts its batch")


class Worker:
    def __init__(self, requests: int, edited: int = 0) -> None:
        self.book = EditBook(Ring())
        self.sites = [Site("embedding", None, "embed"), *(Site("residual", i, f"l{i}") for i in range(4))]
        self.book.sites.extend(self.sites)
        self.seen = Seen(requests)
        starts = np.zeros(requests, np.int32)
        self.batch = SimpleNamespace(req_id_to_index=self.seen, num_computed_tokens_cpu=starts)
        self.query_starts = np.arange(requests + 1, dtype=np.int32)
        self.x = torch.ones(requests, 4)
        edit = Edit("embedding", "embedding_corruption", (0, 1), SEED, {"noise": "zero"}, onward=True)
        wanted = [{KEY: to_wire(Order(f"t{i}", "salt", (edit,)))} for i in range(edited)]
        self.book.observe(
            [],
            [
                SimpleNamespace(
                    req_id=f"r{i}",
                    prompt_token_ids=[0] * 8,
                    sampling_params=SimpleNamespace(extra_args=extra),
                )
                for i, extra in enumerate([*wanted, *[None] * (requests - edited)])
            ],
        )

    def step(self) -> None:
        """One step as the runner and the model's modules drive it."""
        self.book.observe((), ())
        self.book.begin(self.batch, self.query_starts)
        for site in self.sites:
            for share in site.shares:
                share.apply(self.x, None, site.layer)
        self.book.end()
        self.book.rescore(self.x, {})


def allocated(worker: Worker) -> int:
    """By how many bytes the memory in use grows during clean steps, at its highest."""
    for _ in range(3):
        worker.step()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        worker.step()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(STEPS):
            worker.step()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
        gc.enable()


@pytest.mark.parametrize("requests", [1, 64, 256])
def test_a_clean_step_allocates_nothing(requests):
    worker = Worker(requests)
    lists = [site.shares for site in worker.sites]
    assert allocated(worker) < BYTES
    assert all(site.shares is kept for site, kept in zip(worker.sites, lists, strict=True))
    assert worker.seen.asked == []


def test_what_is_allocated_is_seen():
    worker = Worker(64)
    begin = worker.book.begin
    worker.book.begin = lambda batch, starts: (
        [0 for _ in batch.req_id_to_index.places],
        begin(batch, starts),
    )
    assert allocated(worker) >= BYTES


@pytest.mark.parametrize("edited", [1, 8])
def test_a_step_asks_for_the_places_of_edited_requests_only(edited):
    worker = Worker(256, edited)
    worker.step()
    assert worker.seen.asked == [f"r{i}" for i in range(edited)]
    assert int((worker.x == 0).all(dim=1).sum()) == edited


def test_nothing_is_left_of_a_step_whose_plan_failed():
    worker = Worker(4, 1)
    worker.sites[0].name = "residual"  # the plan finds no site
    worker.book.sites[1].shares.append(SimpleNamespace())
    with pytest.raises(StopIteration):
        worker.book.begin(worker.batch, worker.query_starts)
    worker.book.end()
    assert not any(site.shares for site in worker.sites)


def test_an_op_without_work_returns_before_it_looks_at_its_tensor(monkeypatch):
    site = Site("embedding", None, "embed")
    monkeypatch.setattr(sites, "_installed", [site])
    sites._lethe_site(None, None, 0)
    site.shares.append(SimpleNamespace(apply=lambda x, residual, layer: x.add_(1)))
    with pytest.raises(AttributeError):
        sites._lethe_site(None, None, 0)
