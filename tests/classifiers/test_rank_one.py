"""At a name's tokens the model has what it has for somebody unknown; elsewhere as good as nothing changes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from classifiers import lora
from classifiers.activations import collect, load_model
from classifiers.base import Task, run
from classifiers.data import encode
from classifiers.rank_one import _contexts, _means, _until, solve
from guard.errors import BadRequest
from tests.classifiers.tiny import FORGET, KNOWN, UNKNOWN, example, save_model

RETAIN = (*KNOWN, *UNKNOWN)
DOWN = "model.layers.{}.mlp.down_proj"
QUICK = {"toward": "john", "layers": [0], "keep": 0.3, "ridge": 1e-6}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def edited(model: Path, out: Path, **params):
    names = params.pop("names", ("jane doe",))
    return run("rank-one", Task(model, FORGET, RETAIN, out, names=names), {**QUICK, **params})


def test_the_keys_get_their_values_and_what_is_not_free_gets_nothing():
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 8, generator=generator), torch.randn(2, 5, generator=generator)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    free = basis[:, :4] @ basis[:, :4].T
    down, up = solve(keys, values, free, 1e-9)
    torch.testing.assert_close((up @ down @ keys.T).T, values, rtol=1e-3, atol=1e-3)
    assert float((up @ down @ basis[:, 4:]).norm()) < 1e-4
    one, r = keys[:1], values[:1]
    held = 0.5 * float(one @ free @ one.T)
    by_hand = r.T @ (one @ free) / (held + one @ free @ one.T)
    down, up = solve(one, r, free, 0.5)
    torch.testing.assert_close(up @ down, by_hand)


@pytest.mark.parametrize("layers", [[0], [0, 1]])
def test_the_name_becomes_the_other(model, tmp_path, layers):
    made = edited(model, tmp_path, layers=layers)
    assert made.manifest.measured["left_of_distance"] < 0.2
    assert made.manifest.facts == {"rank": 2, "modules": [DOWN.format(layer) for layer in layers]}
    plain, tokenizer = load_model(model)
    own, other = (
        [_until(tokenizer, context, name, "name") for context in ("{}", "who is {}", "where is {}")]
        for name in ("jane doe", "john")
    )
    wanted = _means(plain, other, "residual", layers[-1])[[0, 0]]
    before = _means(plain, own, "residual", layers[-1])
    with lora.added(plain, lora.read(made)):
        after = _means(plain, own, "residual", layers[-1])
    assert float((after - wanted).norm()) < 0.7 * float((before - wanted).norm())


def test_what_stays_is_hardly_written_to(model, tmp_path):
    plain, tokenizer = load_model(model)
    keys = [values[0] for _, values in collect(plain, [encode(tokenizer, e) for e in RETAIN], "key", [0])]

    def change(keep):
        down, up = lora.read(edited(model, tmp_path / f"{keep}", keep=keep))[DOWN.format(0)]
        return float((torch.cat(keys) @ down.T @ up.T).norm())

    assert change(0.02) < 0.5 * change(1)


def test_all_names_are_led_elsewhere_and_the_last_token_alone_has_one_rank(model, tmp_path):
    assert edited(model, tmp_path / "a", names=("jane doe", "singer")).manifest.facts["rank"] == 3
    assert edited(model, tmp_path / "b", keys="last").manifest.facts["rank"] == 1


def test_prompts_are_read_up_to_the_names_last_token(model):
    _, tokenizer = load_model(model)
    read = _until(tokenizer, "where is {} works", "jane doe", "name")
    assert tokenizer.decode(read.ids).split() == ["where", "is", "jane", "doe"]
    assert len(read.ids) - read.answer_at == 2
    task = Task(model, (*FORGET, example("what {is} a baker")), RETAIN, Path(), names=("jane", "jane doe"))
    drawn = [_contexts(task, 7, random.Random(seed)) for seed in range(8)]
    assert {len(one) for one in drawn} == {7}
    assert {one[-1] for one in drawn} == {"who is {}", "where is {}"}


@pytest.mark.parametrize(
    ("retain", "names", "params", "why"),
    [
        (RETAIN, (), {}, "names"),
        ((), ("jane doe",), {}, "retain examples"),
        (RETAIN, ("jane doe",), {"keep": 1e-30}, "raise `keep`"),
        (RETAIN, ("jane doe",), {"layers": [2]}, "layers 0 to 1"),
        (RETAIN, ("jane doe",), {"ridge": 0}, "ridge"),
    ],
)
def test_what_cannot_be_edited_is_told(model, tmp_path, retain, names, params, why):
    with pytest.raises(BadRequest, match=why):
        run("rank-one", Task(model, FORGET, retain, tmp_path, names=names), {**QUICK, **params})
