"""`lethe artifacts`: what was trained for the methods that need it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from server.cli.base import example, remote
from server.cli.client import Client, Failure, Unreachable, connect

if TYPE_CHECKING:
    from guard.artifacts import Artifact


def in_store(command: Callable[..., Any]) -> Callable[..., Any]:
    """--config and --data-dir, which say where the server's artifacts lie."""
    command = click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="The server's data folder.  [default: what the configuration or LETHE_DATA_DIR says]",
    )(command)
    return click.option(
        "--config",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="LETHE_CONFIG",
        help="The server's configuration file, which names its data folder.",
    )(command)


@click.group(epilog=example("lethe artifacts add runs/steering"))
def artifacts() -> None:
    """Bring, list and remove trained artifacts. A target names one by its digest."""


@artifacts.command(epilog=example("lethe artifacts add runs/steering"))
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@in_store
@remote
def add(folder: Path, config: Path | None, data_dir: Path | None, server: str, key: str | None) -> None:
    """Copy the artifact in FOLDER into the store on this machine, and let the running server load it."""
    artifact = into_store(folder, config, data_dir)
    click.echo(artifact.digest)
    try:
        connect(server, key).json("POST", "/artifacts", json={"digest": artifact.digest})
    except Unreachable:
        click.echo(f"Stored in {artifact.folder.parent}; a server loads it when it starts.", err=True)
    else:
        click.echo(f"The server at {server} has loaded it for {artifact.manifest.method}.", err=True)


@artifacts.command("list", epilog=example("lethe artifacts list"))
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@remote
def list_artifacts(as_json: bool, server: str, key: str | None) -> None:
    """List what the server's store holds."""
    for row in connect(server, key).pages("/artifacts", {}):
        if as_json:
            click.echo(json.dumps(row, ensure_ascii=False))
            continue
        why = f"  {row['error']}" if row["error"] else ""
        click.echo(f"{row['digest']}  {row['state']:<7}  {row['method'] or '-'}{why}")


@artifacts.command(epilog=example("lethe artifacts remove 0123456789ab"))
@click.argument("digest")
@remote
def remove(digest: str, server: str, key: str | None) -> None:
    """Erase an artifact, named by its DIGEST or the beginning of it. Targets that name it fall back."""
    client = connect(server, key)
    whole = _only(client, digest)
    client.json("DELETE", f"/artifacts/{whole}")
    click.echo(f"{whole} removed")


def into_store(folder: Path, config: Path | None, data_dir: Path | None) -> Artifact:
    """A copy of the artifact in `folder`, in the server's store on this machine."""
    from guard.artifacts import ArtifactStore
    from guard.config import load_settings

    settings = load_settings(config, os.environ)
    if data_dir is not None:
        settings = settings.model_copy(update={"data_dir": data_dir})
    return ArtifactStore(settings.artifacts_dir).add(folder)


def _only(client: Client, beginning: str) -> str:
    found = [row["digest"] for row in client.pages("/artifacts", {}) if row["digest"].startswith(beginning)]
    if len(found) != 1:
        told = "No artifact begins" if not found else f"{len(found)} artifacts begin"
        raise Failure(f"{told} with '{beginning}'; look at `lethe artifacts list`.")
    return str(found[0])
