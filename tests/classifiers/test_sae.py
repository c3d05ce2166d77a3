"""Chosen rows do what SAELens' whole autoencoder does, and the features chosen are those that tell the sets apart."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from classifiers import sae_report
from classifiers.activations import load_model
from classifiers.base import Task, run, schemas
from classifiers.data import encode
from classifiers.sae import choose, export, fidelity, frequency, gate, mean_squares
from guard.errors import BadRequest
from guard.interventions.gates import Limits
from guard.interventions.sae_clamp import SaeClamp, normalised
from server.jobs import check_params
from tests.classifiers.tiny import FORGET, KNOWN, save_model

WIDTH, FEATURES = 16, 64
INDEX = torch.tensor([3, 60, 17, 8])


@pytest.fixture(scope="module")
def lens() -> Any:
    """SAELens, which is in the extra `train`; what it imports warns about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens", exc_type=ImportError)


def residuals(n: int, seed: int = 0) -> torch.Tensor:
    return 4 * torch.randn(n, WIDTH, generator=torch.Generator().manual_seed(seed)) + 1


def autoencoder(lens: Any, kind: str, **config: Any) -> Any:
    """An inference autoencoder of SAELens with every parameter drawn at random."""
    name = {"standard": "Standard", "jumprelu": "JumpReLU", "topk": "TopK", "gated": "Gated"}[kind]
    if kind == "topk":
        config = {"k": 6, **config}
    cls, cls_config = getattr(lens, f"{name}SAE"), getattr(lens, f"{name}SAEConfig")
    sae = cls(cls_config(d_in=WIDTH, d_sae=FEATURES, **config))
    draw = torch.Generator().manual_seed(5)
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw) / 3
    if kind == "jumprelu":
        sae.threshold.data = sae.threshold.data.abs()
    return sae


CONFIGS = [
    ("standard", {}),
    ("standard", {"apply_b_dec_to_input": False}),
    ("standard", {"normalize_activations": "layer_norm"}),
    ("standard", {"normalize_activations": "constant_norm_rescale"}),
    ("jumprelu", {}),
    ("jumprelu", {"normalize_activations": "layer_norm", "apply_b_dec_to_input": False}),
    ("topk", {}),
    ("topk", {"rescale_acts_by_decoder_norm": True}),
    ("topk", {"rescale_acts_by_decoder_norm": True, "normalize_activations": "layer_norm"}),
]


@pytest.mark.parametrize(("kind", "config"), CONFIGS)
def test_the_rows_do_what_the_whole_does(lens: Any, kind: str, config: dict[str, Any]) -> None:
    sae, x = autoencoder(lens, kind, **config), residuals(300)
    tensors, facts = export(sae, INDEX, x, x, exact=kind == "topk")
    features = SaeClamp().load(tensors, facts)
    with torch.no_grad():
        z = sae.encode(x)
        without = z.clone()
        without[:, INDEX] = 0
        contribution = sae.decode(z)
        contribution = contribution - sae.decode(without) if not config.get("normalize_activations") else None
    assert 0 < (z[:, INDEX] > 0).double().mean() < 1
    assert torch.allclose(features.active(x), z[:, INDEX], atol=1e-4)
    if contribution is not None:
        assert torch.allclose(features.active(x) @ features.decoder, contribution, atol=1e-3)


@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
def test_what_the_features_give_is_brought_back_to_residuals(lens: Any, how: Any) -> None:
    sae, x = autoencoder(lens, "standard", normalize_activations=how), residuals(50)
    features = SaeClamp().load(*export(sae, INDEX, x, x))
    with torch.no_grad():
        z = sae.encode(x)
        whole = sae.decode(z)
        sae.encode(x)  # SAELens keeps the scale of the last input until it decodes
        z[:, INDEX] = 0
        without = sae.decode(z)
    scale = normalised(x, how)[1]
    assert torch.allclose((features.active(x) @ features.decoder) * scale, whole - without, atol=1e-3)


def test_thresholds_of_topk_are_passed_as_often_as_the_feature_is_active(lens: Any) -> None:
    sae, forget, retain = autoencoder(lens, "topk"), residuals(400), residuals(600, seed=1)
    index = torch.arange(0, FEATURES, 2)
    tensors, facts = export(sae, index, forget, retain)
    assert tensors["encoder"].shape == (WIDTH, len(index))
    assert "k" not in facts
    both = torch.cat([forget, retain])
    approximate = (SaeClamp().load(tensors, facts).active(both) > 0).sum(dim=0)
    with torch.no_grad():
        truly = (sae.encode(both)[:, index] > 0).sum(dim=0)
    assert torch.equal(approximate, truly)


def test_an_autoencoder_that_cannot_be_had_from_rows_is_refused(lens: Any) -> None:
    x = residuals(4)
    with pytest.raises(BadRequest, match="gated"):
        export(autoencoder(lens, "gated"), INDEX, x, x)
    with pytest.raises(BadRequest, match="covariance_whitening"):
        export(autoencoder(lens, "standard", normalize_activations="covariance_whitening"), INDEX, x, x)


def test_features_are_scored_by_their_average_square() -> None:
    class Given:
        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return x

    activations = torch.tensor([[3.0, 0.0], [1.0, 2.0]])
    assert mean_squares(Given(), activations).tolist() == [5.0, 2.0]


def test_fidelity_and_frequency_are_those_of_the_activations() -> None:
    class Halves:
        """Reads the first column alone, and only where it is above 1."""

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x > 1, x, 0.0) * torch.tensor([1.0, 0.0])

        def decode(self, z: torch.Tensor) -> torch.Tensor:
            return z

    x = torch.tensor([[3.0, 1.0], [0.0, 1.0], [3.0, 1.0], [2.0, 5.0]])
    explained, active = fidelity(Halves(), x)
    assert explained == pytest.approx(1 - 28 / 18) and active == 0.75
    assert frequency(Halves(), x).tolist() == [0.75, 0.0]


def test_chosen_are_the_strongest_among_the_telling() -> None:
    forget = torch.tensor([9.0, 5.0, 4.0, 3.0, 0.0, 0.0, 0.0, 0.0])
    retain = torch.tensor([9.0, 0.1, 0.2, 0.0, 1.0, 1.0, 1.0, 1.0])
    assert choose(forget, retain, 2, 50.0).tolist() == [0, 1]
    assert choose(forget, retain, 2, 60.0).tolist() == [1, 2]
    assert choose(forget, retain, 9, 60.0).tolist() == [1, 2, 3]
    with pytest.raises(BadRequest, match="No feature"):
        choose(torch.zeros(8), retain, 2, 50.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tiny"))


QUICK = {
    "layer": 1,
    "steps": 40,
    "batch": 32,
    "active": 4,
    "expansion": 3,
    "choose": 3,
    "ratio_percentile": 50.0,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "standard"])
def test_training_makes_an_artifact_and_a_folder_that_is_taken_again(
    lens: Any, model: Path, tmp_path: Path, architecture: str
) -> None:
    task = Task(model, FORGET, KNOWN, tmp_path / "one")
    made = run("sae", task, {**QUICK, "architecture": architecture, "sae": tmp_path / "sae"})
    assert made.manifest.method == "sae_clamp"
    assert made.manifest.facts["layers"] == [1]
    features = SaeClamp().load(made.tensors(), made.manifest.facts)
    assert features.decoder.shape == (len(made.manifest.facts["features"]), WIDTH)
    assert made.manifest.measured["hot_tokens"]["forget"] > 0
    again = run("sae", Task(model, FORGET, KNOWN, tmp_path / "two"), {**QUICK, "sae": tmp_path / "sae"})
    assert again.manifest.facts == made.manifest.facts
    assert all(torch.equal(again.tensors()[name], value) for name, value in made.tensors().items())


@pytest.mark.filterwarnings("ignore")
def test_an_autoencoder_of_another_width_is_refused(lens: Any, model: Path, tmp_path: Path) -> None:
    lens.StandardSAE(lens.StandardSAEConfig(d_in=8, d_sae=16)).save_model(tmp_path / "sae")
    with pytest.raises(BadRequest, match="8 columns"):
        run("sae", Task(model, FORGET, KNOWN, tmp_path / "out"), {**QUICK, "sae": tmp_path / "sae"})


def test_it_needs_both_sets(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="both"):
        run("sae", Task(model, FORGET, (), tmp_path), QUICK)


@pytest.mark.parametrize("apart", [True, False])
def test_a_gate_is_calibrated_where_the_features_tell_the_sets_apart(model: Path, apart: bool) -> None:
    """The one feature stands for a token that only the forget examples have, or for one that only the others have."""
    from classifiers.activations import collect

    loaded, tokenizer = load_model(model)
    word = tokenizer.convert_tokens_to_ids("jane" if apart else "baker")
    examples = [encode(tokenizer, e) for e in (*FORGET, *KNOWN)]
    rows = [
        values[0][torch.tensor(e.ids) == word] for e, values in collect(loaded, examples, "residual", [1])
    ]

    class Known:
        def active(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.cdist(x, torch.cat(rows)).amin(dim=1, keepdim=True) < 1e-3).float()

    found, measured = gate(Known(), loaded, tokenizer, Task(model, FORGET * 4, KNOWN * 4, model), 1)
    if not apart:
        assert (found, measured) == ({}, {})
        return
    assert Limits(**found["gate"]).rate < 1
    assert measured == {
        "gate_fires": {"forget": 1.0, "retain": 0.0},
        "gate_examples": {"forget": 4, "retain": 4},
    }


def test_a_report_shows_each_feature_where_it_is_most_active(model: Path) -> None:
    """One feature is a column of the residual, one its negative, one is never active."""
    loaded, tokenizer = load_model(model)

    class Columns:
        def active(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([x[:, 3].relu(), (-x[:, 3]).relu(), 0 * x[:, 3]], dim=1)

    sets = {"forget": FORGET, "retain": KNOWN}
    up, down, never = sae_report.look(Columns(), [30, 7, 9], loaded, tokenizer, sets, 1)
    values: dict[tuple[str, str], tuple[float, str]] = {}
    signs = {"forget": [0, 0, 0], "retain": [0, 0, 0]}
    for name, examples in sets.items():
        for example in examples:
            ids = encode(tokenizer, example).ids
            with torch.no_grad():
                seen = behind_the_last_layer(loaded, ids)[1:, 3]
            for sign, kept in ((seen > 0, 0), (seen < 0, 1), (seen == seen, 2)):
                signs[name][kept] += int(sign.sum())
            peak = int(seen.argmax())
            values[name, example.turns[0][1]] = float(seen[peak]), tokenizer.decode([ids[peak + 1]])
    assert [up.index, down.index, never.index] == [30, 7, 9]
    assert up.active == {name: pytest.approx(n / total) for name, (n, _, total) in signs.items()}
    assert down.active == {name: pytest.approx(n / total) for name, (_, n, total) in signs.items()}
    assert never.strongest == [] and set(never.active.values()) == {0.0}
    peaks = [(value, name, token) for (name, _), (value, token) in values.items() if value > 0]
    expected = sorted(peaks, reverse=True)
    assert 1 < len(expected) < len(values)
    found = [(shown.activation, shown.of, shown.token) for shown in up.strongest]
    assert [one[1:] for one in found] == [one[1:] for one in expected]
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-5)
    first = up.strongest[0]
    asked = max(values, key=lambda key: values[key][0])[1]
    assert f"{first.before} {first.token} {first.behind}".split()[: len(asked.split())] == asked.split()


def behind_the_last_layer(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """[tokens, width], before the final norm."""
    seen: list[torch.Tensor] = []
    hook = model.model.layers[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(torch.tensor([ids]))
    hook.remove()
    return seen[0].reshape(len(ids), -1)


@pytest.mark.filterwarnings("ignore")
def test_the_report_has_the_text_and_the_artifact_has_none(lens: Any, model: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "features.html"
    made = run("sae", Task(model, FORGET, KNOWN, tmp_path / "out"), {**QUICK, "report": page})
    text = page.read_text(encoding="utf-8")
    assert "<mark>" in text and "jane" in text
    assert all(f"<h2>{number}</h2>" in text for number in made.manifest.facts["features"])
    for path in made.folder.iterdir():
        assert b"jane" not in path.read_bytes() and str(tmp_path).encode() not in path.read_bytes()


def test_the_report_does_not_lie_in_the_artifact_and_no_job_writes_one(model: Path, tmp_path: Path) -> None:
    task = Task(model, FORGET, KNOWN, tmp_path / "out")
    with pytest.raises(BadRequest, match="beside the artifact"):
        run("sae", task, {**QUICK, "report": tmp_path / "out" / "features.html"})
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadRequest, match="no parameter 'report'"):
        check_params("sae", {"layer": 1, "report": "features.html"}, schemas())


def test_what_examples_say_is_text_on_the_page(tmp_path: Path) -> None:
    shown = sae_report.Shown(1.0, "forget", "<b>", "a&b", "<script>")
    sae_report.write(tmp_path / "page.html", [sae_report.Feature(4, {"forget": 0.5}, [shown])], 2)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;<mark>a&amp;b</mark>&lt;script&gt;" in text and "50.00%" in text and "layer 2" in text
