"""vLLM's own HTTP application with the guarded engine client inside: parsed, built, proven and served from here.

The parts are vLLM's (`build_app`, `init_app_state`, `serve_http`); only the order is ours, because the guard must
be attached and proven live before the first request, and our middleware must be named before the stack is built.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import socket
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI

from guard.engine.client import GuardedAsyncLLM
from guard.engine.reading import read
from guard.errors import BadRequest, ConfigError, StartupError
from guard.types import Message, Prompt

_POLL_S = 0.1
Client = dict[str, Any]
"""What vLLM tells one of several API servers of the engine's addresses, its own number (`client_index`) and how many
connections each has."""


def parse(argv: list[str]) -> Namespace:
    """vLLM's server arguments; vLLM's parser prints what is wrong with them and exits with 2.

    Raises:
        ConfigError: they would write what clients send into the log.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args = make_arg_parser(FlexibleArgumentParser(prog="lethe serve")).parse_args(argv)
    if getattr(args, "model_tag", None):
        args.model = args.model_tag
    validate_parsed_serve_args(args)
    if args.enable_log_requests:  # by an abbreviation of the option, which vLLM's parser takes too
        raise ConfigError("--enable-log-requests cannot be used: it writes prompts into the log.")
    args.log_error_stack = False  # on by itself in vLLM's mode for developers; it writes parts of requests
    return args


def bind(args: Namespace) -> socket.socket:
    """The listening socket, before the engine is started, so that a taken port is found out at once."""
    from vllm.entrypoints.launchers.launcher import setup_server

    try:
        return setup_server(args, reuse_port=False)[1]
    except OSError as error:
        raise StartupError(f"Cannot listen on {args.host}:{args.port}: {error.strerror}.") from None


def serve_by_several(args: Namespace, serve: Callable[[Any, socket.socket, Namespace, Client], None]) -> None:
    """Start the engine, and as many processes beside it as `args.api_server_count` says; until a signal, or until one
    of them ends. Each runs `serve(address, socket, args, client)`, which must be importable; all accept from one
    socket.

    Raises:
        StartupError: one of them failed; it has told why itself.
    """
    from vllm.entrypoints.cli import serve as several
    from vllm.v1.utils import APIServerProcessManager

    several.APIServerProcessManager = partial(APIServerProcessManager, target_server_fn=serve)
    try:
        several.run_multi_api_server(args)
    except OSError as error:
        raise StartupError(f"Cannot listen on {args.host}:{args.port}: {error.strerror}.") from None
    except RuntimeError as error:
        raise StartupError(f"The server ended: {_first_line(error)}") from error


@asynccontextmanager
async def starting_engine(
    args: Namespace, client: Client | None = None
) -> AsyncIterator[Callable[[], Awaitable[GuardedAsyncLLM]]]:
    """The engine behind a guarded client. Its processes start beside whatever the block does; what it is given waits
    for them. Shut down at the end, also where nobody waited. With `client`, an engine that is there already: it stays
    when this client leaves.

    Raises:
        StartupError: vLLM did not start; from what the block is given, too.
    """
    config, connect = _configured(args, client or {})
    with ThreadPoolExecutor(1, thread_name_prefix="engine") as executor:
        starting = executor.submit(connect)
        try:
            yield partial(_started, starting)
        finally:
            while not starting.done():  # it waits for processes, which are not needed any more
                for process in multiprocessing.active_children():
                    process.kill()  # told to end, vLLM's engine would first finish starting
                await asyncio.sleep(_POLL_S)
            if starting.exception() is None:
                starting.result().shutdown(timeout=config.shutdown_timeout)


def _configured(args: Namespace, client: Client) -> tuple[Any, Callable[[], GuardedAsyncLLM]]:
    """vLLM's configuration, and what starts the engine or joins it, which blocks.

    Raises:
        StartupError: vLLM cannot run the model so.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import propagate_flash_late_interaction
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform
    from vllm.usage.usage_lib import UsageContext

    if current_platform.is_cpu():
        # vLLM looks at a model's class in another process where it has not before, so that CUDA stays untouched in
        # this one. On CPU that would only import everything once more.
        registry._run_in_subprocess = lambda look: look()
    known = {name: value for name, value in client.items() if name != "api_server_loads"}
    wanted = AsyncEngineArgs.from_cli_args(args)
    propagate_flash_late_interaction(args, wanted)
    count, index = known.pop("client_count", 1), known.pop("client_index", 0)
    if client:
        wanted._api_process_count, wanted._api_process_rank = count, index
    try:
        config = wanted.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    except Exception as error:
        raise StartupError(f"The engine did not start: {_first_line(error)}") from error
    return config, partial(
        GuardedAsyncLLM.from_vllm_config,
        vllm_config=config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        enable_log_requests=wanted.enable_log_requests,
        aggregate_engine_logging=wanted.aggregate_engine_logging,
        disable_log_stats=wanted.disable_log_stats,
        client_addresses=known,
        client_count=count,
        client_index=index,
    )


async def _started(starting: Future[GuardedAsyncLLM]) -> GuardedAsyncLLM:
    try:
        engine = await asyncio.wrap_future(starting)
        await engine.reset_mm_cache()  # what vLLM warmed it with
    except Exception as error:
        raise StartupError(f"The engine did not start: {_first_line(error)}") from error
    return engine


async def application(engine: GuardedAsyncLLM, args: Namespace) -> FastAPI:
    """vLLM's application over `engine`, ready but not served."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    tasks = await engine.get_supported_tasks()
    app = build_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    return app


async def serve_until_stopped(
    app: FastAPI,
    args: Namespace,
    sock: socket.socket,
    engine: GuardedAsyncLLM,
    drain: Callable[[float], Awaitable[None]],
    client: Client | None = None,
) -> None:
    """Serve until a signal or the engine's death. Of several processes, the one with the fewest connections accepts.

    At a signal `drain` is given `--shutdown-timeout` seconds, and only then is the engine stopped: vLLM itself would
    take requests that its engine answers no more, and end it before the last texts of the running ones were judged.
    Several processes are stopped by vLLM.
    """
    from vllm.entrypoints.launchers.launcher import serve_http

    loads = (client["api_server_loads"], client["client_index"]) if client else None
    serving = serve_http(
        app,
        sock=sock,
        peer_loads=loads,
        host=args.host,
        port=args.port,
        log_level=None,
        access_log=False,  # its lines hold raw paths; ours are written by the gate
        log_config=None,  # as this process is set up already
        ssl_keyfile=args.ssl_keyfile,
        ssl_certfile=args.ssl_certfile,
        ssl_ca_certs=args.ssl_ca_certs,
        ssl_cert_reqs=args.ssl_cert_reqs,
        ssl_ciphers=args.ssl_ciphers,
        h11_max_incomplete_event_size=args.h11_max_incomplete_event_size,
        h11_max_header_count=args.h11_max_header_count,
    )
    if client is not None:
        await (await serving)
        return
    task = asyncio.create_task(serving)
    await asyncio.sleep(0)  # until it waits, its own handlers installed, of which ours take the place
    told = asyncio.Event()
    for sign in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sign, told.set)
    stopping = asyncio.create_task(_stop(told, task, engine, lambda: drain(args.shutdown_timeout)))
    try:
        await (await task)
    finally:
        stopping.cancel()


async def _stop(
    told: asyncio.Event,
    task: asyncio.Task[Any],
    engine: GuardedAsyncLLM,
    drain: Callable[[], Awaitable[None]],
) -> None:
    await told.wait()
    await drain()
    await asyncio.to_thread(engine.shutdown, timeout=0)
    task.cancel()


def serves(app: FastAPI, model: str) -> bool:
    """Whether a client may ask for the model by this name: that of the served one, or of an adapter."""
    models = app.state.openai_serving_models
    return models.is_base_model(model) or model in models.lora_requests


async def render(
    app: FastAPI, engine: GuardedAsyncLLM, body: dict[str, Any], messages: tuple[Message, ...]
) -> Prompt:
    """The prompt that a generation with this body would be judged on, rendered by vLLM's own handlers.

    `body` holds `messages` (with what else a chat request takes) or `prompt`, and `model`.

    Raises:
        BadRequest: vLLM refuses to render it.
    """
    from pydantic import ValidationError
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse
    from vllm.exceptions import VLLMClientError

    serving = app.state.serving_render
    try:
        if "messages" in body:
            rendered = await serving.render_chat_request(ChatCompletionRequest.model_validate(body))
        else:
            rendered = await serving.render_completion_request(CompletionRequest.model_validate(body))
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRequest(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from None
    except (ValueError, VLLMClientError) as error:
        raise BadRequest(_first_line(error)) from None
    if isinstance(rendered, ErrorResponse):
        raise BadRequest(rendered.error.message, param=rendered.error.param)
    request = rendered[0] if isinstance(rendered, list) else rendered
    return read(request.token_ids, engine.get_tokenizer(), messages=messages)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
