"""What edits cost: throughput of the guarded engine against vLLM's own, with verdicts supplied and no detector.

Both engines run the same prompts in processes of their own, one block after the other, the order of the two
alternating; a ratio belongs to one pair of blocks. A share of the requests of the guarded engine is edited at
one site, or observed by an activation gate that stays quiet. Adapters have a guarded engine of their own: one that can
run them costs more also where none runs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click

from guard.artifacts import Artifact, weights_digest, write
from guard.interventions import check_params, load
from guard.metrics.bootstrap import mean_interval
from guard.targets import TargetSpec
from guard.types import Edit, Watch

ROOT = Path(__file__).parents[1]
SHARES = (0.1, 1.0)
SEED = "00112233445566ff"


@dataclass(frozen=True, slots=True)
class Block:
    """`requests` of `prompt` tokens that each answer `tokens`; the first `edited` of them with `edits` or `watches`."""

    requests: int
    prompt: int
    tokens: int
    edited: int = 0
    edits: tuple[Edit, ...] = ()
    watches: tuple[Watch, ...] = ()


SITES = {
    "embedding": ("embedding_corruption", None),
    "residual": ("steering", "layer"),
    "neuron": ("neuron_adjust", "layer"),
    "logits": ("token_penalty", None),
}
"""Site -> the method that stands for it, and whether it acts behind a layer."""
RANK = 8  # of the adapter, on every linear layer
FEATURES = 20  # of the gate
_QUIET = {"window": 32, "rate": 2.0, "drift": 0.5, "cusum": 1e9}


def edits_at(site: str, prompt: int, artifacts: Mapping[str, Artifact]) -> tuple[Edit, ...]:
    """The edit that a matched target asks for at that site: of the whole prompt and, but for the embedding, of
    every token of the answer."""
    method, layered = SITES[site]
    positions = (prompt - 1,) if site == "logits" else tuple(range(1, prompt - 1))
    artifact = artifacts.get(method)
    layers = artifact.manifest.facts["layers"] if artifact and layered else [None]
    digest, onward = (artifact.digest, True) if artifact else (None, False)
    return tuple(Edit(site, method, positions, SEED, {}, layer, onward, digest) for layer in layers)  # type: ignore[arg-type]


def make_artifacts(model: Path, out: Path) -> dict[str, Artifact]:
    """An artifact for each method that needs one, with random tensors of the model's shape, in its middle layer."""
    import torch

    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    layer, width, neurons = (
        config["num_hidden_layers"] // 2,
        config["hidden_size"],
        config["intermediate_size"],
    )
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(neurons, generator=generator)[: max(neurons // 100, 1)]
    gaussians = torch.rand(2, 2, len(chosen), generator=generator) + 0.5
    base = weights_digest(model)
    made = {
        "steering": (
            {"layers": [layer], "unknown": True},
            {name: torch.randn(1, width, generator=generator) for name in ("forget", "retain", "unknown")},
        ),
        "neuron_adjust": (
            {"layers": [layer]},
            {f"{layer}.index": chosen, f"{layer}.forget": gaussians[0], f"{layer}.retain": gaussians[1]},
        ),
    }
    made["sae_clamp"] = (
        {"layers": [layer], "normalisation": "none", "gate": _QUIET},
        {
            "encoder": torch.randn(width, FEATURES, generator=generator),
            "bias": torch.zeros(FEATURES),
            "threshold": torch.zeros(FEATURES),
            "decoder": torch.randn(FEATURES, width, generator=generator),
        },
    )
    found = {
        name: write(out / name, name, base, tensors=tensors, facts=facts)
        for name, (facts, tensors) in made.items()
    }
    answers = (row["answer"] for row in map(json.loads, (ROOT / "demo/items.jsonl").open(encoding="utf-8")))
    spec = TargetSpec(
        name="Everybody", answers=tuple(dict.fromkeys(a for a in answers if len(a) >= 12))[:1000]
    )
    prepared = load("token_penalty").prepare(spec, check_params("token_penalty", {}))
    assert prepared is not None
    for name, content in prepared.files.items():
        (out / "token_penalty").mkdir(parents=True, exist_ok=True)
        (out / "token_penalty" / name).write_bytes(content)
    return {
        **found,
        "token_penalty": write(out / "token_penalty", "token_penalty", base, facts=prepared.facts),
    }


def make_adapter(model: Path, out: Path) -> dict[str, Artifact]:
    """An adapter of small random numbers on every linear layer."""
    import torch

    from classifiers.lora import write_peft
    from guard.interventions.lora_adapter import shapes

    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes(model).items():
        if name.endswith("_proj.weight"):
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{layer}.lora_A.weight"] = torch.randn(RANK, shape[1], generator=generator) / shape[1]
            tensors[f"{layer}.lora_B.weight"] = torch.randn(shape[0], RANK, generator=generator) / RANK
    modules = sorted({name.split(".")[-3] for name in tensors})
    write_peft(out / "lora_adapter", tensors, rank=RANK, scaling=1.0, modules=modules)
    return {"lora_adapter": write(out / "lora_adapter", "lora_adapter", weights_digest(model))}


def make_model(shape: Path, out: Path) -> Path:
    """A model of that configuration with random weights, beside the demo model's tokenizer. It says text: rows of the
    embedding that stand for none are zero."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "demo" / "models" / "full" / name, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    torch.manual_seed(0)
    (out / "config.json").write_text(shape.read_text(encoding="utf-8"), encoding="utf-8")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out), dtype=torch.float32)
    rows = model.get_input_embeddings().weight
    spoken = [i for i in range(len(tokenizer)) if tokenizer.decode([i]).isascii()]
    silent = torch.ones(len(rows), dtype=torch.bool)
    silent[spoken], silent[tokenizer.all_special_ids] = False, True
    rows.data[silent] = 0
    model.save_pretrained(out)
    return out


def _engine(
    pipe: Connection, model: str, guarded: bool, adapters: bool, artifacts: Mapping[str, str]
) -> None:
    """The child: builds one engine, then runs the blocks it is sent and answers with their seconds."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="WARNING")
    from guard.engine import launch

    launch.pin_environment()
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import SamplingParams
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.llm_engine import LLMEngine

    from guard.engine.edits import KEY, Order, to_wire
    from guard.interventions.lora_adapter import adapter_id

    argv = ["--model", model, "--dtype", "float32", "--max-model-len", "1024", "--skip-tokenizer-init",
            "--no-enable-prefix-caching", "--enforce-eager", "--kv-cache-memory-bytes", str(1 << 30)]  # fmt: skip
    argv = [*argv, "--enable-lora", "--max-loras", "4", "--max-lora-rank", str(RANK)] if adapters else argv
    argv = launch.guarded_args(argv) if guarded else argv
    args = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(argv)
    engine = LLMEngine.from_engine_args(EngineArgs.from_cli_args(args))
    loras = {}
    for digest, folder in artifacts.items():
        (reason,) = engine.collective_rpc("lethe_load", args=(digest, folder))
        if reason:
            raise SystemExit(reason)
        if adapters:
            loras[digest] = LoRARequest(digest, adapter_id(digest), folder)
            engine.add_lora(loras[digest])
    pipe.send("ready")
    names = iter(range(1 << 30))
    while (block := pipe.recv()) is not None:
        for i in range(block.requests):
            name = str(next(names))
            order = Order(name, name, block.edits, block.watches)
            extra = {KEY: to_wire(order)} if i < block.edited else None
            lora = next((loras[e.table] for e in block.edits if e.table in loras), None) if extra else None
            params = SamplingParams(
                temperature=0.0, max_tokens=block.tokens, ignore_eos=True, detokenize=False, extra_args=extra
            )
            ids = [5 + (i * 7919 + j * j * 31 + j) % 1900 for j in range(block.prompt)]
            engine.add_request(name, {"type": "token", "prompt_token_ids": ids}, params, lora_request=lora)
        started = time.perf_counter()
        while engine.has_unfinished_requests():
            engine.step()
        seconds = time.perf_counter() - started
        records = engine.collective_rpc("lethe_drain")[0] if guarded else []
        done = sum(1 for _, _, _, error, sighting, _ in records if error is None and sighting is None)
        pipe.send((seconds, done))


@contextmanager
def engine(
    model: Path, guarded: bool, artifacts: Mapping[str, Artifact], *, adapters: bool = False
) -> Iterator[Connection]:
    """A running engine in a process of its own; send it blocks."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    folders = {artifact.digest: str(artifact.folder) for artifact in artifacts.values()}
    child = spawn.Process(target=_engine, args=(there, str(model), guarded, adapters, folders))
    child.start()
    there.close()
    try:
        try:
            here.recv()
        except EOFError:
            raise click.ClickException("An engine did not start; its messages are above.") from None
        yield here
    finally:
        if child.is_alive():
            here.send(None)
        child.join(30)
        child.terminate()


def ratios(bare: Connection, guarded: Connection, plain: Block, edited: Block, rounds: int) -> list[float]:
    """Guarded over bare throughput, one for each round after a first that warms both."""
    found = []
    for i in range(-1, rounds):
        seconds = {}
        pair = (("bare", bare, plain), ("guarded", guarded, edited))
        for name, pipe, block in pair[:: 1 if i % 2 else -1]:
            pipe.send(block)
            seconds[name], done = pipe.recv()
            if name == "guarded" and done != block.edited:
                raise click.ClickException(f"{done} of {block.edited} edited requests were confirmed.")
        if i >= 0:
            found.append(seconds["bare"] / seconds["guarded"])
    return found


def cases(block: Block, artifacts: Mapping[str, Artifact]) -> Iterator[tuple[str, Block]]:
    """What is measured: nothing edited, each site by the share of edited requests, and the gate over all."""
    yield "nothing edited", block
    for site in SITES:
        edits = edits_at(site, block.prompt, artifacts)
        for share in SHARES:
            yield (
                f"{site}, {share:.0%} edited",
                replace(block, edited=round(share * block.requests), edits=edits),
            )
    gate = artifacts["sae_clamp"]
    watch = Watch("", "sae_clamp", gate.manifest.facts["layers"][0], gate.digest)
    yield "gate, 100% observed", replace(block, edited=block.requests, watches=(watch,))


def adapter_cases(block: Block, artifacts: Mapping[str, Artifact]) -> Iterator[tuple[str, Block]]:
    """The same of an engine that can run adapters."""
    digest = artifacts["lora_adapter"].digest
    params = {"artifact": digest, "scale": 1.0}
    edit = Edit("adapter", "lora_adapter", tuple(range(block.prompt)), SEED, params, None, True, digest)
    yield "adapters on, nothing edited", block
    for share in SHARES:
        yield (
            f"adapter, {share:.0%} edited",
            replace(block, edited=round(share * block.requests), edits=(edit,)),
        )


def measure(
    bare: Connection, guarded: Connection, wanted: Iterator[tuple[str, Block]], rounds: int
) -> dict[str, Any]:
    """The ratio of throughputs of each case."""
    report: dict[str, Any] = {}
    for label, edited in wanted:
        plain = replace(edited, edited=0, edits=(), watches=())
        interval = mean_interval(ratios(bare, guarded, plain, edited, rounds))
        assert interval is not None
        report[label] = interval.as_dict()
        click.echo(f"{label}: {interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
                   f" of bare throughput, {interval.n} paired rounds")  # fmt: skip
    return report


@click.command()
@click.option("--shape", type=click.Choice(["demo", "half-billion"]), default="demo", show_default=True)
@click.option("--requests", default=32, show_default=True, help="Requests of one block, all at once.")
@click.option("--prompt", default=64, show_default=True, help="Tokens of a prompt.")
@click.option("--tokens", default=32, show_default=True, help="Tokens of an answer.")
@click.option("--rounds", default=5, show_default=True, help="Paired blocks of each case.")
@click.option("--out", default=ROOT / "reports" / "bench-sites.json", type=click.Path(path_type=Path))
def sites(shape: str, requests: int, prompt: int, tokens: int, rounds: int, out: Path) -> None:
    """What edits at each site cost the engine.

    Example: python -m benchmarks sites --shape half-billion --tokens 8
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model"
        made.mkdir()
        if shape == "demo":
            model = ROOT / "demo" / "models" / "full"
        else:
            model = make_model(ROOT / "benchmarks" / "shapes" / f"{shape}.json", made)
        made_of, adapter = make_artifacts(model, made.parent / "artifacts"), make_adapter(model, made.parent)
        block = Block(requests, prompt, tokens)
        with engine(model, False, {}) as bare:
            with engine(model, True, made_of) as guarded:
                found = measure(bare, guarded, cases(block, made_of), rounds)
            with engine(model, True, adapter, adapters=True) as guarded:
                found |= measure(bare, guarded, adapter_cases(block, adapter), rounds)
    load = {"requests": requests, "prompt": prompt, "tokens": tokens, "rounds": rounds}
    report = {"shape": shape, "load": load, "machine": platform.processor(), "throughput": found}
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    click.echo(f"written to {out}")
