"""An engine stepped by hand in a process of its own, so that what is in each batch is known exactly.

    python -m tests.engine.schedule MODEL OUT [--compiled]

Writes a pickle of what `tests/engine/test_isolation.py` looks at.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from guard.types import Edit

SEED = "00112233445566ff"
TOKENS = 6


def edit(*positions: int) -> Edit:
    return Edit("embedding", "embedding_corruption", positions, SEED, {"strength": 8.0})


class Bench:
    """A guarded in-process engine that keeps every row of logits, by request, and every call of the edit."""

    def __init__(self, model: str, compiled: bool) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from guard.engine import launch

        launch.pin_environment()
        from vllm.engine.arg_utils import EngineArgs
        from vllm.utils.argparse_utils import FlexibleArgumentParser
        from vllm.v1.engine.llm_engine import LLMEngine

        options = [
            "--dtype",
            "float32",
            "--block-size",
            "32",
            "--max-model-len",
            "256",
            "--max-num-seqs",
            "16",
        ]
        budget = ["--max-num-batched-tokens", "128", "--no-enable-prefix-caching"]
        memory = ["--kv-cache-memory-bytes", str(64 << 20), *(["--no-enforce-eager"] if compiled else [])]
        argv = launch.guarded_args(["--model", model, *options, *budget, *memory])
        args = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(argv)
        self.engine = LLMEngine.from_engine_args(EngineArgs.from_cli_args(args))
        self.core = self.engine.engine_core.engine_core
        self.runner = self.core.model_executor.driver_worker.worker.model_runner
        self.logits: dict[str, list[Any]] = defaultdict(list)
        self.edits: list[tuple[list[int], Any]] = []
        self._watch()

    def _watch(self) -> None:
        from guard.interventions.embedding_corruption import EmbeddingCorruption

        compute, act = self.runner.model.compute_logits, EmbeddingCorruption.edit

        def compute_logits(hidden: Any, *args: Any, **kwargs: Any) -> Any:
            logits = compute(hidden, *args, **kwargs)
            for name, row in zip(self.runner.input_batch.req_ids, logits, strict=False):
                self.logits[name.rsplit("-", 1)[0]].append(row.clone().numpy())
            return logits

        def logged(x: Any, positions: Any, seed: str, params: dict[str, Any]) -> Any:
            new = act(x, positions, seed, params)
            self.edits.append((positions.tolist(), new.clone().numpy()))
            return new

        self.runner.model.compute_logits = compute_logits
        EmbeddingCorruption.edit = staticmethod(logged)

    def add(self, name: str, prompt: list[int], edits: tuple[Edit, ...] = (), wire: Any = None) -> None:
        from vllm.sampling_params import SamplingParams

        from guard.engine.edits import KEY, Order, to_wire

        wire = to_wire(Order(name, name, edits)) if edits else wire
        extra = {KEY: wire} if wire is not None else None
        params = SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, extra_args=extra)
        self.engine.add_request(name, {"type": "token", "prompt_token_ids": prompt}, params)

    def finish(self, at_step: dict[int, Any] | None = None) -> dict[str, Any]:
        """Step until nothing is left; `at_step` are things to do before a step. Returns what was seen."""
        self.logits.clear()
        self.edits.clear()
        tokens, step = {}, 0
        while self.engine.has_unfinished_requests() or any(s >= step for s in at_step or {}):
            if at_step and step in at_step:
                at_step[step]()
            for output in self.engine.step():
                tokens[output.request_id] = list(output.outputs[0].token_ids)
            step += 1
        records = [record for worker in self.engine.collective_rpc("lethe_drain") for record in worker]
        return {"logits": dict(self.logits), "tokens": tokens, "records": records, "edits": list(self.edits)}


def prompt(length: int, start: int) -> list[int]:
    return [4 + (start * 31 + i * i * 7 + i) % 380 for i in range(length)]


def isolation(bench: Bench, edited: dict[str, tuple[Edit, ...]]) -> dict[str, Any]:
    """Eight requests of mixed lengths that come at different steps; the long ones are prefilled in chunks."""

    def come(*names: str) -> Any:
        return lambda: [bench.add(n, prompt(*REQUESTS[n]), edited.get(n, ())) for n in names]

    return bench.finish({0: come("a", "b", "c"), 2: come("d", "e"), 3: come("f"), 5: come("g", "h")})


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
EDITED = {"b": (edit(*range(99)),), "d": (edit(3, 4, 9), edit(4, 5)), "h": (edit(0),)}


def chunks(bench: Bench, size: int, preempt_at: int | None = None) -> dict[str, Any]:
    """One long edited request, prefilled `size` tokens at a time, maybe preempted before a step."""
    bench.core.scheduler.max_num_scheduled_tokens = size
    bench.add("long", prompt(110, 9), (edit(*range(2, 100, 3)),))
    preempt = {preempt_at: lambda: bench.engine.reset_prefix_cache(reset_running_requests=True)}
    return bench.finish(preempt if preempt_at is not None else None)


def malformed(bench: Bench) -> dict[str, Any]:
    """Orders that no frontend of ours writes, between requests that must not notice."""
    good = {"site": "embedding", "layer": None, "method": "embedding_corruption", "seed": SEED, "params": {}}
    bad = {
        "text": "hello",
        "empty": {},
        "edits": {
            "v": 1,
            "ticket": "edits",
            "lineage": "",
            "edits": [{**good, "positions": b"\xff\xff\xff\xff"}],
        },
        "site": {
            "v": 1,
            "ticket": "site",
            "lineage": "",
            "edits": [{**good, "site": "logits", "positions": b"\0\0\0\0"}],
        },
    }
    for name, wire in bad.items():
        bench.add(name, prompt(20, 11), wire=wire)
    bench.add("clean", prompt(20, 11))
    return bench.finish()


def main(model: str, out: str, compiled: bool) -> None:
    bench = Bench(model, compiled)
    seen = {"clean": isolation(bench, {}), "again": isolation(bench, {}), "edited": isolation(bench, EDITED)}
    if not compiled:
        seen |= {
            "chunked": chunks(bench, 17),
            "preempted_early": chunks(bench, 40, preempt_at=2),
            "whole": chunks(bench, 128),
            "preempted": chunks(bench, 128, preempt_at=3),
        }
        seen["malformed"] = malformed(bench)
    Path(out).write_bytes(pickle.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "--compiled" in sys.argv)
