"""What the launcher needs before and after vLLM's server is built: environment, arguments, proof.

A plugin or class that fails to load is at most logged by vLLM, and the server then runs without it. So
nothing is believed here: the engine is asked who it is, and a canary request must show that an edit is
counted and that it changes what the model says.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from guard.config import AdapterSettings
from guard.errors import ConfigError, LetheError, StartupError
from guard.types import AppliedEdit, Edit

if TYPE_CHECKING:
    from guard.engine.client import GuardedAsyncLLM

SITES = ("embedding",)
_GIB = 1 << 30
_ADAPTERS = (
    1 << 20
)  # more than there will be: what vLLM drops it reads again inside a step; ours is dropped by us
_SMALL_MACHINE = 4

# Options under which the guard has not been shown to work, and why, in words for the operator.
_REFUSED = {
    "--config": "give vLLM's options on the command line, where the guard can check them",
    "--enable-prompt-embeds": "prompts given as embeddings cannot be judged",
    "--worker-cls": "the guard's own worker has to be used",
    "--worker-extension-cls": "it would change the guard's worker",
    "--speculative-config": "edits with speculative decoding have not been proven",
    "--kv-transfer-config": "blocks from other engines may hold unedited prompts",
    "--ec-transfer-config": "blocks from other engines may hold unedited prompts",
    "--fully-sharded-loras": "adapters of other requests would act on clean ones",
    "--headless": "the guard runs in the API server",
    "--async-scheduling": "the next token is edited by what came before it, which would not be known yet",
    "--grpc": "its server does not pass through the guard's HTTP gate",
    "--data-parallel-external-lb": "the guard drives one engine",
    "--data-parallel-hybrid-lb": "the guard drives one engine",
    "--enable-log-requests": "it writes prompts into the log",
    "--enable-log-outputs": "it writes answers into the log",
    "--log-error-stack": "it writes parts of requests into the log",
    "--log-config-file": "set logging.format and logging.level",
    "--logging-config": "set logging.format and logging.level",
    "--log-level": "set logging.level",
    "--uvicorn-log-level": "set logging.level",
    "--disable-access-log-for-endpoints": "the log of requests is the server's own; probes leave no line in it",
}
_ONLY_ONE = ("--data-parallel-size", "--pipeline-parallel-size")
_SHORT = {
    "-asc": "--api-server-count",
    "-dp": "--data-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-sc": "--speculative-config",
    "-cc": "--compilation-config",
}
_COMPILES = {"--no-enforce-eager", "--compilation-config", "--optimization-level"}


@dataclass(frozen=True, slots=True)
class Proof:
    """What `prove` saw. `moved` is by how much the canary's edit changed a log-probability."""

    client: str
    worker: str
    runner: str
    model: str
    sites: tuple[str, ...]
    canary: AppliedEdit
    moved: float


def pin_environment(environ: MutableMapping[str, str] = os.environ, *, logging: Path | None = None) -> None:
    """Set what vLLM reads from the environment before any of it is imported. `logging` is the file from which each of
    its processes sets up its log.

    Raises:
        ConfigError: a variable asks for a part of vLLM that does not pass through the guard.
    """
    if environ.get("VLLM_USE_V2_MODEL_RUNNER", "0") not in ("", "0"):
        raise ConfigError("VLLM_USE_V2_MODEL_RUNNER=1: edits do not work on the V2 model runner; unset it.")
    for name, why in (
        ("VLLM_USE_RUST_FRONTEND", "it bypasses the guard"),
        ("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "requests with equal ids could be mixed up"),
        ("VLLM_DEBUG_LOG_API_SERVER_RESPONSE", "it writes answers into the log"),
        ("PROMETHEUS_MULTIPROC_DIR", "one process serves here, and /metrics would count it twice"),
    ):
        if environ.get(name, "0").lower() not in ("", "0", "false"):
            raise ConfigError(f"{name} is set, but {why}; unset it.")
    environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    if logging is not None:
        if environ.get("VLLM_LOGGING_CONFIG_PATH") not in (None, "", str(logging)):
            raise ConfigError(
                "VLLM_LOGGING_CONFIG_PATH cannot be used: set logging.format and logging.level."
            )
        environ["VLLM_CONFIGURE_LOGGING"], environ["VLLM_LOGGING_CONFIG_PATH"] = "1", str(logging)
    environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    environ["VLLM_WORKER_MULTIPROC_METHOD"] = (
        "spawn"  # the guard's threads run beside, and a fork would copy their locks
    )
    if not _has_compiler(environ):
        # vLLM compiles some small functions of its sampler also where the model runs eagerly, and dies of a missing
        # compiler at the first request with likelihoods.
        environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if 0 < len(cores) <= _SMALL_MACHINE:
        # vLLM keeps one core free for its scheduler, which on a small machine is half of it or more.
        environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))


def guarded_args(
    argv: Sequence[str],
    environ: MutableMapping[str, str] = os.environ,
    *,
    layers: Literal["all"] | Sequence[int] = "all",
    adapters: AdapterSettings = AdapterSettings(),
) -> list[str]:
    """vLLM's arguments with the guard's worker, or a refusal of those that would go round it.

    Args:
        layers: decoder layers that get sites for edits.
        adapters: how many unlearning adapters run at once, and how large they may be.

    Raises:
        ConfigError: an option conflicts with the guard.
    """
    from vllm.platforms import current_platform

    given = dict(_options(argv))
    for name, why in _REFUSED.items():
        if name in given:
            raise ConfigError(f"{name} cannot be used: {why}.")
    for name in _ONLY_ONE:
        if given.get(name, "1") != "1":
            raise ConfigError(
                f"{name} {given[name]} cannot be used: the guard drives one engine; start more servers on one store."
            )
    if adapters.slots and given.get("--api-server-count", "1") != "1":
        raise ConfigError(
            "--api-server-count cannot be used with unlearning adapters: which ones are loaded is known to one process."
        )
    cpu = current_platform.is_cpu()
    compiles = any(name in _COMPILES or name.startswith("-O") for name in given)
    if compiles and not cpu:
        raise ConfigError("Compilation has been proven on CPU only; remove the compilation options.")
    if compiles and not _has_compiler(environ):
        raise ConfigError(
            "Compilation needs a C++ compiler; install g++ (or name one in CXX), or remove the compilation options."
        )
    worker = "GuardCPUWorker" if cpu else "GuardGPUWorker"
    added = ["--worker-cls", f"guard.engine.worker.{worker}", "--no-async-scheduling"]
    if not compiles and "--enforce-eager" not in given:
        added.append("--enforce-eager")
    if cpu and "--kv-cache-memory-bytes" not in given and not environ.get("VLLM_CPU_KVCACHE_SPACE"):
        added += ["--kv-cache-memory-bytes", str(_GIB)]
    if adapters.slots:
        added += _adapter_options(given, adapters, cpu)
    ours = {"version": _version(), "layers": layers, "adapters": adapters.resident if adapters.slots else 0}
    return [*_without(argv, "--additional-config"), *added, "--additional-config", _additional(given, ours)]


def _has_compiler(environ: MutableMapping[str, str]) -> bool:
    """Whether there is the C++ compiler that torch would call."""
    return shutil.which(environ.get("CXX") or "g++") is not None


async def prove(engine: Any, *, timeout_s: float = 300.0) -> Proof:
    """Ask the engine who it is, and edit a canary request; also warms the first request with likelihoods.

    Raises:
        StartupError: something is not ours, not installed, or without effect; one plain sentence.
    """
    from guard.engine.client import GuardedAsyncLLM

    if not isinstance(engine, GuardedAsyncLLM):
        raise StartupError(f"The engine client is {type(engine).__name__}, not the guarded one.")
    _check_configuration(engine.vllm_config)
    try:
        async with asyncio.timeout(timeout_s):
            statuses = await _statuses(engine)
            canary, moved = await _canary(engine)
    except TimeoutError:
        raise StartupError(f"The engine did not prove itself within {timeout_s:.0f} s.") from None
    except StartupError:
        raise
    except LetheError as error:
        raise StartupError(f"The engine failed its canary request: {error.message}") from error
    first = statuses[0]
    sites = tuple(f"{site}@{module}" for site, _, module in first["sites"])
    return Proof(
        type(engine).__name__, first["worker"], first["runner"], first["model"], sites, canary, moved
    )


def _check_configuration(config: Any) -> None:
    """What `guarded_args` refuses, as vLLM understood it: its parser also takes abbreviated options."""
    parallel = config.parallel_config
    for holds, what in (
        (config.model_config.enable_prompt_embeds, "prompts given as embeddings"),
        (config.speculative_config is not None, "speculative decoding"),
        (config.kv_transfer_config is not None or config.ec_transfer_config is not None, "cache transfer"),
        (
            parallel.data_parallel_size > 1 or parallel.pipeline_parallel_size > 1,
            "data or pipeline parallelism",
        ),
        (bool(parallel.worker_extension_cls), "an extended worker"),
    ):
        if holds:
            raise StartupError(f"vLLM is configured for {what}, which does not work with the guard.")


async def _statuses(engine: GuardedAsyncLLM) -> list[dict[str, Any]]:
    try:
        statuses: list[dict[str, Any]] = await engine.collective_rpc("lethe_status")
    except Exception as error:
        raise StartupError("The engine's worker is not the guarded one.") from error
    if not statuses or not all(status["guarded"] for status in statuses):
        raise StartupError("The engine's worker does not run the guarded V1 model runner.")
    for status in statuses:
        missing = set(SITES) - {site for site, _, _ in status["sites"]}
        if missing:
            raise StartupError(f"The model has no site for edits at: {', '.join(sorted(missing))}.")
    return statuses


async def _canary(engine: GuardedAsyncLLM) -> tuple[AppliedEdit, float]:
    """One request clean, once more with noise on all but its last token; the difference must show."""
    from guard.engine import canary
    from guard.engine.reading import encode

    ids = encode(canary.TEXT, engine.get_tokenizer())
    noise = Edit("embedding", "embedding_corruption", tuple(range(len(ids) - 1)), "5eed5eed5eed5eed", {})
    effect = await canary.effect(engine, ids, (noise,))
    if not effect.shows:
        raise StartupError("An edit of the canary request did not change what the model says.")
    return effect.applied[0], effect.moved


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(option, value) pairs in the spelling of `--long-names`; `--name.part` counts as `--name`."""
    for i, word in enumerate(argv):
        if not word.startswith("-"):
            continue
        name, _, value = word.partition("=")
        name = name.partition(".")[0].replace("_", "-")
        name = _SHORT.get(name, name)
        following = argv[i + 1] if i + 1 < len(argv) else ""
        yield name, value or ("" if following.startswith("--") else following)


def _without(argv: Sequence[str], option: str) -> list[str]:
    """`argv` less `option` and its value."""
    kept: list[str] = []
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word.replace("_", "-") == option:
            skip = True
        elif word.partition("=")[0].replace("_", "-") != option:
            kept.append(word)
    return kept


def _adapter_options(given: dict[str, str], adapters: AdapterSettings, cpu: bool) -> list[str]:
    if not cpu:
        raise ConfigError("Unlearning adapters have been proven on CPU only; set adapters.slots to 0.")
    for name, setting in (
        ("--max-loras", "slots"), ("--max-lora-rank", "max_rank"), ("--max-cpu-loras", "resident")
    ):  # fmt: skip
        if name in given:
            raise ConfigError(f"{name} cannot be used with unlearning adapters: set adapters.{setting}.")
    return [
        *(["--enable-lora"] if "--enable-lora" not in given else []),
        *("--max-loras", str(adapters.slots), "--max-lora-rank", str(adapters.max_rank)),
        *("--max-cpu-loras", str(_ADAPTERS)),
    ]


def _additional(given: dict[str, str], ours: dict[str, Any]) -> str:
    """vLLM hashes this into the names of compiled artifacts: one made without our sites is never loaded."""
    try:
        own = json.loads(given.get("--additional-config") or "{}")
    except ValueError:
        raise ConfigError("--additional-config is not JSON.") from None
    return json.dumps({**own, "lethe": ours})


def _version() -> str:
    try:
        return version("lethe")
    except PackageNotFoundError:
        return "0"
