"""`lethe targets`: what shall be forgotten, through the admin API."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TextIO

import click

from server.cli.base import example, remote
from server.cli.client import Failure, connect, path_of, show

_COUNTS = ("created", "updated", "deleted", "purged")
_WOULD = {"created": "bring back", "updated": "change", "deleted": "delete"}


@click.group(epilog=example("lethe targets list --tag legal"))
def targets() -> None:
    """Register, show and remove what shall be forgotten."""


@targets.command("list", epilog=example("lethe targets list --state active --json"))
@click.option("--tag", help="Only those with this tag.")
@click.option("--state", type=click.Choice(["pending", "active", "failed", "expired"]))
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@remote
def list_targets(tag: str | None, state: str | None, as_json: bool, server: str, key: str | None) -> None:
    """List targets."""
    wanted = {name: value for name, value in (("tag", tag), ("state", state)) if value}
    rows = list(connect(server, key).pages("/targets", wanted))
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, ensure_ascii=False))
        return
    if not rows:
        click.echo("No targets.", err=True)
        return
    width = max(len(row["id"]) for row in rows)
    for row in rows:
        tags = ",".join(row["tags"])
        click.echo(
            f"{row['id']:<{width}}  {row['state']:<7}  {row['mode']:<7}  v{row['version']:<4} {tags}".rstrip()
        )


@targets.command("show", epilog=example("lethe targets show jane-doe"))
@click.argument("target_id", metavar="ID")
@remote
def show_target(target_id: str, server: str, key: str | None) -> None:
    """Show one target."""
    click.echo(show(connect(server, key).json("GET", path_of(target_id))))


@targets.command(
    epilog=example(
        'lethe targets add "Jane Doe" --alias "J. Doe" --tag legal',
        "lethe targets add --file jane.json",
    )
)
@click.argument("name", required=False)
@click.option("--id", "target_id", help="Its id; made from the name when left out.")
@click.option("--alias", "aliases", multiple=True, help="Another name; may be repeated.")
@click.option("--description", help="What identifies it without its name.")
@click.option("--example", "examples", multiple=True, help="A prompt about it; may be repeated.")
@click.option("--tag", "tags", multiple=True, help="May be repeated.")
@click.option("--kind", type=click.Choice(["entity", "work", "subject", "skill", "tool"]))
@click.option("--mode", type=click.Choice(["enforce", "shadow", "off"]))
@click.option("--method", help="The intervention; `auto` when left out.")
@click.option(
    "--file", "file", type=click.File("r", encoding="utf-8"), help="The target as JSON; - is stdin."
)
@click.option("--force", is_flag=True, help="Take it although it fires on background prompts.")
@remote
def add(
    name: str | None,
    target_id: str | None,
    file: TextIO | None,
    method: str | None,
    force: bool,
    server: str,
    key: str | None,
    **fields: Any,
) -> None:
    """Register a target, or replace the one with the same --id. It is enforced when this returns."""
    target = _read_object(file) if file else {}
    target.update({field: list(v) if isinstance(v, tuple) else v for field, v in fields.items() if v})
    if name:
        target["name"] = name
    if method:
        target["intervention"] = "auto" if method == "auto" else {"method": method}
    if "name" not in target:
        raise click.UsageError("Give the NAME of what shall be forgotten, or --file.")
    target_id = target_id or target.get("id")
    route = ("PUT", path_of(str(target_id))) if target_id else ("POST", "/targets")
    if target_id:
        target["id"] = target_id
    view = connect(server, key).json(*route, json=target, params={"force": "true"} if force else {})
    click.echo(f"{view['id']} v{view['version']} is {view['state']}")


@targets.command(
    "import",
    epilog=example(
        "lethe targets import targets.jsonl --atomic", "lethe targets import names.xlsx --dry-run"
    ),
)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True))
@click.option("--atomic", is_flag=True, help="Take all lines or none.")
@click.option("--force", is_flag=True, help="Take targets although they fire on background prompts.")
@click.option("--dry-run", is_flag=True, help="Store nothing; only show what would be refused.")
@remote
def import_targets(
    file: Path, atomic: bool, force: bool, dry_run: bool, server: str, key: str | None
) -> None:
    """Register the targets in FILE: one JSON object per line (- is stdin), or a sheet (.csv, .xlsx) with the columns
    name, aliases, description, reference, expires_at and tags, several aliases or tags with ; between them."""
    given = (("atomic", atomic), ("force", force), ("dry_run", dry_run))
    content, kind = _read_targets(file)
    click.echo("Importing; large files take a while.", err=True)
    result = connect(server, key).json(
        "POST",
        "/targets/import",
        content=content,
        params={name: "true" for name, value in given if value},
        headers={"Content-Type": kind},
    )
    would = "dry run: " if dry_run else ""
    click.echo(
        f"{would}{result['created']} created, {result['updated']} updated, {len(result['rejected'])} rejected"
    )
    for line in result["rejected"]:
        click.echo(f"line {line['line']}: {line['error']}", err=True)
    if result["rejected"]:
        kept = "nothing was stored" if atomic or dry_run else "the other lines were stored"
        raise Failure(f"{len(result['rejected'])} lines were refused, {kept}; correct them and import again.")


@targets.command(epilog=example("lethe targets export --output targets.jsonl"))
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="File to write; stdout otherwise."
)
@remote
def export(output: Path | None, server: str, key: str | None) -> None:
    """Write all targets as JSON lines, as import takes them."""
    content = connect(server, key).call("GET", "/targets/export").content
    if output is None:
        click.echo(content, nl=False)
        return
    _write(output, content)
    count = content.count(b"\n")
    click.echo(f"{count} targets written to {output}", err=True)


@targets.command(epilog=example("lethe targets remove jane-doe --purge"))
@click.argument("target_id", metavar="ID")
@click.option("--purge", is_flag=True, help="Erase its content everywhere, past versions included.")
@click.option("--yes", is_flag=True, help="Do not ask before purging.")
@remote
def remove(target_id: str, purge: bool, yes: bool, server: str, key: str | None) -> None:
    """Stop enforcing a target."""
    if purge and not yes:
        click.confirm(f"Erase everything that is stored about {target_id}?", abort=True, err=True)
    connect(server, key).json("DELETE", path_of(target_id), params={"purge": "true"} if purge else {})
    click.echo(f"{target_id} {'purged' if purge else 'removed'}")


@targets.command(epilog=example("lethe targets history"))
@remote
def history(server: str, key: str | None) -> None:
    """List the snapshots that changed targets, newest first, with what each changed."""
    for row in connect(server, key).pages("/snapshots", {}):
        counts = ", ".join(f"{row[name]} {name}" for name in _COUNTS if row[name])
        back = f" to {row['subject']}" if row["action"] == "targets.rollback" else ""
        click.echo(
            f"{row['snapshot']:>6}  {row['time'][:19]}  {row['key_id']:<20}  {row['action']}{back}: {counts}"
        )


@targets.command(epilog=example("lethe targets rollback 17 --dry-run", "lethe targets rollback 17"))
@click.argument("number", type=click.IntRange(0))
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@remote
def rollback(number: int, dry_run: bool, yes: bool, server: str, key: str | None) -> None:
    """Make the targets what they were at snapshot NUMBER, but for those that were purged since."""
    client, path = connect(server, key), f"/snapshots/{number}/rollback"
    plan = client.json("POST", path, params={"dry_run": "true"})
    for name in _COUNTS:
        for target_id in plan.get(name, ()):
            click.echo(f"{_WOULD[name]} {target_id}")
    if dry_run:
        return
    if not yes:
        click.confirm(f"Go back to snapshot {number}?", abort=True, err=True)
    done = client.json("POST", path, headers={"If-Match": f'"{plan["snapshot"]}"'})
    click.echo(f"snapshot {done['snapshot']} is as {number} was", err=True)


@targets.command(epilog=example("lethe targets evidence jane-doe --out jane-doe.evidence.json"))
@click.argument("target_id", metavar="ID")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write; stdout otherwise."
)
@remote
def evidence(target_id: str, out: Path | None, server: str, key: str | None) -> None:
    """What a forget request can show of a target, as a signed file without its text."""
    content = connect(server, key).call("GET", f"{path_of(target_id)}/evidence").content
    if out is None:
        click.echo(content, nl=False)
        return
    _write(out, content)
    click.echo(f"written to {out}", err=True)


@targets.command(epilog=example("lethe targets verify jane-doe.evidence.json --fingerprint 5f0c..."))
@click.argument("file", type=click.File("rb"))
@click.option(
    "--fingerprint",
    required=True,
    help="Of the installation's key: `evidence_key` in its GET /admin/v1/status.",
)
def verify(file: Any, fingerprint: str) -> None:
    """Check a signed evidence file; needs no server."""
    from guard.evidence import verified

    claims = verified(file.read(), fingerprint)
    since = claims["enforcement"]["enforced_since"] or "not enforced"
    click.echo(f"valid: issued {claims['issued_at']}, enforced since {since}")


def _read_targets(path: Path) -> tuple[bytes, str]:
    """What to send, and what it is."""
    if path.suffix.lower() == ".xlsx":
        from server.cli.sheets import csv_of

        return csv_of(path), "text/csv"
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}.") from None
    return content, "text/csv" if path.suffix.lower() == ".csv" else "application/jsonl"


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}.") from None


def _read_object(file: TextIO) -> dict[str, Any]:
    try:
        value = json.load(file)
    except ValueError:
        raise Failure(f"{file.name} is not valid JSON; correct it and repeat.") from None
    if not isinstance(value, dict):
        raise Failure(f"{file.name} must hold one JSON object; for several use `lethe targets import`.")
    return value
