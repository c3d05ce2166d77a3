"""`lethe serve`: from options to a server whose guard is proven live, or one sentence that says why not.

The order is the guarantee. State is opened and every target compiled while the engine's processes start; the guard
is attached before the application exists; the application is served only after the proof.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from guard import logs
from guard.artifacts import ArtifactStore, weights_folder
from guard.audit import DecisionLog
from guard.config import Settings, load_settings
from guard.crypto import Secrets
from guard.errors import ConfigError, LetheError, PreconditionFailed, StartupError
from guard.evidence import Evidence
from guard.library import Library
from guard.pipeline import Guard
from guard.register import Caller, Precondition, Register
from guard.replica import Replica
from guard.speech import Extent
from guard.store import Store
from server import listener
from server.auth import Authenticator, ensure_admin_key
from server.cli.options import ServeOptions
from server.jobs import Model, Runner
from server.limits import EXCHANGE_SECONDS, Limiter
from server.upkeep import Chore, keep

if TYPE_CHECKING:
    from server.app import Services
    from server.tracing import Tracing

log = logging.getLogger("lethe.server")
ROOT = Path(__file__).resolve().parents[1]
DEMO_MODEL = ROOT / "demo" / "models" / "full"
DEMO_TARGETS = ROOT / "demo" / "targets.jsonl"
DEMO_ARTIFACTS = ROOT / "demo" / "artifacts"
DEMO_NAME = "lethe-demo"
NEW = Caller(precondition=Precondition(if_none_match="*"))
DEMO_ARGS = [
    "--served-model-name",
    DEMO_NAME,
    "--dtype",
    "float32",
    "--max-model-len",
    "4096",
    "--enable-auto-tool-choice",
    "--tool-call-parser",
    "hermes",
]


def serve(options: ServeOptions) -> None:
    """Serve until stopped.

    Raises:
        ConfigError, StartupError: one plain sentence; nothing was served.
    """
    with logs.held():
        settings = settings_of(options)
        logged = logs.configure(settings.logging.format, settings.logging.level, settings.data_dir)
    with _uncollected():  # vLLM takes seconds to import; bad settings are told before
        from guard.engine import launch, serving

    launch.pin_environment(logging=logged)
    argv = launch.guarded_args(
        vllm_argv(options, settings), layers=settings.engine.layers, adapters=settings.adapters
    )
    args = serving.parse(argv)
    args.middleware = [*args.middleware, "server.gate.Gate"]
    if (args.api_server_count or 1) > 1:
        if settings.server.admin_port is None:
            raise ConfigError(
                "--api-server-count needs --admin-port: one of the processes answers administration there."
            )
        serving.serve_by_several(args, partial(_serve_one_of_several, settings, options.demo))
        return
    import uvloop

    uvloop.run(_serve(settings, args, serving.bind(args), seed_demo=options.demo))


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is looked for in the block. What is imported stays; looking through it again and again takes a
    quarter of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def settings_of(options: ServeOptions) -> Settings:
    """The configuration with the command line on top.

    Raises:
        ConfigError: a setting is missing, unknown or refused.
    """
    path = options.config or (ROOT / "configs" / "demo.yaml" if options.demo else None)
    settings = load_settings(path, os.environ)
    server = settings.server.model_copy(
        update={
            name: value
            for name in ("host", "port", "admin_port")
            if (value := getattr(options, name)) is not None
        }
    )
    if server.admin_port == server.port:
        raise ConfigError("server.admin_port must be another port than server.port; choose one that is free.")
    auth = settings.auth.model_copy(
        update={
            "demo": settings.auth.demo or options.demo,
            "no_auth": settings.auth.no_auth or options.no_auth,
        }
    )
    return settings.model_copy(update={"server": server, "auth": auth})


def open_inference(settings: Settings) -> bool:
    """Whether inference needs no key: `--no-auth`, or the demo on a loopback address. Nothing else opens it."""
    return settings.auth.no_auth or (settings.auth.demo and is_loopback(settings.server.host))


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def vllm_argv(options: ServeOptions, settings: Settings) -> list[str]:
    """vLLM's own arguments: ours first, so that what the operator wrote after `--` wins."""
    model = str(DEMO_MODEL) if options.demo else str(options.model)
    demo = DEMO_ARGS if options.demo else []
    place = ["--host", settings.server.host, "--port", str(settings.server.port)]
    bars = ["--no-use-tqdm-on-load"] if settings.logging.format == "json" else []  # a bar is no line
    return ["--model", model, *demo, *place, *bars, *options.vllm_args]


@asynccontextmanager
async def services_of(settings: Settings, *, number: int = 0) -> AsyncIterator[Services]:
    """Open all state and compile every stored target; closed again at the end. `number` counts the processes that serve
    one engine."""
    from guard import detection
    from server.app import Services
    from server.drift import read_probes

    probes = read_probes(settings.drift.probes) if settings.drift.probes else ()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    secrets = Secrets.load(settings.data_dir, _plain(settings.auth.master_key))
    store = Store(settings.store_url, secrets)
    if number == 0:
        announce(store, settings)
    cache = settings.data_dir / "cache"
    encoder = detection.load_encoder(
        settings.encoder.name,
        threads=settings.encoder.threads,
        backend=settings.encoder.backend,
        cache_dir=cache,
        cache_rows=settings.encoder.cache,
    )
    library = Library(
        ArtifactStore(settings.artifacts_dir), lambda artifact: detection.read_head(artifact, encoder)
    )
    compiler = (detection.SpeakingCompiler if settings.output.semantic else detection.Compiler)(
        encoder, cache
    )
    await asyncio.to_thread(compiler.prepare)
    authenticator = Authenticator(store.keys, _plain(settings.auth.admin_key))
    register = Register(
        store, library, compiler.compile, detection.Gates(encoder), defaults=settings.target_defaults
    )
    await register.load()
    replica = Replica(
        store,
        register,
        authenticator,
        name=f"{socket.gethostname()}:{settings.server.port}" + (f"/{number}" if number else ""),
        max_age=settings.store.max_snapshot_age,
    )
    wanted = settings.decision_log
    decisions = DecisionLog(
        store.decisions,
        secrets,
        retain_days=wanted.retain_days,
        queue_size=wanted.queue_size,
        text=wanted.text,
    )
    decisions.start()
    watch = asyncio.create_task(register.watch())
    limiter = Limiter(settings.tenants, store.usage)
    upkeep = asyncio.create_task(keep(*chores(settings, store, limiter, authenticator)))
    judging = settings.detection
    with (
        ThreadPoolExecutor(judging.concurrency, thread_name_prefix="detection") as executor,
        ThreadPoolExecutor(settings.output.concurrency, thread_name_prefix="answers") as answers,
    ):
        guard = Guard(
            lambda: replica.snapshot,
            secrets,
            executor,
            judging.deadline_ms / 1000,
            judging.hold_ms / 1000,
            limit=judging.queue,
            refuse_unread=judging.unread == "refuse",
            extent=Extent(settings.output.window, settings.output.lookahead),
            answers=answers,
            ahead_tokens=settings.engine.ahead_tokens,
        )
        jobs = Runner(
            store.jobs,
            register,
            library.store,
            settings.jobs,
            settings.data_dir.absolute() / "jobs",
            encoder=[
                *("--encoder", settings.encoder.name, "--backend", settings.encoder.backend),
                *("--encoder-digest", encoder.digest, "--cache", str(cache.absolute())),
            ],
        )
        try:
            yield Services(
                settings,
                store,
                library,
                register,
                jobs,
                decisions,
                authenticator,
                Evidence(store, register, secrets),
                guard,
                replica,
                limiter,
                open_inference(settings),
                probes,
            )
        finally:
            watch.cancel()
            upkeep.cancel()
            await asyncio.gather(upkeep, return_exceptions=True)
            await asyncio.to_thread(replica.close)
            register.close()
            decisions.close()
            store.close()


def chores(
    settings: Settings, store: Store, limiter: Limiter, authenticator: Authenticator
) -> Iterator[Chore]:
    """What is done again and again beside serving."""
    retained = settings.audit.retain_days * 86_400
    yield Chore("pruning the audit trail", 3_600, lambda: store.audit.prune(time.time() - retained))
    yield Chore("noting when keys were used", 60, authenticator.note_uses)
    if limiter.quotas:
        yield Chore("exchanging the tokens of the day", EXCHANGE_SECONDS, limiter.exchange)


def announce(store: Store, settings: Settings) -> None:
    """Say once what an operator must know: a new admin key, and an inference API without keys."""
    key = ensure_admin_key(store.keys, _plain(settings.auth.admin_key))
    if key is not None:
        print(f"Admin key (shown once): {key}", file=sys.stderr, flush=True)
    if settings.auth.no_auth:
        log.warning("--no-auth lets anybody who reaches this server use it")


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _serve_one_of_several(
    settings: Settings, demo: bool, _address: Any, sock: socket.socket, args: Any, client: dict[str, Any]
) -> None:
    """What each process does where several serve one engine. The first does what must be done once: it makes the first
    key, seeds the demo and runs jobs."""
    import uvloop

    logs.configure(settings.logging.format, settings.logging.level, settings.data_dir)
    number = client["client_index"]
    if number:
        settings = settings.model_copy(update={"jobs": settings.jobs.model_copy(update={"parallel": 0})})
    try:
        uvloop.run(_serve(settings, args, sock, seed_demo=demo and number == 0, client=client))
    except LetheError as error:
        sys.exit(f"Error: {error.message}")


async def _serve(
    settings: Settings,
    args: Any,
    sock: socket.socket,
    *,
    seed_demo: bool,
    client: dict[str, Any] | None = None,
) -> None:
    with (
        _uncollected()
    ):  # and all before threads run, of which two that import one package may get half of it
        import sentence_transformers  # noqa: F401

        from guard.engine import launch, loading, serving
        from server.app import attach

    place, number = settings.server, client["client_index"] if client else 0
    admin_port = place.admin_port if number == 0 else None
    admin_sock = listener.bind(place.admin_host, admin_port) if admin_port else None
    async with (
        serving.starting_engine(args, client) as started,
        services_of(settings, number=number) as services,
    ):
        if seed_demo:
            await seed(services)
        engine = await started()
        proof = await launch.prove(engine)
        engine.guard = services.guard
        workers = await loading.EngineWorkers.of(engine)
        await services.register.attach(workers)
        await asyncio.to_thread(services.replica.start)
        services.jobs.start(Model(weights_folder(engine.model_config.model), workers.base_model))
        try:
            app = await serving.application(engine, args)
            async with traces(settings, lambda model: serving.serves(app, model)) as tracing:
                drift = attach(app, services, engine, proof, tracing)
                async with AsyncExitStack() as stack:
                    if drift is not None:
                        stack.callback(asyncio.create_task(drift.run()).cancel)
                    if admin_sock is not None:
                        await stack.enter_async_context(listener.listening(app, admin_sock, args))
                        address = f"http://{place.admin_host}:{place.admin_port}"
                        log.info("admin API, console and metrics are on %s", address)
                    print(f"Lethe is ready on http://{args.host}:{args.port}", file=sys.stderr, flush=True)
                    door = app.state.lethe.door
                    await serving.serve_until_stopped(app, args, sock, engine, door.close, client)
        finally:
            await services.jobs.close()
            await services.register.detach()


@asynccontextmanager
async def traces(settings: Settings, serves: Callable[[str], bool]) -> AsyncIterator[Tracing | None]:
    """What makes spans, None where nobody wants them; what waits is sent at the end."""
    from server import tracing

    wanted = settings.tracing
    endpoint = tracing.endpoint_of(wanted, os.environ)
    if endpoint is None:
        yield None
        return
    found = tracing.Tracing(tracing.exporter(endpoint, os.environ), serves, sample=wanted.sample)
    try:
        yield found
    finally:
        await asyncio.to_thread(found.close)


async def seed(services: Services) -> None:
    """Bring the demo's artifacts, and register its forget targets if this store never held a target."""
    for folder in sorted(DEMO_ARTIFACTS.glob("*/")):
        services.library.store.add(folder)
    if services.store.snapshot == 0:
        lines = DEMO_TARGETS.read_text(encoding="utf-8").splitlines()
        try:
            report = await services.register.import_lines(lines, atomic=True, caller=NEW)
        except PreconditionFailed:  # another server of this store starts too, and was first
            await asyncio.to_thread(services.register.follow)
        else:
            if report["rejected"]:
                raise StartupError(f"The demo's targets were refused: {report['rejected'][0]['error']}")
