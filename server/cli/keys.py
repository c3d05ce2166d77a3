"""`lethe keys`: who may call, and as what."""

from __future__ import annotations

import json
from urllib.parse import quote

import click

from server.cli.base import example, remote
from server.cli.client import connect


@click.group(epilog=example("lethe keys create --role inference --tenant acme"))
def keys() -> None:
    """List, create and revoke API keys."""


@keys.command("list", epilog=example("lethe keys list"))
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@remote
def list_keys(as_json: bool, server: str, key: str | None) -> None:
    """List keys; the keys themselves are shown by `create` only."""
    for row in connect(server, key).pages("/keys", {}):
        if as_json:
            click.echo(json.dumps(row))
            continue
        until = row["expires_at"] or "never expires"
        until += f", {row['successor']} takes its place" if row["successor"] else ""
        click.echo(f"{row['id']}  {row['role']:<9}  {row['tenant'] or '-':<16}  {until}")


@keys.command(epilog=example("lethe keys create --role operator --expires 2030-01-31T00:00:00Z"))
@click.option(
    "--role",
    type=click.Choice(["inference", "gateway", "auditor", "operator", "admin"]),
    default="inference",
    show_default=True,
)
@click.option("--tenant", help="The tenant that the key is confined to.")
@click.option("--expires", "expires_at", help="When it stops working, such as 2030-01-31T00:00:00Z.")
@click.option(
    "--speaks-for-tenants",
    "speaks",
    is_flag=True,
    help="For a gateway that names the tenant in a signed header.",
)
@remote
def create(
    role: str, tenant: str | None, expires_at: str | None, speaks: bool, server: str, key: str | None
) -> None:
    """Create a key and show it, this once."""
    body = {"role": role, "tenant": tenant, "expires_at": expires_at, "speaks_for_tenants": speaks}
    made = connect(server, key).json("POST", "/keys", json=body)
    click.echo(f"{made['id']} ({made['role']}) is shown this once:", err=True)
    click.echo(made["key"])


@keys.command(epilog=example("lethe keys rotate key_0123456789abcdef --grace 3600"))
@click.argument("key_id", metavar="ID")
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=86_400,
    show_default=True,
    help="Seconds that the old one stays good.",
)
@click.option(
    "--expires", "expires_at", help="When the new one stops working; by default as long as the old one."
)
@remote
def rotate(key_id: str, grace: float, expires_at: str | None, server: str, key: str | None) -> None:
    """Make a key in the place of another, and show it, this once."""
    body = {"grace_seconds": grace, "expires_at": expires_at}
    made = connect(server, key).json("POST", f"/keys/{quote(key_id, safe='')}/rotate", json=body)
    click.echo(f"{made['id']} ({made['role']}) takes the place of {key_id} and is shown this once:", err=True)
    click.echo(made["key"])


@keys.command(epilog=example("lethe keys revoke key_0123456789abcdef"))
@click.argument("key_id", metavar="ID")
@remote
def revoke(key_id: str, server: str, key: str | None) -> None:
    """Revoke a key, at once."""
    connect(server, key).json("DELETE", f"/keys/{quote(key_id, safe='')}")
    click.echo(f"{key_id} revoked")
