"""`lethe serve`: the guarded server."""

from __future__ import annotations

import signal
from pathlib import Path

import click

from server.cli.base import example
from server.cli.options import ServeOptions

_VLLM_ARGS = "lethe.vllm_args"


class _WithRest(click.Command):
    """Keeps what stands behind `--` from click: it is for vLLM, and MODEL may be missing before it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            args, ctx.meta[_VLLM_ARGS] = args[:at], tuple(args[at + 1 :])
        return super().parse_args(ctx, args)


def _end(number: int, frame: object) -> None:
    """Ends a start. Once requests are served the server ends in order; before, the first process of a container would
    not even hear the signal."""
    raise SystemExit(128 + number)


@click.command(
    cls=_WithRest,
    options_metavar="[OPTIONS]",
    epilog=example(
        "lethe serve --demo",
        "lethe serve Qwen/Qwen2.5-0.5B-Instruct --port 9000 -- --max-model-len 4096",
    ),
)
@click.argument("model", required=False)
@click.option(
    "--demo", is_flag=True, help="Serve the small model that ships with Lethe, open to this machine."
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="LETHE_CONFIG",
    help="Configuration file; configs/default.yaml lists all keys.",
)
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the inference API.  [default: 8000]")
@click.option(
    "--admin-port",
    type=click.IntRange(1, 65535),
    help="Port of admin API, console and metrics.  [default: the inference port]",
)
@click.option("--no-auth", is_flag=True, help="Open the inference API without a key.")
@click.pass_context
def serve(
    ctx: click.Context,
    model: str | None,
    demo: bool,
    config: Path | None,
    host: str | None,
    port: int | None,
    admin_port: int | None,
    no_auth: bool,
) -> None:
    """Serve MODEL, a Hugging Face id or a folder, guarded. What follows `--` goes to vLLM."""
    if model is None and not demo:
        raise click.UsageError("Give a MODEL to serve, or --demo for the one that ships with Lethe.")
    if model is not None and demo:
        raise click.UsageError("--demo serves the model that ships with Lethe; leave out MODEL or --demo.")
    options = ServeOptions(
        model=model,
        demo=demo,
        config=config,
        host=host,
        port=port,
        admin_port=admin_port,
        no_auth=no_auth,
        vllm_args=ctx.meta.get(_VLLM_ARGS, ()),
    )
    signal.signal(signal.SIGTERM, _end)
    from server import launcher

    launcher.serve(options)
