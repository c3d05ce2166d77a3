"""Steering moves residuals along differences of means, each mode as its paper says."""

from __future__ import annotations

import pytest
import torch

from guard import interventions
from guard.errors import ArtifactError, BadRequest
from guard.interventions.steering import Steering
from guard.types import Chosen, Match, Prompt, Span

WIDTH, LAYERS = 16, [1, 3]
METHOD = Steering()
MEANS = {
    name: torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(i))
    for i, name in enumerate(("forget", "retain", "unknown"))
}
TABLE = METHOD.load(MEANS, {"layers": LAYERS})
X = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(9)) * torch.arange(1, 51).unsqueeze(1)


def edit(mode: str, strength: float = 1.0, x: torch.Tensor = X, layer: int = 3) -> torch.Tensor:
    rows = torch.zeros(len(x), dtype=torch.int64)
    return METHOD.edit(x, rows, rows, layer, {"mode": mode, "strength": strength}, TABLE)


def away(row: int) -> torch.Tensor:
    difference = MEANS["retain"][row] - MEANS["forget"][row]
    return difference / difference.norm()


@pytest.mark.parametrize(("layer", "row"), [(1, 0), (3, 1)])
def test_redirection_carries_the_forget_mean_to_the_unknown_mean(layer: int, row: int) -> None:
    at_forget = MEANS["forget"][row].repeat(2, 1)
    assert torch.allclose(
        edit("redirection", 1.0, at_forget, layer), MEANS["unknown"][row].repeat(2, 1), atol=1e-6
    )
    moved = edit("redirection", 2.0, layer=layer) - X
    assert torch.allclose(moved, 2 * (MEANS["unknown"] - MEANS["forget"])[row].expand_as(X), atol=1e-4)


@pytest.mark.parametrize(("layer", "row"), [(1, 0), (3, 1)])
def test_the_additive_push_is_relative_to_the_residual_and_away_from_what_is_forgotten(
    layer: int, row: int
) -> None:
    moved = edit("additive", 0.5, layer=layer) - X
    assert torch.allclose(moved.norm(dim=1), 0.5 * X.norm(dim=1), rtol=1e-4)
    assert torch.allclose(moved @ away(row), moved.norm(dim=1), rtol=1e-4)


@pytest.mark.parametrize(("layer", "row"), [(1, 0), (3, 1)])
def test_projection_removes_the_component_and_nothing_else(layer: int, row: int) -> None:
    out = edit("projection", layer=layer)
    assert (out @ away(row)).abs().max() < 1e-4
    across = X - (X @ away(row)).unsqueeze(1) * away(row)
    assert torch.allclose(out, across, atol=1e-4)
    assert torch.allclose(edit("projection", 0.5, layer=layer), (X + across) / 2, atol=1e-4)


@pytest.mark.parametrize("mode", ["additive", "projection", "redirection"])
def test_an_edit_is_the_same_for_any_chunking(mode: str) -> None:
    whole = edit(mode)
    assert torch.equal(torch.cat([edit(mode, x=X[a:b]) for a, b in ((0, 1), (1, 18), (18, 50))]), whole)
    assert torch.equal(edit(mode), whole)


@pytest.mark.parametrize(
    "means",
    [
        {**MEANS, "retain": MEANS["retain"][:1]},
        {**MEANS, "unknown": MEANS["unknown"][:, :4]},
        {**MEANS, "retain": MEANS["forget"]},
    ],
)
def test_an_artifact_that_does_not_fit_is_refused(means: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ArtifactError):
        METHOD.load(means, {"layers": LAYERS})


PROMPT = Prompt("Who is Jane?", (1, 2, 3), (Span(0, 3), Span(3, 6), Span(6, 12)))


def plan(facts: dict[str, object], **params: object):
    matches = (Match("jane", 1, 1.0, 0.5, "lexical", (Span(7, 11),)),)
    chosen = Chosen("steering", {"artifact": "ab" * 32, **params}, matches, facts)
    return METHOD.plan(chosen, PROMPT, lambda _: "0123456789abcdef").edits


def test_one_edit_for_each_layer_of_the_artifact() -> None:
    edits = plan({"layers": LAYERS, "unknown": True}, tokens="last")
    assert [(e.site, e.layer, e.positions, e.onward) for e in edits] == [
        ("residual", layer, (2,), METHOD.params_type().onward) for layer in LAYERS
    ]


def test_it_redirects_only_with_unknown_items() -> None:
    without = METHOD.load({k: v for k, v in MEANS.items() if k != "unknown"}, {"layers": LAYERS})
    assert not without.unknown
    facts = {"layers": LAYERS, "unknown": False}
    assert plan(facts, mode="redirection") == ()
    assert len(plan(facts, mode="additive")) == 2


@pytest.mark.parametrize(
    "params", [{"alpha": 1}, {"strength": 0}, {"strength": float("inf")}, {"mode": "sideways"}, {"onward": 3}]
)
def test_unknown_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(BadRequest, match="steering"):
        interventions.check_params("steering", params)
