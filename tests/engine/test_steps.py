"""The book maps positions to rows by arithmetic on positions alone, whatever the batch looks like."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from guard.engine.edits import KEY, Order, to_wire
from guard.engine.records import Ring
from guard.engine.sites import Site
from guard.engine.steps import EditBook
from guard.interventions.gates import Limits
from guard.interventions.sae_clamp import SaeClamp
from guard.types import Edit, Watch

SEED = "0123456789abcdef"


def zero(*positions: int) -> Edit:
    return Edit("embedding", "embedding_corruption", positions, SEED, {"noise": "zero"})


@dataclass
class Worker:
    """A book with one site; a step is a table of (request, first computed position, number of tokens)."""

    ring: Ring = field(default_factory=Ring)
    site: Site = field(default_factory=lambda: Site("embedding", None, "embed"))

    def __post_init__(self) -> None:
        self.book = EditBook(self.ring)
        self.book.sites.append(self.site)

    def add(self, name: str, *edits: Edit, length: int = 64, salt: str = "salt", wire: Any = None) -> None:
        extra = (
            {KEY: to_wire(Order(name, salt, edits))} if edits else ({KEY: wire} if wire is not None else None)
        )
        params = SimpleNamespace(extra_args=extra)
        self.book.observe(
            [], [SimpleNamespace(req_id=name, prompt_token_ids=[0] * length, sampling_params=params)]
        )

    def order(self, name: str, length: int = 8, **wanted: Any) -> None:
        self.add(name, length=length, wire=to_wire(Order(name, "salt", **wanted)))

    def step(self, *batch: tuple[str, int, int], applied: bool = True) -> list[int]:
        """The rows that the step erased, out of all rows of the batch."""
        starts = np.cumsum([0, *(n for _, _, n in batch)]).astype(np.int32)
        view = SimpleNamespace(
            req_id_to_index={name: i for i, (name, _, _) in enumerate(batch)},
            num_computed_tokens_cpu=np.asarray([start for _, start, _ in batch], np.int32),
        )
        x = torch.ones(int(starts[-1]), 4)
        self.book.begin(view, starts)
        if applied:
            for share in self.site.shares:
                share.apply(x, None, None)
        self.book.end()
        return torch.nonzero(x.sum(1) == 0).flatten().tolist()

    def counts(self) -> list[Any]:
        self.book.settle()
        return [(w[0], w[2][0][2:] if w[2] else w[3]) for w in self.ring.drain()]


def test_positions_become_rows_in_batch_order():
    worker = Worker()
    worker.add("a", zero(0, 3))
    worker.add("b", zero(1, 2))
    worker.add("clean")
    assert worker.step(("clean", 0, 5), ("b", 0, 4), ("a", 0, 4)) == [6, 7, 9, 12]
    assert worker.counts() == [("a", [2, 2, 0]), ("b", [2, 2, 0])]


def test_chunks_touch_only_their_own_positions():
    worker = Worker()
    worker.add("a", zero(0, 3, 7))
    assert worker.step(("a", 0, 3)) == [0]
    assert worker.counts() == []
    assert worker.step(("x", 9, 1), ("a", 3, 4)) == [1]
    assert worker.step(("a", 7, 1)) == [0]
    assert worker.counts() == [("a", [3, 3, 0])]
    assert worker.step(("a", 8, 1)) == []


def test_recomputing_edits_again_and_counts_once():
    worker = Worker()
    worker.add("a", zero(0, 3, 7))
    worker.step(("a", 0, 6))
    assert worker.step(("b", 0, 2)) == []  # preempted
    assert worker.step(("a", 0, 9)) == [0, 3, 7]
    assert worker.step(("a", 0, 12)) == [0, 3, 7]  # preempted again while decoding
    assert worker.counts() == [("a", [3, 3, 0])]


def test_cached_positions_count_only_if_they_were_edited_under_the_same_salt():
    worker = Worker()
    worker.add("a", zero(0, 40), salt="one")
    worker.step(("a", 0, 64))
    worker.add("b", zero(0, 40), salt="one")
    worker.step(("b", 32, 32))
    worker.add("c", zero(0, 40), salt="two")
    worker.step(("c", 32, 32))
    assert worker.counts() == [("a", [2, 2, 0]), ("b", [2, 1, 1]), ("c", [2, 1, 0])]


def test_cached_positions_of_other_edits_do_not_count_even_under_the_same_salt():
    worker = Worker()
    worker.add("a", zero(0, 40))
    worker.step(("a", 0, 64))
    worker.add("b", zero(1, 40))
    worker.step(("b", 32, 32))
    assert worker.counts() == [("a", [2, 2, 0]), ("b", [2, 1, 0])]


def test_a_request_served_from_the_cache_alone_is_reported_too():
    worker = Worker()
    worker.add("a", zero(3))
    worker.step(("a", 0, 64))
    worker.add("b", zero(3))
    assert worker.step(("b", 32, 32)) == []
    assert worker.counts() == [("a", [1, 1, 0]), ("b", [1, 0, 1])]


def test_blocks_of_a_request_that_was_aborted_midway_are_credited():
    worker = Worker()
    worker.add("a", zero(3, 50))
    worker.step(("a", 0, 32))
    worker.book.observe(["a"], [])
    worker.add("b", zero(3, 50))
    worker.step(("b", 32, 32))
    assert worker.counts() == [("b", [2, 1, 1])]


def test_a_site_that_does_not_run_leaves_the_count_short():
    worker = Worker()
    for name in ("first", "retry"):
        worker.add(name, zero(3, 40))
    worker.step(("first", 0, 64), applied=False)
    worker.step(("retry", 32, 32), applied=False)
    assert worker.counts() == [("first", [2, 0, 0]), ("retry", [2, 0, 0])]


def test_a_malformed_order_erases_its_rows_and_reports_once():
    worker = Worker()
    worker.add("a", wire={"v": 9, "ticket": "mine"})
    assert worker.step(("x", 0, 2), ("a", 0, 3)) == [2, 3, 4]
    assert worker.step(("a", 3, 1)) == [0]
    assert worker.counts() == [("mine", "EditError")]


def test_a_failing_edit_erases_its_rows_and_fails_the_request(monkeypatch):
    from guard.interventions.embedding_corruption import EmbeddingCorruption

    worker = Worker()
    worker.add("a", zero(1, 2))
    monkeypatch.setattr(EmbeddingCorruption, "edit", lambda *_: torch.full((2, 4), float("nan")))
    assert worker.step(("a", 0, 4)) == [1, 2]
    assert worker.counts() == [("a", "NotFinite")]


def test_steps_without_edited_requests_plan_nothing():
    worker = Worker()
    worker.add("clean")
    assert len(worker.book) == 0
    worker.book.begin(None, None)  # looks at neither
    worker.book.end()


def test_finished_requests_are_forgotten():
    worker = Worker()
    worker.add("a", zero(1))
    worker.book.observe(["a", "unknown"], [])
    assert len(worker.book) == 0


@pytest.mark.parametrize("site", ["residual", "neuron", "adapter"])
def test_an_edit_for_a_site_that_is_not_installed_fails(site):
    worker = Worker()
    worker.add("a", Edit(site, "embedding_corruption", (1,), SEED, {}, None if site == "adapter" else 0))
    worker.step(("a", 0, 4))
    assert worker.counts() == [("a", "EditError")]


def test_a_table_that_is_unloaded_stays_with_the_requests_that_have_it():
    """The edit below needs no table; that it names one is enough to be refused without it."""
    worker = Worker()
    tables, digest = worker.book.tables, "ab" * 32
    edit = Edit("embedding", "embedding_corruption", (0, 3), SEED, {"noise": "zero"}, table=digest)
    tables._held[digest] = ("embedding_corruption", object())
    worker.add("a", edit)
    assert worker.step(("a", 0, 2)) == [0]
    tables.unload(digest)
    assert worker.step(("a", 2, 2)) == [1]
    assert worker.counts() == [("a", [2, 2, 0])]
    worker.add("late", edit)
    assert worker.step(("late", 0, 4)) == [0, 1, 2, 3]  # nothing of it reaches the model
    assert worker.counts() == [("late", "EditError")]


LIMITS = Limits(window=4, rate=0.6, drift=0.5, cusum=100.0)


@dataclass
class Table:
    """A gate that calls every row hot whose first column is above 1."""

    limits: Limits | None = LIMITS


class Observer(Worker):
    """A book with a residual site behind layer 1; the rows of every step are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(site=Site("residual", 1, "layer"))
        monkeypatch.setattr(SaeClamp, "hot", lambda self, x, table: x[:, 0] > 1)
        self.book.tables._held["ab" * 32] = ("sae_clamp", Table())

    def observe(self, *batch: tuple[str, int, str]) -> None:
        """One step; of each request its first position, and `#` for a hot token and `.` for another."""
        starts = np.cumsum([0, *(len(marks) for _, _, marks in batch)]).astype(np.int32)
        view = SimpleNamespace(
            req_id_to_index={name: i for i, (name, _, _) in enumerate(batch)},
            num_computed_tokens_cpu=np.asarray([start for _, start, _ in batch], np.int32),
        )
        x = torch.tensor([[2.0 if m == "#" else 0.5] for _, _, marks in batch for m in marks])
        before = x.clone()
        self.book.begin(view, starts)
        for share in self.site.shares:
            share.apply(x, None, 1)
        self.book.end()
        assert torch.equal(x, before)

    def sighted(self) -> list[Any]:
        self.book.settle()
        return [(w[0], tuple(w[4][2])) for w in self.ring.drain() if w[4]]


WATCH = (Watch("", "sae_clamp", 1, "ab" * 32),)


def test_a_gate_sees_only_its_own_requests_and_fires_once(monkeypatch):
    worker = Observer(monkeypatch)
    worker.order("a", watches=WATCH)
    worker.order("b", watches=WATCH)
    worker.observe(("clean", 0, "####"), ("a", 0, "....##.."), ("b", 0, "..####.."))
    assert worker.sighted() == [("b", (2, 3, 4, 5))]
    worker.observe(("a", 8, "."), ("b", 8, "#"))
    assert worker.sighted() == []


@pytest.mark.parametrize("cuts", [(8,), (3, 8), (1, 2, 5, 8)])
def test_a_gate_does_not_depend_on_how_the_prompt_is_cut(monkeypatch, cuts):
    worker, marks = Observer(monkeypatch), "..###..."
    worker.order("a", watches=WATCH)
    for start, end in zip((0, *cuts), cuts, strict=False):
        worker.observe(("a", start, marks[start:end]))
    ((_, hot),) = worker.sighted()
    assert hot[:3] == (2, 3, 4)


def test_tokens_that_are_computed_again_are_not_counted_again(monkeypatch):
    worker = Observer(monkeypatch)
    worker.order("a", watches=WATCH)
    worker.observe(("a", 0, "..##...."))
    worker.observe(("a", 0, "..##...."))  # preempted
    assert worker.sighted() == []
    worker.observe(("a", 8, "#"))
    worker.observe(("a", 9, "#"))
    worker.observe(("a", 10, "#"))
    assert worker.sighted() == [("a", (2, 3, 8, 9, 10))]


def test_the_first_token_of_a_prompt_is_never_hot(monkeypatch):
    worker = Observer(monkeypatch)
    worker.order("a", watches=WATCH)
    worker.observe(("a", 0, "##......"))
    assert worker.sighted() == []


@pytest.mark.parametrize(("layer", "table"), [(1, "cd" * 32), (0, "ab" * 32), (1, "ef" * 32)])
def test_a_gate_that_is_not_there_fails_its_request(layer, table):
    worker = Worker()
    worker.book.sites.append(Site("residual", 1, "layer"))
    worker.book.tables._held["ab" * 32] = ("sae_clamp", Table())
    worker.book.tables._held["ef" * 32] = ("sae_clamp", Table(limits=None))
    worker.order("a", watches=(Watch("", "sae_clamp", layer, table),))
    assert worker.step(("a", 0, 4)) == [0, 1, 2, 3]
    assert worker.counts() == [("a", "EditError")]


def forced_scores(worker: Worker) -> list[Any]:
    worker.book.settle()
    return [(w[0], w[5]) for w in worker.ring.drain() if w[5]]


def test_forced_tokens_are_read_and_then_chosen_whatever_the_chunks():
    worker = Worker()
    worker.order("a", forced=(2, 0))
    rows = torch.tensor([[0.0, 1.0, 2.0, 5.0]]).repeat(2, 1)
    expected = rows[0].double().log_softmax(0)
    for start, count in ((0, 5), (5, 3), (8, 1)):
        logits = rows.clone()
        worker.step(("clean", 20, 1), ("a", start, count))
        worker.book.rescore(logits, {})
        assert torch.equal(logits[0], rows[0])
        if start == 0:  # in the middle of the prompt nothing is sampled
            assert torch.equal(logits, rows)
        else:
            assert int(logits[1].argmax()) == (2 if start == 5 else 0)
    ((name, scores),) = forced_scores(worker)
    assert name == "a" and scores == pytest.approx([float(expected[2]), float(expected[0])], abs=1e-9)


def test_a_token_that_the_model_does_not_have_ends_the_answer_and_fails():
    worker = Worker()
    worker.book.end_tokens = (1,)
    worker.order("a", forced=(77,))
    worker.step(("a", 0, 8))
    logits = torch.zeros(1, 4)
    worker.book.rescore(logits, {})
    assert int(logits.argmax()) == 1
    worker.book.settle()
    assert [w[3] for w in worker.ring.drain() if w[3]] == ["RuntimeError"]
