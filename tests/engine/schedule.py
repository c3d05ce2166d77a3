"""An engine stepped by hand in a process of its own, so that what is in each batch is known exactly.

    python -m tests.engine.schedule MODEL OUT [--compiled] [--adapters]

Runs every method of `tests/engine/samples.py` through the same schedules and writes a pickle of what
`tests/engine/test_contract.py` looks at.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guard.types import Edit, Watch
from tests.engine.samples import SAMPLES, SEED, Sample

TOKENS = 6
REQUESTS = {
    "a": (7, 1),
    "b": (100, 2),
    "c": (40, 3),
    "d": (12, 4),
    "e": (90, 5),
    "f": (33, 6),
    "g": (64, 7),
    "h": (5, 8),
}
EDITED = ("b", "d", "h")
LONG = 110


class Bench:
    """A guarded in-process engine that keeps every row of logits, by request, and every row that was edited."""

    def __init__(self, model: str, *options: str) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from guard.engine import launch

        launch.pin_environment()
        from vllm.engine.arg_utils import EngineArgs
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.engine.llm_engine import LLMEngine

        sizes = {
            "--dtype": "float32",
            "--block-size": "32",
            "--max-model-len": "256",
            "--max-num-seqs": "16",
            "--max-num-batched-tokens": "128",
            "--kv-cache-memory-bytes": str(64 << 20),
        }
        argv = launch.guarded_args(["--model", model, *(w for pair in sizes.items() for w in pair), *options])
        args = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(argv)
        self.engine = LLMEngine.from_engine_args(EngineArgs.from_cli_args(args))
        self.core = self.engine.engine_core.engine_core
        self.runner = self.core.model_executor.driver_worker.worker.model_runner
        self.logits: dict[str, list[Any]] = defaultdict(list)
        self.rows: list[tuple[str, list[int], Any]] = []
        self.requests: dict[str, Any] = {}
        self._watch()

    def _watch(self) -> None:
        """Logits are kept as the sampler gets them; edited rows as the next layer reads them."""
        from guard.engine.sites import Share

        sampler, apply = self.runner.sampler.forward, Share.apply

        def sample(logits: Any, *args: Any, **kwargs: Any) -> Any:
            for name, row in zip(self.runner.input_batch.req_ids, logits, strict=False):
                self.logits[name.rsplit("-", 1)[0]].append(row.clone().numpy())
            return sampler(logits, *args, **kwargs)

        def applied(share: Share, x: Any, residual: Any, layer: int | None) -> None:
            apply(share, x, residual, layer)
            seen = x[share.rows] if residual is None else x[share.rows] + residual[share.rows]
            self.rows.append((f"{share.method}@{layer}", share.positions.tolist(), seen.clone().numpy()))

        self.runner.sampler.forward = sample
        Share.apply = applied  # type: ignore[method-assign]

    def load(self, digest: str, folder: Path) -> None:
        (reason,) = self.engine.collective_rpc("lethe_load", args=(digest, str(folder)))
        assert reason is None, reason

    def add(
        self, name: str, prompt: list[int], edits: tuple[Edit, ...] = (), *, wire: Any = None, salt: str = "",
        lora: Any = None,
    ) -> None:  # fmt: skip
        from vllm.sampling_params import SamplingParams

        from guard.engine.edits import KEY, Order, to_wire

        wire = to_wire(Order(name, salt or name, edits)) if edits else wire
        extra = {KEY: wire} if wire is not None else None
        params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, extra_args=extra)
        given = {
            "type": "token",
            "prompt_token_ids": prompt,
            "cache_salt": salt or name if edits else "clean",
        }
        self.engine.add_request(name, given, params, lora_request=lora)

    def finish(self, at_step: dict[int, Callable[[], Any]] | None = None) -> dict[str, Any]:
        """Step until nothing is left; `at_step` are things to do before a step. Returns what was seen."""
        self.logits.clear()
        self.rows.clear()
        tokens, step = {}, 0
        cached = {}
        while self.engine.has_unfinished_requests() or any(s >= step for s in at_step or {}):
            if at_step and step in at_step:
                at_step[step]()
            for output in self.engine.step():
                tokens[output.request_id] = list(output.outputs[0].token_ids)
                cached[output.request_id] = output.num_cached_tokens
            step += 1
        records = [record for worker in self.engine.collective_rpc("lethe_drain") for record in worker]
        return {
            "logits": dict(self.logits),
            "tokens": tokens,
            "cached": cached,
            "records": records,
            "rows": list(self.rows),
        }

    def fresh(self) -> None:
        """Forget all cached blocks."""
        assert self.engine.reset_prefix_cache()


def prompt(length: int, start: int) -> list[int]:
    return [4 + (start * 31 + i * i * 7 + i) % 380 for i in range(length)]


class Course:
    """The schedules that one method goes through."""

    def __init__(self, bench: Bench, sample: Sample | None) -> None:
        self.bench = bench
        self.sample = sample

    def add(self, name: str, ids: list[int], *, edited: bool, salt: str = "", spoil: bool = False) -> None:
        edits = self.sample.edits(len(ids)) if edited and self.sample else ()
        if spoil:
            edits = tuple(_spoilt(edit) for edit in edits)
        lora = self.sample.request if edits and self.sample else None
        self.bench.add(name, ids, edits, salt=salt, lora=lora)

    def isolation(self, *, reverse: bool = False) -> dict[str, Any]:
        """Eight requests of mixed lengths that come at different steps; the long ones are prefilled in chunks."""
        self.bench.fresh()

        def come(*names: str) -> Callable[[], Any]:
            ordered = names[::-1] if reverse else names
            return lambda: [self.add(n, prompt(*REQUESTS[n]), edited=n in EDITED) for n in ordered]

        return self.bench.finish({0: come("a", "b", "c"), 2: come("d", "e"), 3: come("f"), 5: come("g", "h")})

    def chunks(self, size: int, preempt_at: int | None = None) -> dict[str, Any]:
        """One long edited request, prefilled `size` tokens at a time, maybe preempted before a step."""
        self.bench.fresh()
        before, self.bench.core.scheduler.max_num_scheduled_tokens = (
            self.bench.core.scheduler.max_num_scheduled_tokens,
            size,
        )
        self.add("long", prompt(LONG, 9), edited=True)
        preempt = {preempt_at: lambda: self.bench.engine.reset_prefix_cache(reset_running_requests=True)}
        seen = self.bench.finish(preempt if preempt_at is not None else None)
        self.bench.core.scheduler.max_num_scheduled_tokens = before
        return seen

    def cached(self) -> dict[str, dict[str, Any]]:
        """The same edited prompt twice under one salt, so that the second reads the blocks of the first."""
        self.bench.fresh()
        runs = {}
        for name in ("first", "second"):
            self.add(name, prompt(LONG, 9), edited=True, salt="same")
            runs[name] = self.bench.finish()
        return runs

    def broken(self) -> dict[str, Any]:
        """An edit that names a table which no worker has, beside a clean request."""
        self.bench.fresh()
        self.add("broken", prompt(20, 11), edited=True, spoil=True)
        self.add("clean", prompt(20, 12), edited=False)
        return self.bench.finish()


def observed(bench: Bench, watch: Watch) -> dict[str, Any]:
    """The schedule of the isolation with a gate over every request."""
    from guard.engine.edits import Order, to_wire

    bench.fresh()

    def come(*names: str) -> Callable[[], Any]:
        orders = {n: to_wire(Order(n, "", watches=(watch,))) for n in names}
        return lambda: [bench.add(n, prompt(*REQUESTS[n]), wire=orders[n]) for n in names]

    return bench.finish({0: come("a", "b", "c"), 2: come("d", "e"), 3: come("f"), 5: come("g", "h")})


def _spoilt(edit: Edit) -> Edit:
    from dataclasses import replace

    return replace(edit, table="0" * 64)


def malformed(bench: Bench) -> dict[str, Any]:
    """Orders that no frontend of ours writes, between requests that must not notice."""
    bench.fresh()
    good = {
        "site": "embedding", "layer": None, "method": "embedding_corruption", "seed": SEED, "params": {},
        "onward": False, "table": None,
    }  # fmt: skip
    order = {"v": 3, "lineage": "", "watches": [], "forced": b""}
    bad = {
        "text": "hello",
        "empty": {},
        "edits": {**order, "ticket": "edits", "edits": [{**good, "positions": b"\xff\xff\xff\xff"}]},
        "site": {**order, "ticket": "site", "edits": [{**good, "site": "neuron", "layer": 77, "positions": bytes(4)}]},
    }  # fmt: skip
    for name, wire in bad.items():
        bench.add(name, prompt(20, 11), wire=wire)
    bench.add("clean", prompt(20, 11))
    return bench.finish()


def main(model: str, out: str, *flags: str) -> None:
    compiled, adapters = "--compiled" in flags, "--adapters" in flags
    chosen = {name: sample for name, sample in SAMPLES.items() if sample.lora == adapters}
    options = ["--no-enforce-eager"] if compiled else []
    if adapters:
        options += ["--enable-lora", "--max-loras", "2", "--max-lora-rank", "16"]
    bench = Bench(model, *options)
    clean = Course(bench, None)
    seen: dict[str, Any] = {"clean": clean.isolation(), "again": clean.isolation(), "methods": {}}
    for name, sample in chosen.items():
        folder = Path(out).parent / name
        sample.load(bench, Path(model), folder)
        course = Course(bench, sample)
        runs: dict[str, Any] = {"edited": course.isolation()}
        if not compiled:
            runs |= {
                "repeated": course.isolation(),
                "reversed": course.isolation(reverse=True),
                "whole": course.chunks(128),
                "chunked": course.chunks(17),
                "preempted early": course.chunks(40, preempt_at=2),
                "preempted": course.chunks(128, preempt_at=3),
                "cached": course.cached(),
                "broken": course.broken(),
            }
        if name == "sae_clamp":
            seen["observed"] = observed(bench, Watch("", name, 1, sample.digest))
        seen["methods"][name] = runs
    if not compiled and not adapters:
        seen["malformed"] = malformed(bench)
    Path(out).write_bytes(pickle.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
