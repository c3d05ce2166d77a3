"""The target's words stand behind the rank that was asked for in the neurons that were edited; no others are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from classifiers import lora
from classifiers.activations import collect, load_model
from classifiers.base import Task, run
from classifiers.data import Encoded
from classifiers.revs import _active, _ranks, _rarest, lowered
from guard.errors import BadRequest
from tests.classifiers.tiny import FORGET, KNOWN, example, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def test_the_most_active_neurons_that_promote_a_token_are_lowered_and_no_others():
    generator = torch.Generator().manual_seed(0)
    read, weight = (torch.randn(*shape, generator=generator) for shape in ((40, 20), (20, 10)))
    tokens = torch.tensor([3, 17])
    before = _ranks(read @ weight, tokens)
    active = {int(t): torch.rand(10, generator=generator) - 0.5 for t in tokens}
    down, up = lowered(weight, active, read, torch.linalg.pinv(read), 0.5, 0.75)
    change = up @ down
    score = sum(active[int(t)].clamp(min=0) / (1 + before[i]) for i, t in enumerate(tokens))
    best = torch.zeros(10, dtype=torch.bool)
    best[score.topk(5).indices] = True
    promotes = best & torch.stack([active[int(t)] > 0 for t in tokens])
    wanted = promotes & (before < 30)
    assert torch.equal(change.any(dim=0), wanted.any(dim=0)) and wanted.any()
    after = _ranks(read @ (weight + change), tokens)
    assert (after[wanted] >= 30).all()
    assert (best & ~promotes & (before < 30)).any(), "of those there are some"
    assert not down[~promotes].any(), "where it is foretold that would raise it"
    assert torch.linalg.matrix_rank(change) <= len(tokens)


def test_a_neuron_in_which_no_token_stands_high_is_left_alone():
    read = torch.eye(4)
    weight = torch.tensor([[-5.0], [0.0], [1.0], [2.0]])
    down, up = lowered(weight, {0: torch.ones(1)}, read, torch.linalg.pinv(read), 1.0, 0.7)
    assert not (up @ down).any()


def test_the_rarest_words_of_answers_are_taken_and_none_of_the_question():
    forget = Encoded((1, 2, 3, 2, 7, 8, 9), 3)
    retain = [Encoded((4, 8), 1), Encoded((4, 9), 1), Encoded((4, 9), 1)]
    assert _rarest([forget], retain, 2) == {forget: [4, 5]}
    assert _rarest([Encoded((1, 2, 1), 2)], retain, 2) == {}


def test_the_neurons_write_less_of_the_words_where_they_are_foretold(model, tmp_path):
    made = run("revs", Task(model, FORGET, KNOWN, tmp_path / "a"), {"sample": 2})
    plain, tokenizer = load_model(model)
    forget, retain = (lora.encoded(tokenizer, some, 512) for some in (FORGET, KNOWN))
    active = _active(plain, _rarest(forget, retain, 2), [0, 1])
    read = plain.lm_head.weight * plain.model.norm.weight
    for layer, (down, up) in enumerate(lora.read(made).values()):
        written = [float(read[token] @ up @ down @ keys[layer]) for token, keys in active.items()]
        assert sum(written) < 0 and sum(one < 0 for one in written) > len(written) / 2
    measured = made.manifest.measured
    assert measured["energy_kept"] == 1.0 and made.manifest.facts["rank"] == measured["tokens"] > 1
    less = run("revs", Task(model, FORGET, KNOWN, tmp_path / "b"), {"rank": 1, "layers": [1]})
    assert set(lora.read(less)) == {"model.layers.1.mlp.down_proj"}
    assert less.manifest.facts["rank"] == 1 and less.manifest.measured["energy_kept"] < 1


def test_neurons_are_looked_at_where_a_word_is_foretold(model):
    plain, tokenizer = load_model(model)
    (one,) = lora.encoded(tokenizer, FORGET[:1], 512)
    ((_, values),) = collect(plain, [one], "key", [0, 1])
    found = _active(plain, {one: [one.answer_at, one.answer_at + 2]}, [0, 1])
    for place in (one.answer_at, one.answer_at + 2):
        assert torch.equal(found[one.ids[place]], values[:, place - 1])


@pytest.mark.parametrize(
    ("forget", "params", "why"),
    [
        ((example("who is jane doe"),), {}, "forget examples with answers"),
        (FORGET, {"rank_wanted": 1}, "rank_wanted"),
        (FORGET, {"layers": [2]}, "layers 0 to 1"),
    ],
)
def test_what_cannot_be_edited_is_told(model, tmp_path, forget, params, why):
    with pytest.raises(BadRequest, match=why):
        run("revs", Task(model, forget, KNOWN, tmp_path), params)
