"""The clamp is Dynamic SAE Guardrails' own, computed from the chosen features' rows only."""

from __future__ import annotations

import pytest
import torch

from guard import interventions
from guard.errors import ArtifactError, BadRequest
from guard.interventions.sae_clamp import SaeClamp
from guard.types import Chosen, Match, Prompt, Span

WIDTH, FEATURES, K = 24, 96, 5
CHOSEN = torch.tensor([7, 40, 90, 12, 55, 3])
METHOD = SaeClamp()
NONE = torch.ones(0, WIDTH)


class Autoencoder:
    """A whole autoencoder with every part in use, and DSG done with it as the paper says."""

    def __init__(self, normalisation: str = "none", k: int | None = None) -> None:
        draw = torch.Generator().manual_seed(0)
        self.w_enc = torch.randn(WIDTH, FEATURES, generator=draw, dtype=torch.float64) / WIDTH**0.5
        self.w_dec = torch.randn(FEATURES, WIDTH, generator=draw, dtype=torch.float64)
        self.b_enc = torch.randn(FEATURES, generator=draw, dtype=torch.float64) / 4
        self.b_dec = torch.randn(WIDTH, generator=draw, dtype=torch.float64) / 5
        self.threshold = 2 * torch.rand(FEATURES, generator=draw, dtype=torch.float64) + 0.5
        self.normalisation, self.k = normalisation, k

    def read(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float, torch.Tensor | float]:
        """Input, and the scale and the shift that bring its outputs back."""
        if self.normalisation == "layer_norm":
            mean, std = h.mean(1, keepdim=True), h.std(1, keepdim=True)
            return (h - mean) / (std + 1e-5), std, mean
        if self.normalisation == "constant_norm_rescale":
            scale = h.norm(dim=1, keepdim=True) / WIDTH**0.5
            return h / scale, scale, 0.0
        return h, 1.0, 0.0

    def encode(self, h: torch.Tensor) -> torch.Tensor:
        before = (self.read(h)[0] - self.b_dec) @ self.w_enc + self.b_enc
        if self.k is None:
            return before.relu() * (before > self.threshold)
        best = before.topk(self.k, dim=1)
        return torch.zeros_like(before).scatter(1, best.indices, best.values.relu())

    def clamped(self, h: torch.Tensor, strength: float) -> torch.Tensor:
        """dec(z') + (h - dec(z)) at hot tokens, with a push of `strength` residual norms."""
        z = self.encode(h)
        _, scale, shift = self.read(h)

        def decode(features: torch.Tensor) -> torch.Tensor:
            return (features @ self.w_dec + self.b_dec) * scale + shift

        norms = self.w_dec[CHOSEN].norm(dim=1)
        length = (self.w_dec[CHOSEN] / norms[:, None]).sum(0).norm()
        forced = z.clone()
        forced[:, CHOSEN] = -strength * h.norm(dim=1, keepdim=True) / length / scale / norms
        hot = (z[:, CHOSEN] > 0).any(dim=1, keepdim=True)
        return torch.where(hot, decode(forced) + (h - decode(z)), h)

    def artifact(self) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        bias = self.b_enc - self.b_dec @ self.w_enc
        tensors = {"encoder": self.w_enc, "bias": bias, "decoder": self.w_dec[CHOSEN]}
        facts: dict[str, object] = {"normalisation": self.normalisation}
        if self.k is not None:
            return {**tensors, "threshold": torch.zeros(len(CHOSEN)), "index": CHOSEN}, {**facts, "k": self.k}
        rows = {"encoder": self.w_enc[:, CHOSEN], "bias": bias[CHOSEN], "threshold": self.threshold[CHOSEN]}
        return tensors | rows, facts


def residuals(n: int = 400) -> torch.Tensor:
    return 3 * torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(1))


def edit(x: torch.Tensor, table: object, strength: float = 1.5) -> torch.Tensor:
    rows = torch.zeros(len(x), dtype=torch.int64)
    return METHOD.edit(x, rows, rows, 2, {"strength": strength}, table)


def table(autoencoder: Autoencoder) -> object:
    return METHOD.load(*autoencoder.artifact())


@pytest.mark.parametrize("k", [None, K])
@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("strength", [0.0, 1.5])
def test_it_is_the_paper_s_clamp(normalisation: str, k: int | None, strength: float) -> None:
    autoencoder, x = Autoencoder(normalisation, k), residuals()
    expected = autoencoder.clamped(x.double(), strength).float()
    hot = (expected != x).any(dim=1)
    assert 0.05 < hot.float().mean() < 0.95
    out = edit(x, table(autoencoder), strength)
    assert torch.allclose(out, expected, atol=1e-4)
    assert torch.equal(out[~hot], x[~hot])


def test_the_push_is_relative_to_the_residual_and_along_all_features() -> None:
    autoencoder, x = Autoencoder(), residuals()
    moved = edit(x, table(autoencoder), 2.0) - edit(x, table(autoencoder), 0.0)
    hot = moved.abs().sum(dim=1) > 0
    assert torch.allclose(moved.norm(dim=1)[hot], 2 * x.norm(dim=1)[hot], rtol=1e-4)
    rows = autoencoder.w_dec[CHOSEN]
    along = (rows / rows.norm(dim=1, keepdim=True)).sum(0)
    assert torch.allclose(
        moved[hot].double() @ along, -along.norm() * moved[hot].norm(dim=1).double(), rtol=1e-4
    )


@pytest.mark.parametrize("k", [None, K])
def test_an_edit_is_the_same_for_any_chunking(k: int | None) -> None:
    x, held = residuals(), table(Autoencoder(k=k))
    parts = torch.cat([edit(x[a:b], held) for a, b in ((0, 1), (1, 18), (18, 400))])
    assert torch.allclose(parts, edit(x, held), rtol=1e-6)
    assert torch.equal(edit(residuals(), held), edit(x, held))


def test_only_residuals_that_show_a_feature_are_changed_and_the_input_is_left_alone() -> None:
    x, held = residuals(), table(Autoencoder())
    kept = x.clone()
    edit(x, held)
    assert torch.equal(x, kept)


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": torch.ones(WIDTH, 2)},
        {"bias": torch.ones(2)},
        {"threshold": torch.ones(2)},
        {"decoder": torch.zeros(len(CHOSEN), WIDTH)},
        {
            "encoder": torch.ones(WIDTH, 0),
            "bias": torch.ones(0),
            "threshold": torch.ones(0),
            "decoder": torch.ones(0, WIDTH),
        },
        {"index": CHOSEN},
    ],
)
def test_an_artifact_that_does_not_fit_is_refused(change: dict[str, torch.Tensor]) -> None:
    tensors, facts = Autoencoder().artifact()
    with pytest.raises(ArtifactError):
        METHOD.load(tensors | change, facts)


def test_an_unknown_normalisation_is_refused() -> None:
    tensors, _ = Autoencoder().artifact()
    with pytest.raises(ArtifactError, match="normalisation"):
        METHOD.load(tensors, {"normalisation": "covariance_whitening"})


ARTIFACT = "ab" * 32
PROMPT = Prompt(
    "Who is Jane Doe?", tuple(range(5)), (Span(0, 3), Span(3, 6), Span(6, 11), Span(11, 15), Span(15, 16))
)


def plan(
    facts: object = None, prompt: Prompt = PROMPT, spans: tuple[Span, ...] = (Span(7, 15),), **params: object
):
    matches = tuple(Match(f"t{i}", 1, 1.0, 0.5, "lexical", (span,)) for i, span in enumerate(spans))
    chosen = Chosen(
        "sae_clamp", {"artifact": ARTIFACT, **params}, matches, {"layers": [3]} if facts is None else facts
    )
    return METHOD.plan(chosen, prompt, lambda target: f"{target:0>16}".replace("t", "a")).edits


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [("spans", (2, 3)), ("window", (2, 3)), ("prompt", (1, 2, 3, 4)), ("last", (4,))],
)
def test_which_tokens(tokens: str, expected: tuple[int, ...]) -> None:
    (planned,) = plan(tokens=tokens)
    assert planned.positions == expected
    assert (planned.site, planned.layer, planned.method, planned.table) == (
        "residual",
        3,
        "sae_clamp",
        ARTIFACT,
    )


def test_the_answer_is_edited_unless_it_is_asked_not_to() -> None:
    assert plan()[0].onward
    assert not plan(onward=False)[0].onward


def test_one_edit_for_all_matches_and_each_layer() -> None:
    edits = plan({"layers": [1, 4]}, spans=(Span(0, 3), Span(7, 15)), tokens="spans")
    assert [(e.layer, e.positions, e.seed) for e in edits] == [
        (1, (0, 2, 3), "00000000000000a0"),
        (4, (0, 2, 3), "00000000000000a0"),
    ]


def test_a_match_outside_the_prompt_takes_all_of_it() -> None:
    assert plan(spans=(Span(90, 91),), tokens="spans")[0].positions == (1, 2, 3, 4)
    assert plan(prompt=Prompt("hi", (7,), (Span(0, 2),)))[0].positions == (0,)


def test_it_cannot_act_without_an_artifact_a_layer_or_a_prompt() -> None:
    assert plan(artifact=None) == ()
    assert plan({}) == ()
    assert plan(prompt=Prompt("")) == ()


@pytest.mark.parametrize(
    "params",
    [{"c": 500}, {"strength": -1}, {"strength": float("nan")}, {"tokens": "all"}, {"artifact": "../x"}],
)
def test_unknown_parameters_are_refused(params: dict[str, object]) -> None:
    with pytest.raises(BadRequest, match="sae_clamp"):
        interventions.check_params("sae_clamp", params)
