"""What edits cost: throughput of the guarded engine against vLLM's own, with verdicts supplied and no detector.

Both engines run the same prompts in processes of their own, one block after the other, the order of the two
alternating; a ratio belongs to one pair of blocks. A share of the requests of the guarded engine is edited at
one site.
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
from guard.types import Edit

ROOT = Path(__file__).parents[1]
SHARES = (0.1, 1.0)
SEED = "00112233445566ff"


@dataclass(frozen=True, slots=True)
class Block:
    """`requests` of `prompt` tokens that each answer `tokens`; the first `edited` of them with `edits`."""

    requests: int
    prompt: int
    tokens: int
    edited: int = 0
    edits: tuple[Edit, ...] = ()


SITES = {
    "embedding": ("embedding_corruption", None),
    "residual": ("steering", "layer"),
    "neuron": ("neuron_adjust", "layer"),
    "logits": ("token_penalty", None),
}
"""Site -> the method that stands for it, and whether it acts behind a layer."""


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


def make_model(shape: Path, out: Path) -> Path:
    """A model of that configuration with random weights, beside the demo model's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    (out / "config.json").write_text(shape.read_text(encoding="utf-8"), encoding="utf-8")
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out), dtype=torch.float32).save_pretrained(
        out
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "demo" / "models" / "full" / name, out)
    return out


def _engine(pipe: Connection, model: str, guarded: bool, artifacts: Mapping[str, str]) -> None:
    """The child: builds one engine, then runs the blocks it is sent and answers with their seconds."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="WARNING")
    from guard.engine import launch

    launch.pin_environment()
    from vllm.engine.arg_utils import EngineArgs
    from vllm.sampling_params import SamplingParams
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.llm_engine import LLMEngine

    from guard.engine.edits import KEY, Order, to_wire

    argv = ["--model", model, "--dtype", "float32", "--max-model-len", "1024", "--skip-tokenizer-init",
            "--no-enable-prefix-caching", "--enforce-eager", "--kv-cache-memory-bytes", str(1 << 30)]  # fmt: skip
    argv = launch.guarded_args(argv) if guarded else argv
    args = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(argv)
    engine = LLMEngine.from_engine_args(EngineArgs.from_cli_args(args))
    for digest, folder in artifacts.items() if guarded else ():
        (reason,) = engine.collective_rpc("lethe_load", args=(digest, folder))
        if reason:
            raise SystemExit(reason)
    pipe.send("ready")
    names = iter(range(1 << 30))
    while (block := pipe.recv()) is not None:
        for i in range(block.requests):
            name = str(next(names))
            extra = {KEY: to_wire(Order(name, name, block.edits))} if i < block.edited else None
            params = SamplingParams(
                temperature=0.0, max_tokens=block.tokens, ignore_eos=True, detokenize=False, extra_args=extra
            )
            ids = [5 + (i * 7919 + j * j * 31 + j) % 1900 for j in range(block.prompt)]
            engine.add_request(name, {"type": "token", "prompt_token_ids": ids}, params)
        started = time.perf_counter()
        while engine.has_unfinished_requests():
            engine.step()
        seconds = time.perf_counter() - started
        records = engine.collective_rpc("lethe_drain")[0] if guarded else []
        done = sum(1 for _, _, counts, error in records if counts and error is None)
        pipe.send((seconds, done))


@contextmanager
def engine(model: Path, guarded: bool, artifacts: Mapping[str, Artifact]) -> Iterator[Connection]:
    """A running engine in a process of its own; send it blocks."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    folders = {artifact.digest: str(artifact.folder) for artifact in artifacts.values()}
    child = spawn.Process(target=_engine, args=(there, str(model), guarded, folders))
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


def measure(model: Path, artifacts: Mapping[str, Artifact], block: Block, rounds: int) -> dict[str, Any]:
    """The ratio of throughputs with nothing edited, and for each site and share of edited requests."""
    report: dict[str, Any] = {}
    cases = [("nothing edited", 0, ())]
    for site in SITES:
        for share in SHARES:
            edits = edits_at(site, block.prompt, artifacts)
            cases.append((f"{site}, {share:.0%} edited", round(share * block.requests), edits))
    with engine(model, False, {}) as bare, engine(model, True, artifacts) as guarded:
        for label, count, edits in cases:
            edited = replace(block, edited=count, edits=edits)
            interval = mean_interval(ratios(bare, guarded, block, edited, rounds))
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
        found = measure(
            model, make_artifacts(model, Path(folder) / "artifacts"), Block(requests, prompt, tokens), rounds
        )
    load = {"requests": requests, "prompt": prompt, "tokens": tokens, "rounds": rounds}
    report = {"shape": shape, "load": load, "machine": platform.processor(), "throughput": found}
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    click.echo(f"written to {out}")
