"""The out-of-distribution head: what it reads, what it scores, and that it is asked for its own target alone."""

from __future__ import annotations

import numpy as np
import pytest

from guard import artifacts
from guard.detection.encoder import hashing_encoder
from guard.detection.heads import read_head
from guard.detection.ood import OodHead, squeezed, states_of
from guard.errors import ArtifactError

ENCODER = hashing_encoder(8)
NUMBERS = {"offset": -1.0, "trained": 1.0, "held_out": 0.0, "deviation": 0.5, "threshold": 0.0}


def tensors(rows: int = 3, width: int = 8) -> dict:
    import torch

    torch.manual_seed(0)
    return {
        "mean": torch.randn(1, width),
        "spread": torch.ones(1),
        "basis": torch.randn(1, 2, width),
        "bank": torch.nn.functional.normalize(torch.randn(rows, 1, width), dim=2),
        "centre": torch.zeros(2, 1),
        "scale": torch.ones(2, 1),
        "weights": torch.ones(1),
    }


def head_of(folder, **changes) -> OodHead:
    facts = {**NUMBERS, **changes.pop("facts", {})}
    kept = {**tensors(), **changes}
    made = artifacts.write(
        folder, "ood", ENCODER.digest, tensors={k: v for k, v in kept.items() if v is not None}, facts=facts
    )
    return read_head(made, ENCODER)


def test_it_scores_a_forget_window_above_another_one(tmp_path):
    head = head_of(tmp_path, basis=tensors()["basis"] * 0)
    own = head.layers.bank[:1]
    assert head.of(own)[0] > head.of(-own)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": None},
        {"mean": tensors(width=7)["mean"]},
        {"bank": tensors(width=7)["bank"]},
        {"scale": tensors()["scale"] * float("nan")},
        {"facts": {"threshold": "high"}},
        {"facts": {"threshold": None}},
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changes):
    with pytest.raises(ArtifactError):
        head_of(tmp_path, **changes)


def test_the_soft_weight_is_that_of_the_paper_below_the_middle_and_highest_above(tmp_path):
    head = head_of(tmp_path)
    shown = [head.shown(score) for score in np.linspace(-4, 4, 33)]
    assert shown == sorted(shown) and shown[0] >= 0.0 and shown[-1] <= 1.0
    assert head.shown(0.5) == pytest.approx(1 / (1 + np.exp(-8.0))) == head.shown(3.0)  # p = 1 at the middle
    assert head.shown(-9.0) == pytest.approx(1 / (1 + np.exp(2.0)))  # p = 0 far away
    rng = np.random.default_rng(0)
    drawn = np.concatenate([rng.normal(1.0, 0.5, 200_000), rng.normal(0.0, 0.5, 200_000)])
    farther = float((np.abs(drawn - 0.5) > np.abs(-0.4 - 0.5)).mean())
    assert head.shown(-0.4) == pytest.approx(1 / (1 + np.exp(2 - 10 * farther)), abs=0.01)


def test_layers_are_of_length_one_each(minilm):
    hidden = minilm.hidden
    rows = hidden.encode(["Who wrote The Salt Ledger?", "no"])
    states = states_of(rows, hidden.depth)
    assert states.shape == (2, 6, 384) and np.allclose(np.linalg.norm(states, axis=2), 1.0, atol=1e-5)
    last = minilm.encode(["Who wrote The Salt Ledger?", "no"])
    assert np.allclose(states[:, -1], last, atol=1e-4)  # the packaged model's own vector is that mean
    assert states_of(rows[:0], hidden.depth).shape == (0, 6, 384)


def test_what_a_text_is_judged_beside_changes_nothing_of_its_layers(minilm):
    alone = minilm.hidden.encode(["no"])
    beside = minilm.hidden.encode(["no", "a much longer text, with which it would be padded in one batch"])
    assert np.array_equal(alone[0], beside[0])


def test_layers_in_torch_are_those_of_the_graph(minilm, tmp_path):
    from guard.detection import load_encoder
    from guard.detection.encoder import PACKAGED

    texts = ["Where was she born?", "Which awards has the novelist received since 1957?"]
    torch_only = load_encoder(PACKAGED, threads=1, backend="torch").hidden
    assert torch_only.digest == minilm.hidden.digest
    assert np.allclose(torch_only.encode(texts), minilm.hidden.encode(texts), atol=1e-4)


def test_an_encoder_without_layers_is_its_own():
    assert ENCODER.hidden is ENCODER and ENCODER.depth == 1


def test_scores_of_layers_count_in_deviations():
    raw = np.array([[[2.0]], [[4.0]]])
    centre, scale = np.array([[1.0], [1.0]]), np.array([[1.0], [3.0]])
    assert squeezed(raw, centre, scale)[0, 0] == pytest.approx(0.75)  # one deviation
