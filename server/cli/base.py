"""How all commands behave: errors as one sentence, 1 on failure, 2 on bad usage, an example in every help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class Main(click.Group):
    """Turns our errors into one line on stderr; what is not ours keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        from guard.errors import LetheError

        try:
            return super().invoke(ctx)
        except LetheError as error:
            raise click.ClickException(error.message) from None


def example(*lines: str) -> str:
    """The epilog that shows how a command is used; \\b keeps the lines apart."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def remote(command: F) -> F:
    """Options of every command that talks to a server."""
    command = click.option(
        "--server",
        envvar="LETHE_SERVER",
        default="http://127.0.0.1:8000",
        show_default=True,
        show_envvar=True,
        help="Address of the server.",
    )(command)
    return click.option(
        "--key",
        envvar="LETHE_ADMIN_KEY",
        default=None,
        show_envvar=True,
        help="Admin key; better given in the environment.",
    )(command)


def command_table() -> dict[str, click.Command]:
    from server.cli import artifacts, audit, check, jobs, keys, local, serve, store, targets

    remote_commands = (targets.targets, artifacts.artifacts, jobs.jobs, check.check, keys.keys, audit.audit)
    commands = (
        serve.serve,
        *remote_commands,
        store.store,
        local.demo,
        local.data,
        local.train,
        local.evaluate,
        local.bench,
    )
    return {str(command.name): command for command in commands}
