"""Forget prompts end where unknown ones do, and retain prompts are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from classifiers import lora
from classifiers.activations import collect, load_model
from classifiers.base import Task, run
from classifiers.data import encode
from classifiers.redirection import solve
from guard.errors import BadRequest
from tests.classifiers.tiny import FORGET, KNOWN, UNKNOWN, save_model

RETAIN = (*KNOWN, *UNKNOWN)
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def test_the_solution_is_that_of_the_least_squares_problem():
    generator = torch.Generator().manual_seed(0)
    forget, one, other = (torch.randn(n, 6, generator=generator).double() for n in (4, 9, 5))
    weight, ridge = 3.0, 0.1
    both = weight * forget.T @ forget / 4 + one.T @ one / 9 + other.T @ other / 5
    held = (ridge * both.diagonal().mean()).sqrt() * torch.eye(6).double()
    rows = torch.cat([(weight / 4) ** 0.5 * forget, (1 / 9) ** 0.5 * one, (1 / 5) ** 0.5 * other, held])
    wanted = torch.cat([torch.full((4,), (weight / 4) ** 0.5), torch.zeros(20)]).double()
    by_hand = torch.linalg.lstsq(rows, wanted[:, None]).solution.T
    torch.testing.assert_close(solve(forget, (one, other), weight, ridge), by_hand)


def test_forget_prompts_end_where_unknown_ones_do(model, tmp_path):
    task = Task(model, FORGET[:1], RETAIN, tmp_path)
    made = run("redirection", task, {"coeff": 1.0, "ridge": 1e-6, "weight": 50.0})
    assert made.manifest.facts == {"rank": 1, "modules": [DOWN]}
    measured = made.manifest.measured
    assert measured["layer"] == 1 and measured["forget_moved"] > 0.9
    assert measured["retain_moved"] < 0.2 * measured["forget_moved"]
    plain, tokenizer = load_model(model)

    def last(examples):
        read = [encode(tokenizer, e) for e in examples]
        return torch.stack(
            [values[0, e.answer_at - 1] for e, values in collect(plain, read, "residual", [1])]
        ).mean(dim=0)

    wanted, before = last(UNKNOWN), last(FORGET[:1])
    with lora.added(plain, lora.read(made)):
        after = last(FORGET[:1])
    assert float((after - wanted).norm()) < 0.1 * float((before - wanted).norm())


def test_all_tokens_may_be_redirected(model, tmp_path):
    task = Task(model, FORGET, RETAIN, tmp_path)
    last, every = (run("redirection", task, {"at": at}).tensors() for at in ("last", "prompt"))
    assert not all(torch.equal(last[name], every[name]) for name in last)


@pytest.mark.parametrize(
    ("retain", "params", "why"),
    [(KNOWN, {}, "does not know"), (UNKNOWN, {}, "and others"), (RETAIN, {"layer": 2}, "layers 0 to 1")],
)
def test_what_cannot_be_redirected_is_told(model, tmp_path, retain, params, why):
    with pytest.raises(BadRequest, match=why):
        run("redirection", Task(model, FORGET, retain, tmp_path), params)
