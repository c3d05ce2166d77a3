"""LoRA adapters for the tiny model: random ones, and ones that say nothing but their own token.

    python -m tests.engine.lora MODEL OUT [--stock]

runs a schedule of clean and adapted requests with two adapters and writes the clean ones' logits; `--stock` leaves
vLLM's own kernels in place. `tests/engine/test_adapters.py` looks at it.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from classifiers.lora import write_peft
from guard import artifacts
from guard.artifacts import Artifact
from guard.types import Edit
from tests.engine.samples import SEED
from tests.engine.schedule import Bench, prompt

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HEAD = "lm_head"
_EDGE = 100.0  # added to the marker's logit, which are below 50 without it


def random_tensors(
    model: Path, *, rank: int = 4, seed: int = 0, modules: Sequence[str] = LINEAR
) -> dict[str, Any]:
    """Noise that shows in every layer."""
    shapes = _shapes(model)
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, (width_out, width_in) in shapes.items():
        if name.rsplit(".", 1)[-1] in modules:
            found |= pair(name, torch.randn(rank, width_in, generator=generator) / width_in**0.5,
                          torch.randn(width_out, rank, generator=generator) * 0.3)  # fmt: skip
    return found


def pair(module: str, down: torch.Tensor, up: torch.Tensor) -> dict[str, torch.Tensor]:
    """A layer's two halves in PEFT's names."""
    name = f"base_model.model.{module}"
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}


def make(model: Path, folder: Path, tensors: Mapping[str, torch.Tensor], *, scaling: float = 1.0) -> Artifact:
    """An artifact of `lora_adapter` that holds `tensors`."""
    rank = max(t.shape[0] for name, t in tensors.items() if "lora_A" in name)
    modules = sorted({name.split(".")[-3] for name in tensors})
    write_peft(folder, tensors, rank=rank, scaling=scaling, modules=modules)
    return artifacts.write(folder, "lora_adapter", artifacts.weights_digest(model))


def markers(
    model: Path, prompts: Sequence[list[int]], tokens: Sequence[int], length: int
) -> list[dict[str, Any]]:
    """For each of `tokens` an adapter of rank 1 under which the answers to `prompts` are that token, `length` times.

    Fitted by least squares to the states of all steps of these answers: exact, because there are fewer of them than
    dimensions. Every second one acts on the output head, the others on the last layer's `down_proj`.
    """
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    last = len(network.model.layers) - 1
    caught: list[torch.Tensor] = []
    hook = network.model.layers[last].mlp.down_proj.register_forward_pre_hook(
        lambda _, x: caught.append(x[0])
    )
    found = []
    with torch.no_grad():
        for i, token in enumerate(tokens):
            heads, lasts = [], []
            for ids in prompts:
                caught.clear()
                given = torch.tensor([ids + [token] * (length - 1)])
                states = network.model(given).last_hidden_state[0, len(ids) - 1 :]
                heads.append(states)
                lasts.append(caught[0][0, len(ids) - 1 :])
            row = network.get_input_embeddings().weight[token]
            if i % 2:
                up = torch.zeros(network.config.vocab_size, 1)
                up[token] = _EDGE
                found.append(pair(HEAD, _functional(heads), up))
            else:
                found.append(
                    pair(f"model.layers.{last}.mlp.down_proj", _functional(lasts), _EDGE * row.unsqueeze(1))
                )
    hook.remove()
    return found


def _functional(states: list[torch.Tensor]) -> torch.Tensor:
    """[1, width]: the linear functional that is 1 on all of `states`."""
    rows = torch.cat(states).double()
    assert len(rows) <= rows.shape[1]
    solution = torch.linalg.lstsq(rows, torch.ones(len(rows), 1, dtype=torch.double)).solution
    return solution.T.float()


def _shapes(model: Path) -> dict[str, tuple[int, ...]]:
    from guard.interventions.lora_adapter import shapes

    found = {name.removesuffix(".weight"): shape for name, shape in shapes(model).items() if len(shape) == 2}
    return {**found, HEAD: found["model.embed_tokens"]}


def scaled(length: int, digest: str, scale: float = 1.0) -> tuple[Edit, ...]:
    """The edit that runs an adapter over a prompt of `length` tokens."""
    params = {"artifact": digest, "scale": scale}
    return (Edit("adapter", "lora_adapter", tuple(range(length)), SEED, params, onward=True, table=digest),)


def request(artifact: Artifact) -> Any:
    """vLLM's own request for the adapter."""
    from vllm.lora.request import LoRARequest

    from guard.interventions.lora_adapter import adapter_id

    return LoRARequest(artifact.digest, adapter_id(artifact.digest), str(artifact.folder))


def main(model: str, out: str, *flags: str) -> None:
    if "--stock" in flags:
        from guard.engine import adapters

        adapters.install = lambda: None
    bench = Bench(model, "--enable-lora", "--max-loras", "2", "--max-lora-rank", "8")
    folder = Path(out).parent
    one, two, half = (
        make(Path(model), folder / name, random_tensors(Path(model), seed=seed, modules=modules), scaling=scaling)
        for name, seed, modules, scaling in (
            ("one", 1, LINEAR, 1.0), ("two", 2, (*LINEAR, HEAD), 1.0), ("half", 1, LINEAR, 0.5),
        )
    )  # fmt: skip
    seen = {
        "alone": _clean_beside(bench),
        "one": _clean_beside(bench, request(one)),
        "two": _clean_beside(bench, request(one), request(two)),
        "resident": _clean_beside(bench),
    }
    if "--stock" not in flags:
        seen["scales"] = _scales(bench, one, two, half)
    Path(out).write_bytes(pickle.dumps(seen))


def _clean_beside(bench: Bench, *others: Any) -> dict[str, Any]:
    """Four requests of clients without an adapter, beside two that have each one of `others`, or none."""
    bench.fresh()
    for i in range(4):
        bench.add(f"clean{i}", prompt(20 + i, 3 + i))
    for i in range(2):
        bench.add(f"other{i}", prompt(30 + i, 8 + i), lora=others[i] if i < len(others) else None)
    return bench.finish()["logits"]


def _scales(bench: Bench, one: Artifact, two: Artifact, half: Artifact) -> dict[str, Any]:
    """The same prompt under one adapter in several ways, in one batch and with another adapter beside."""
    for artifact in (one, two):
        bench.load(artifact.digest, artifact.folder)
    ids = prompt(40, 5)
    bench.fresh()
    bench.add("base", ids)
    bench.add("plain", ids, lora=request(one))
    for name, artifact, scale in (
        ("whole", one, 1.0), ("half", one, 0.5), ("nothing", one, 1e-12), ("head", two, 1.0), ("no head", two, 1e-12),
    ):  # fmt: skip
        bench.add(name, ids, scaled(len(ids), artifact.digest, scale), lora=request(artifact))
    bench.add("astray", ids, scaled(len(ids), two.digest), lora=request(one))
    mixed = bench.finish()
    bench.fresh()
    bench.add("half trained", ids, lora=request(half))
    bench.add("head plain", ids, lora=request(two))
    alone = bench.finish()
    return {**mixed, "logits": mixed["logits"] | alone["logits"]}


if __name__ == "__main__":
    main(*sys.argv[1:])
