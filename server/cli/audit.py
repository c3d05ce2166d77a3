"""`lethe audit`: who changed what, through the admin API."""

from __future__ import annotations

import json
from typing import Any

import click

from server.cli.base import example, remote
from server.cli.client import Failure, connect


@click.group(epilog=example("lethe audit list --target jane-doe"))
def audit() -> None:
    """Show and verify the trail of what admins did."""


@audit.command("list", epilog=example("lethe audit list --action targets.purge --since 2030-01-31"))
@click.option("--target", help="Only what was done to this target.")
@click.option("--action", help="Only this, such as targets.put or keys.create.")
@click.option("--by", "by", metavar="KEY_ID", help="Only what this key did.")
@click.option("--since", help="A time such as 2030-01-31T12:00:00Z.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@remote
def list_acts(
    target: str | None,
    action: str | None,
    by: str | None,
    since: str | None,
    as_json: bool,
    server: str,
    key: str | None,
) -> None:
    """List acts, newest first."""
    given = (("target", target), ("action", action), ("key", by), ("since", since))
    for row in connect(server, key).pages("/audit", {name: value for name, value in given if value}):
        click.echo(json.dumps(row, ensure_ascii=False) if as_json else _line(row))


@audit.command(epilog=example("lethe audit verify", "lethe audit verify --head 1841:5f0c..."))
@click.option("--head", help="One that an earlier verification printed: whether the trail still holds it.")
@remote
def verify(head: str | None, server: str, key: str | None) -> None:
    """Tell whether rows of the trail were changed or removed; prints the head, to be kept elsewhere."""
    found = connect(server, key).json("GET", "/audit/verify", params={"head": head} if head else {})
    if not found["valid"]:
        raise Failure(f"The audit trail is not as it was written: {found['problem']}")
    click.echo(f"valid: {found['rows']} rows from row {found['first']} on", err=True)
    click.echo(found["head"])


def _line(row: dict[str, Any]) -> str:
    what = row["target"] or row["subject"] or ""
    return f"{row['time'][:19]}  {row['key_id']:<20}  {row['action']:<18} {row['outcome']:<8} {what}".rstrip()
