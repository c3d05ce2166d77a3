"""The worker that edits: vLLM's own, with sites in its model and a plan for every step.

Given to vLLM by name (`--worker-cls`). Only the V1 model runner calls the methods overridden here; on the V2
runner the edits would silently not happen, so the worker refuses to start there.
"""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from guard.artifacts import weights_folder
from guard.engine import adapters
from guard.engine.records import Ring
from guard.engine.sites import install
from guard.engine.steps import EditBook
from guard.engine.tables import Tables
from guard.errors import LetheError, StartupError


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

    def _get_prompt_logprobs_dict(self, *args: Any, **kwargs: Any) -> Any:
        with self.lethe.adapters.scoring_prompts() if self.lethe.adapters else nullcontext():
            return super()._get_prompt_logprobs_dict(*args, **kwargs)  # type: ignore[misc]

    def _sample(self, logits: Any, spec_decode_metadata: Any) -> Any:
        """Here the mask of a structured output is already on the logits, and the sampler has not seen them."""
        if logits is not None:
            self.lethe.rescore(logits, self.requests)  # type: ignore[attr-defined]
        return super()._sample(logits, spec_decode_metadata)  # type: ignore[misc]


class GuardWorkerMixin:
    """What the guard adds to a worker. Public methods are called over vLLM's collective RPC."""

    model_runner: Any
    vllm_config: Any

    def init_device(self) -> None:
        super().init_device()  # type: ignore[misc]
        runner = self.model_runner
        if not isinstance(runner, GPUModelRunner):
            raise StartupError(
                "vLLM chose its V2 model runner, on which edits do not work; set VLLM_USE_V2_MODEL_RUNNER=0."
            )
        self.lethe_ring = Ring()
        runner.__class__ = type(f"Guarded{type(runner).__name__}", (GuardedRunner, type(runner)), {})
        runner.lethe = EditBook(self.lethe_ring, Tables(weights_folder(self.vllm_config.model_config.model)))

    def load_model(self, **kwargs: Any) -> None:
        """Sites go in before anything is compiled or warmed up; hooks put in later would never run."""
        adapted = self.vllm_config.lora_config is not None and current_platform.is_cpu()
        if adapted:
            adapters.install()
        super().load_model(**kwargs)  # type: ignore[misc]
        runner = self.model_runner
        if adapted:
            runner.lethe.adapters = adapters.Scales(runner)
        runner.lethe.end_tokens = _end_tokens(runner.model_config)
        layers = (self.vllm_config.additional_config or {}).get("lethe", {}).get("layers", "all")
        runner.lethe.sites.extend(install(runner.get_model(), layers))

    def lethe_status(self) -> dict[str, Any]:
        """What is live in this worker, in types that the RPC carries."""
        runner = self.model_runner
        return {
            "worker": type(self).__name__,
            "runner": type(runner).__name__,
            "guarded": isinstance(runner, GuardedRunner) and isinstance(runner, GPUModelRunner),
            "sites": [[s.name, s.layer, s.module] for s in runner.lethe.sites],
            "model": model_digest(runner.get_model()),
            "tables": sorted(runner.lethe.tables),
            "held": len(runner.lethe),
            "kept": runner.lethe.tables.kept(),
        }

    def lethe_drain(self, origin: str = "") -> list[list[Any]]:
        """Records of the frontend `origin` since its last call, in their wire form."""
        self.model_runner.lethe.settle()
        return self.lethe_ring.drain(origin)

    def lethe_load(self, digest: str, folder: str, origin: str = "") -> str | None:
        """Take an artifact's table in for the frontend `origin`; the reason why not, in one sentence, where it cannot
        be."""
        runner = self.model_runner
        try:
            runner.lethe.tables.load(digest, folder, runner.device, origin)
        except LetheError as error:
            return error.message
        return None

    def lethe_unload(self, digest: str, origin: str = "") -> None:
        """Forget a table when no frontend needs it any more; requests that still name it fail."""
        self.model_runner.lethe.tables.unload(digest, origin)


def _end_tokens(config: Any) -> tuple[int, ...]:
    """The tokens that end an answer, as the model's configuration names them."""
    named = getattr(config.hf_text_config, "eos_token_id", None)
    return tuple(named) if isinstance(named, list) else () if named is None else (named,)


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
