"""The worker that edits: vLLM's own, with sites in its model and a plan for every step.

Given to vLLM by name (`--worker-cls`). Only the V1 model runner calls the methods overridden here; on the V2
runner the edits would silently not happen, so the worker refuses to start there.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from guard.engine.records import Ring
from guard.engine.sites import install_embedding
from guard.engine.steps import EditBook
from guard.errors import StartupError


class GuardedRunner:
    """Over vLLM's V1 runner: the book learns of requests before a step and plans it around the forward."""

    lethe: EditBook

    def _update_states(self, scheduler_output: Any) -> Any:
        self.lethe.observe(scheduler_output.finished_req_ids, scheduler_output.scheduled_new_reqs)
        return super()._update_states(scheduler_output)  # type: ignore[misc]

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        """Profiling and warm-up call the model itself, so whatever comes here is a real step."""
        self.lethe.begin(self.input_batch, self.query_start_loc.np)  # type: ignore[attr-defined]
        try:
            return super()._model_forward(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.lethe.end()


class GuardWorkerMixin:
    """What the guard adds to a worker. Public methods are called over vLLM's collective RPC."""

    model_runner: Any

    def init_device(self) -> None:
        super().init_device()  # type: ignore[misc]
        runner = self.model_runner
        if not isinstance(runner, GPUModelRunner):
            raise StartupError(
                "vLLM chose its V2 model runner, on which edits do not work; set VLLM_USE_V2_MODEL_RUNNER=0."
            )
        self.lethe_ring = Ring()
        runner.__class__ = type(f"Guarded{type(runner).__name__}", (GuardedRunner, type(runner)), {})
        runner.lethe = EditBook(self.lethe_ring)

    def load_model(self, **kwargs: Any) -> None:
        """Sites go in before anything is compiled or warmed up; hooks put in later would never run."""
        super().load_model(**kwargs)  # type: ignore[misc]
        runner = self.model_runner
        runner.lethe.sites.append(install_embedding(runner.get_model()))

    def lethe_status(self) -> dict[str, Any]:
        """What is live in this worker, in types that the RPC carries."""
        runner = self.model_runner
        return {
            "worker": type(self).__name__,
            "runner": type(runner).__name__,
            "guarded": isinstance(runner, GuardedRunner) and isinstance(runner, GPUModelRunner),
            "sites": [[s.name, s.layer, s.module] for s in runner.lethe.sites],
            "model": model_digest(runner.get_model()),
            "held": len(runner.lethe),
        }

    def lethe_drain(self) -> list[list[Any]]:
        """Records since the last call, in their wire form."""
        return self.lethe_ring.drain()


def model_digest(model: torch.nn.Module) -> str:
    """16 hex digits that tell models apart: names, shapes and the first row of every parameter."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        row = parameter.detach().flatten()[:64].float().cpu().numpy()
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode() + row.tobytes())
    return digest.hexdigest()[:16]


if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker

    class GuardCPUWorker(GuardWorkerMixin, CPUWorker):
        """`--worker-cls guard.engine.worker.GuardCPUWorker`"""

else:
    from vllm.v1.worker.gpu_worker import Worker

    class GuardGPUWorker(GuardWorkerMixin, Worker):
        """`--worker-cls guard.engine.worker.GuardGPUWorker`"""
