"""One sample of every method that acts inside the model: what the contract test runs. A method that stands in the
table without a sample here fails the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard import artifacts
from guard.types import Edit

SEED = "00112233445566ff"
GATE = {"window": 8, "rate": 0.0, "drift": 0.5, "cusum": 0.0}
"""Fires at the first token that shows a feature."""


@dataclass
class Sample:
    """Edits for a prompt of a given length, the artifact that they need, and for adapters vLLM's request of it.

    `make` writes an artifact that fits the model into the folder; its digest is given to `edits`. `lora` tells
    that it is an adapter; `request` is then vLLM's request of it.
    """

    plan: Callable[[int, str], tuple[Edit, ...]]
    make: Callable[[Path, Path], str] | None = None
    lora: bool = False
    digest: str = ""
    request: Any = None

    def load(self, bench: Any, model: Path, folder: Path) -> None:
        """Make the artifact and give it to the workers."""
        if self.make is not None:
            self.digest = self.make(model, folder)
            bench.load(self.digest, folder)
        if self.lora:
            from tests.engine.lora import request

            self.request = request(artifacts.read(folder))
            assert bench.engine.add_lora(self.request)

    def edits(self, length: int) -> tuple[Edit, ...]:
        """Edits for a prompt of `length` tokens."""
        return self.plan(length, self.digest)


def _corruption(length: int, digest: str) -> tuple[Edit, ...]:
    """Two edits of one site, overlapping, as two matched targets would ask for them."""
    params = {"strength": 8.0}
    first = tuple(range(0, max(length - 1, 1), 2))
    second = tuple(range(max(length // 2, 1)))
    return (
        Edit("embedding", "embedding_corruption", first, SEED, params),
        Edit("embedding", "embedding_corruption", second, SEED[::-1], params),
    )


def _everywhere(
    site: Any, method: str, *layers: int, **params: Any
) -> Callable[[int, str], tuple[Edit, ...]]:
    """All tokens but the first, and those of the answer, behind each of `layers`."""

    def plan(length: int, digest: str) -> tuple[Edit, ...]:
        positions = tuple(range(min(1, length - 1), length))
        return tuple(Edit(site, method, positions, SEED, params, layer, True, digest) for layer in layers)

    return plan


def _answer(method: str, **params: Any) -> Callable[[int, str], tuple[Edit, ...]]:
    """Every token of the answer."""
    return lambda length, digest: (Edit("logits", method, (length - 1,), SEED, params, None, True, digest),)


def _adapter(length: int, digest: str) -> tuple[Edit, ...]:
    params = {"artifact": digest, "scale": 0.5}
    return (Edit("adapter", "lora_adapter", tuple(range(length)), SEED, params, None, True, digest),)


def _made(method: str, facts: dict[str, Any], **shapes: tuple[int, ...]) -> Callable[[Path, Path], str]:
    """An artifact of random tensors with these shapes; a dot in a name is written as `__`."""

    def make(model: Path, folder: Path) -> str:
        import torch

        generator = torch.Generator().manual_seed(1)
        tensors = {
            name.strip("_").replace("__", "."): torch.randn(shape, generator=generator)
            for name, shape in shapes.items()
        }
        tensors = {
            n: t.abs() + 0.1 if n.endswith(("forget", "retain")) and "." in n else t
            for n, t in tensors.items()
        }
        if method == "neuron_adjust":
            tensors |= {f"{layer}.index": torch.arange(32) * 2 for layer in facts["layers"]}
        return artifacts.write(
            folder, method, artifacts.weights_digest(model), tensors=tensors, facts=facts
        ).digest

    return make


def _phrases(model: Path, folder: Path) -> str:
    """Everything that begins with a letter, so that whatever the model says is near a phrase."""
    from guard.interventions import check_params, load
    from guard.targets import TargetSpec

    words = [f"{a}{b}x zq{b}{a}k" for a in "abcdefghijklmnopqrstuvwxyz" for b in "aeiou"]
    spec = TargetSpec(name="Zyx Qwv", answers=tuple(f"It tells of {word.title()}." for word in words))
    method = load("token_penalty")
    prepared = method.prepare(spec, check_params("token_penalty", {}))
    assert prepared is not None
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in prepared.files.items():
        (folder / name).write_bytes(content)
    return artifacts.write(
        folder, "token_penalty", artifacts.weights_digest(model), facts=prepared.facts
    ).digest


def _assistant(model: Path, folder: Path) -> str:
    """The first block with noise in it."""
    import torch

    generator = torch.Generator().manual_seed(1)
    layer = "model.layers.0.self_attn.q_proj"
    tensors = {
        f"{layer}.lora_A.weight": torch.randn(4, 64, generator=generator),
        f"{layer}.lora_B.weight": torch.randn(64, 4, generator=generator),
    }
    facts = {"blocks": 1, "rank": 4, "alpha": 4.0}
    return artifacts.write(
        folder, "logit_difference", artifacts.weights_digest(model), tensors=tensors, facts=facts
    ).digest


def _lora(model: Path, folder: Path) -> str:
    from tests.engine.lora import make, random_tensors

    return make(model, folder, random_tensors(model)).digest


SAMPLES: dict[str, Sample] = {
    "embedding_corruption": Sample(_corruption),
    "steering": Sample(
        _everywhere("residual", "steering", 0, 1, mode="additive"),
        _made("steering", {"layers": [0, 1]}, forget=(2, 64), retain=(2, 64)),
    ),
    "sae_clamp": Sample(
        _everywhere("residual", "sae_clamp", 1),
        _made(
            "sae_clamp",
            {"layers": [1], "normalisation": "none", "gate": GATE},
            encoder=(64, 5),
            bias=(5,),
            threshold=(5,),
            decoder=(5, 64),
        ),
    ),
    "neuron_adjust": Sample(
        _everywhere("neuron", "neuron_adjust", 0, 1),
        _made(
            "neuron_adjust",
            {"layers": [0, 1]},
            **{f"_{layer}__{name}": (2, 32) for layer in (0, 1) for name in ("forget", "retain")},
        ),
    ),
    "token_penalty": Sample(_answer("token_penalty"), _phrases),
    "logit_difference": Sample(_answer("logit_difference", alpha=2.0), _assistant),
    "lora_adapter": Sample(_adapter, _lora, lora=True),
}
"""By method. The others of the table act on the prompt's text or on the reply."""
