"""`lethe store`: the store on this machine, checked, backed up and brought back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from server.cli.artifacts import in_store
from server.cli.base import example
from server.cli.client import Failure

if TYPE_CHECKING:
    from guard.config import Settings
    from guard.crypto import Secrets

_OTHERS = "The store is in PostgreSQL, which has tools of its own: {tool}."


@click.group(epilog=example("lethe store backup /backups/lethe.db"))
def store() -> None:
    """Check, back up and restore the store on this machine."""


@store.command(epilog=example("lethe store check --data-dir /var/lib/lethe"))
@in_store
def check(config: Path | None, data_dir: Path | None) -> None:
    """Read all of the store: its structure, every sealed text, the audit trail. A server may be running."""
    from guard.store import recovery

    settings, secrets = _opened(config, data_dir)
    if (path := recovery.file_of(settings.store_url)) and not path.exists():
        raise Failure(f"There is no store at {path}; name its folder with --data-dir.")
    found = recovery.check(settings.store_url, secrets)
    click.echo(
        f"sound: {found.targets} targets in {found.versions} versions, {found.keys} keys, {found.acts} acts"
    )


@store.command(epilog=example("lethe store backup /backups/lethe-$(date +%F).db"))
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@in_store
def backup(file: Path, config: Path | None, data_dir: Path | None) -> None:
    """Copy the store to FILE, a new file. A server may be running. Keep the secret apart from it."""
    from guard.store import recovery

    settings, _ = _opened(config, data_dir)
    path = recovery.file_of(settings.store_url)
    if path is None:
        raise Failure(_OTHERS.format(tool="pg_dump --format=custom"))
    recovery.backup(path, file)
    click.echo(f"{path} is copied to {file}", err=True)


@store.command(epilog=example("lethe store restore /backups/lethe-2030-01-31.db"))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask.")
@in_store
def restore(file: Path, yes: bool, config: Path | None, data_dir: Path | None) -> None:
    """Put the backup FILE in the place of the store, which is moved aside. Stop the server before."""
    from guard.store import recovery

    settings, secrets = _opened(config, data_dir)
    path = recovery.file_of(settings.store_url)
    if path is None:
        raise Failure(_OTHERS.format(tool="pg_restore"))
    if not yes:
        click.confirm(f"Put {file} in the place of {path}?", abort=True, err=True)
    done = recovery.restore(file, path, secrets)
    if done.aside is not None:
        click.echo(f"what was there is in {done.aside}; delete it when you need it no more", err=True)
    if done.purged is None:
        click.echo("what was purged since cannot be told: purge again what must not come back", err=True)
    elif done.purged:
        click.echo(f"{done.purged} targets that were purged since are purged here too", err=True)
    click.echo(f"restored: {done.report.targets} targets, {done.report.keys} keys")


def _opened(config: Path | None, data_dir: Path | None) -> tuple[Settings, Secrets]:
    """The configuration, and the secret that the store was written with.

    Raises:
        Failure: the secret is not here, and a new one would open nothing.
    """
    from guard.config import load_settings
    from guard.crypto import Secrets

    env = {**os.environ, **({"LETHE_DATA_DIR": str(data_dir)} if data_dir else {})}
    settings = load_settings(config, env)
    master = settings.auth.master_key
    if master is None and not (settings.data_dir / "secret").exists():
        raise Failure(
            f"The master secret is neither in {settings.data_dir} nor in LETHE_MASTER_KEY; bring it back first."
        )
    return settings, Secrets.load(settings.data_dir, master.get_secret_value() if master else None)
