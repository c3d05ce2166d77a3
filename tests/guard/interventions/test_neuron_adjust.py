"""Neurons are adjusted as the paper says: with densities, deviations and the reflected map, by a draw of their own."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal

from guard import interventions
from guard.errors import ArtifactError, BadRequest
from guard.interventions.neuron_adjust import NeuronAdjust
from guard.types import Chosen, Match, Prompt, Span

WIDTH, SEED = 12, 0x0123456789ABCDEF
INDEX = torch.tensor([2, 3, 11])
FORGET = torch.tensor([[1.0, 2.0, -1.0], [0.5, 1.5, 2.0]], dtype=torch.float64)  # means, deviations
RETAIN = torch.tensor([[-1.0, 0.5, -2.0], [1.0, 0.7, 0.5]], dtype=torch.float64)
METHOD = NeuronAdjust()
TENSORS = {"4.index": INDEX, "4.forget": FORGET, "4.retain": RETAIN}
TABLE = METHOD.load(TENSORS, {"layers": [4]})


def edit(x: torch.Tensor, positions: torch.Tensor, seed: int = SEED, strength: float = 1.0) -> torch.Tensor:
    return METHOD.edit(x, positions, torch.full_like(positions, seed), 4, {"strength": strength}, TABLE)


def values(n: int = 20_000) -> torch.Tensor:
    return 2 * torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(0))


def test_a_changed_value_is_mapped_to_the_retain_gaussian_and_reflected() -> None:
    x = values()
    out = edit(x, torch.arange(len(x)))
    v, new = x[:, INDEX].double(), out[:, INDEX].double()
    mapped = (v - FORGET[0]) / FORGET[1] * RETAIN[1] + RETAIN[0]
    expected = 2 * RETAIN[0] - mapped
    changed = (new - v).abs() > 1e-9
    assert 0.1 < changed.double().mean() < 0.9
    assert torch.allclose(new[changed], expected[changed], atol=1e-5)


def test_values_are_changed_as_often_as_the_densities_say() -> None:
    n = 40_000
    rows = torch.tensor([[1.2, 1.5, -1.2]]).double()
    x = torch.zeros(n, WIDTH)
    x[:, INDEX] = rows.float()
    changed = (edit(x, torch.arange(n))[:, INDEX] != x[:, INDEX]).double().mean(dim=0)
    p_forget, p_retain = (Normal(g[0], g[1]).log_prob(rows).exp()[0] for g in (FORGET, RETAIN))
    expected = torch.where(p_retain <= p_forget, 1 - p_retain / (p_retain + p_forget), 0.0)
    assert expected[0] > 0.5
    assert torch.allclose(changed, expected, atol=0.01)


def test_a_value_that_is_likelier_to_be_retained_is_never_changed() -> None:
    x = values()
    out = edit(x, torch.arange(len(x)))
    likelier = Normal(*RETAIN).log_prob(x[:, INDEX].double()) > Normal(*FORGET).log_prob(x[:, INDEX].double())
    assert likelier.any()
    assert torch.equal(out[:, INDEX][likelier], x[:, INDEX][likelier])


def test_values_beyond_all_experience_stay_finite() -> None:
    x = torch.full((2, WIDTH), 1e4)
    out = edit(x, torch.arange(2))
    assert torch.isfinite(out).all()
    assert (out[:, 3] != x[:, 3]).all()  # its forget Gaussian is the wider one
    assert torch.equal(out[:, 2], x[:, 2])  # and here the retain one


def test_other_neurons_and_the_input_are_left_alone() -> None:
    x = values(500)
    kept = x.clone()
    out = edit(x, torch.arange(500))
    others = [i for i in range(WIDTH) if i not in INDEX.tolist()]
    assert torch.equal(out[:, others], x[:, others])
    assert torch.equal(x, kept)


def test_the_draw_is_that_of_seed_position_layer_and_neuron() -> None:
    x, positions = values(300), torch.arange(300)
    whole = edit(x, positions)
    torch.manual_seed(1)
    parts = [edit(x[a:b], positions[a:b]) for a, b in ((0, 1), (1, 17), (17, 300))]
    assert torch.equal(torch.cat(parts), whole)
    same = torch.full((300, WIDTH), 0.3)
    assert len(edit(same, positions).unique(dim=0)) > 1
    assert not torch.equal(edit(same, positions, seed=7), edit(same, positions))
    both = METHOD.load(
        {**TENSORS, **{k.replace("4", "5"): v for k, v in TENSORS.items()}}, {"layers": [4, 5]}
    )
    drawn = [
        METHOD.edit(same, positions, torch.full_like(positions, SEED), i, {"strength": 1.0}, both)
        for i in (4, 5)
    ]
    assert torch.equal(drawn[0], edit(same, positions))
    assert not torch.equal(*drawn)
    first = [gaussian[:, [0, 0, 0]] for gaussian in (FORGET, RETAIN)]
    twins = METHOD.load({"4.index": INDEX, "4.forget": first[0], "4.retain": first[1]}, {"layers": [4]})
    seeds = torch.full_like(positions, SEED)
    out = METHOD.edit(same, positions, seeds, 4, {"strength": 1.0}, twins)
    assert not torch.equal(out[:, 2], out[:, 3])


def test_strength_is_the_reach_beyond_the_retain_mean() -> None:
    x, positions = values(2_000), torch.arange(2_000)
    moved = [edit(x, positions, strength=s)[:, INDEX].double() - RETAIN[0] for s in (0.0, 1.0, 3.0)]
    changed = (edit(x, positions, strength=0.0) != x)[:, INDEX]
    assert moved[0][changed].abs().max() < 1e-6
    assert torch.allclose(moved[2][changed], 3 * moved[1][changed], atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"4.index": INDEX[:2]},
        {"4.retain": RETAIN[:1]},
        {"4.retain": torch.stack([RETAIN[0], torch.tensor([1.0, 0.0, 1.0])])},
    ],
)
def test_an_artifact_that_does_not_fit_is_refused(change: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ArtifactError):
        METHOD.load(TENSORS | change, {"layers": [4]})


def test_one_edit_for_each_layer_of_the_artifact() -> None:
    prompt = Prompt("Who is Jane?", (1, 2, 3), (Span(0, 3), Span(3, 6), Span(6, 12)))
    match = Match("jane", 1, 1.0, 0.5, "lexical", (Span(7, 11),))
    chosen = Chosen("neuron_adjust", {"artifact": "ab" * 32}, (match,), {"layers": [0, 4]})
    edits = METHOD.plan(chosen, prompt, lambda _: "0123456789abcdef").edits
    assert [(e.site, e.layer, e.method, e.table) for e in edits] == [
        ("neuron", 0, "neuron_adjust", "ab" * 32),
        ("neuron", 4, "neuron_adjust", "ab" * 32),
    ]


@pytest.mark.parametrize("params", [{"share": 0.1}, {"strength": -1}, {"strength": float("inf")}])
def test_unknown_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(BadRequest, match="neuron_adjust"):
        interventions.check_params("neuron_adjust", params)
