"""What a step's plan costs the worker, by how many requests are in the batch and how many of them are edited; and what
share of a clean step of the demo's engine is spent in our code.

The plans are made for batches that are not run. Rounds go through all sizes, and a ratio belongs to one round.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np

from benchmarks.driving import DEMO, ROOT
from benchmarks.reporting import machine
from guard.metrics.bootstrap import Interval, mean_interval

SIZES = ((1, 0), (64, 0), (256, 0), (1, 1), (64, 1), (256, 1), (64, 8), (256, 8))
"""Requests of a step, and how many of them are edited."""
_LAYERS = 4
_SEED = "0123456789abcdef"


def planner(requests: int, edited: int) -> Callable[[], None]:
    """One step of a batch in which every request decodes: what the worker does besides running the model."""
    from guard.engine.edits import KEY, Order, to_wire
    from guard.engine.records import Ring
    from guard.engine.sites import Site
    from guard.engine.steps import EditBook
    from guard.types import Edit

    book = EditBook(Ring())
    book.sites += [Site("embedding", None, "embed"), *(Site("residual", i, str(i)) for i in range(_LAYERS))]
    edit = Edit("embedding", "embedding_corruption", (0, 1), _SEED, {}, onward=True)
    new = []
    for i in range(requests):
        extra = {KEY: to_wire(Order(str(i), "salt", (edit,)))} if i < edited else None
        params = SimpleNamespace(extra_args=extra)
        new.append(SimpleNamespace(req_id=str(i), prompt_token_ids=[0] * 8, sampling_params=params))
    book.observe((), new)
    places = {str(i): i for i in range(requests)}
    batch = SimpleNamespace(req_id_to_index=places, num_computed_tokens_cpu=np.full(requests, 9, np.int32))
    starts = np.arange(requests + 1, dtype=np.int32)

    def step() -> None:
        book.observe((), ())
        book.begin(batch, starts)
        book.end()
        book.settle()

    return step


def microseconds(step: Callable[[], None], steps: int) -> float:
    """Of the processor's time: a clean step is shorter than what another process takes in between."""
    started = time.thread_time()
    for _ in range(steps):
        step()
    return (time.thread_time() - started) / steps * 1e6


def plans(rounds: int, steps: int) -> dict[str, Any]:
    """Microseconds of a step's plan, and its ratio to that of one request that is not edited."""
    made = {size: planner(*size) for size in SIZES}
    taken: dict[tuple[int, int], list[float]] = {size: [] for size in SIZES}
    for number in range(-1, rounds):
        for size, step in made.items():
            found = microseconds(step, steps)
            if number >= 0:
                taken[size].append(found)
    report = {}
    for (requests, edited), found in taken.items():
        lasted = _interval(found)
        ratio = _interval([a / b for a, b in zip(found, taken[SIZES[0]], strict=True)])
        report[f"{requests} requests, {edited} edited"] = {"us": lasted.as_dict(), "ratio": ratio.as_dict()}
        click.echo(
            f"{requests:>3} requests, {edited} edited: {lasted.mean:.2f} us [{lasted.low:.2f}, {lasted.high:.2f}],"
            f" {ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] times one clean request, n = {ratio.n}"
        )
    return report


def profile(requests: int, tokens: int, rounds: int) -> dict[str, Any]:
    """The share of the engine's steps that our code in the worker takes where nothing is edited, part by part."""
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="WARNING")
    from guard.engine import launch

    launch.pin_environment()
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.sampling_params import SamplingParams
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.llm_engine import LLMEngine

    from guard.engine.steps import EditBook

    argv = ["--model", str(DEMO), "--dtype", "float32", "--max-model-len", "1024", "--skip-tokenizer-init",
            "--no-enable-prefix-caching", "--enforce-eager", "--kv-cache-memory-bytes", str(1 << 30)]  # fmt: skip
    args = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(launch.guarded_args(argv))
    engine = LLMEngine.from_engine_args(EngineArgs.from_cli_args(args))
    spent: Counter[str] = Counter()
    for name in ("observe", "begin", "end", "rescore"):
        setattr(EditBook, name, _timed(name, getattr(EditBook, name), spent))
    torch.ops.vllm.lethe_site = _timed("sites", torch.ops.vllm.lethe_site, spent)
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    shares: dict[str, list[float]] = {}
    for number in range(-1, rounds):
        for i in range(requests):
            ids = [5 + (i * 7919 + j * j * 31 + j) % 1900 for j in range(64)]
            engine.add_request(f"{number}-{i}", {"type": "token", "prompt_token_ids": ids}, params)
        spent.clear()
        started, steps = time.perf_counter(), 0
        while engine.has_unfinished_requests():
            engine.step()
            steps += 1
        seconds = time.perf_counter() - started
        if number >= 0:
            parts = {**spent, "all of ours": sum(spent.values())}
            for name, part in parts.items():
                shares.setdefault(name, []).append(part / seconds)
            shares.setdefault("us of a step", []).append(seconds / steps * 1e6)
    report = {name: _interval(found) for name, found in shares.items()}
    for name, found in report.items():
        scale, unit = (1, " us") if name.startswith("us") else (100, " %")
        click.echo(
            f"{requests} requests, none edited, {name}: {found.mean * scale:.3f}{unit}"
            f" [{found.low * scale:.3f}, {found.high * scale:.3f}], n = {found.n}"
        )
    return {name: found.as_dict() for name, found in report.items()}


def _timed(name: str, work: Callable[..., Any], spent: Counter[str]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return work(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - started

    return timed


def _interval(values: list[float]) -> Interval:
    found = mean_interval(values)
    assert found is not None
    return found


@click.command()
@click.option("--rounds", default=20, show_default=True, help="Rounds of each size.")
@click.option("--steps", default=2000, show_default=True, help="Plans of one size in a round.")
@click.option("--engine/--no-engine", default=True, show_default=True, help="Profile the demo's engine, too.")
@click.option("--out", default=ROOT / "reports" / "bench-plan.json", show_default=True,
              type=click.Path(dir_okay=False, path_type=Path))  # fmt: skip
def plan(rounds: int, steps: int, engine: bool, out: Path) -> None:
    """What the plan of a step costs, and what share of a clean step of the demo's engine is ours.

    Example: python -m benchmarks plan --rounds 10 --no-engine
    """
    report: dict[str, Any] = {"machine": machine(), "load_average": os.getloadavg()}
    report["plans"] = plans(rounds, steps)
    if engine:
        report["profile"] = profile(32, 64, rounds)
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    click.echo(f"written to {out}")
