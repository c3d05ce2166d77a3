"""`lethe jobs`: training beside a running server."""

from __future__ import annotations

import json
import time
from typing import IO, Any

import click

from server.cli.base import example, remote
from server.cli.client import Client, Failure, connect

_OVER = ("succeeded", "failed", "cancelled")
_POLL_S = 1.0


@click.group(epilog=example("lethe jobs start neurons jane-doe --wait"))
def jobs() -> None:
    """Start, watch and cancel jobs that train an artifact for a target."""


@jobs.command(
    epilog=example(
        "lethe jobs start neurons jane-doe --wait",
        "lethe jobs start adapter jane-doe --forget forget.jsonl --retain retain.jsonl --set loss=npo",
    )
)
@click.argument("kind")
@click.argument("target")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the trainer; repeatable."
)
@click.option(
    "--forget", type=click.File(encoding="utf-8-sig"), help="Examples in place of the target's, JSON lines."
)
@click.option("--retain", type=click.File(encoding="utf-8-sig"), help="What must stay as it is, JSON lines.")
@click.option(
    "--perturbed",
    type=click.File(encoding="utf-8-sig"),
    help="Wrong answers to forget questions, for `assistant`, JSON lines.",
)
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="DIGEST",
    help="An adapter of the server's store, for kinds that take some; repeatable.",
)
@click.option("--attach/--no-attach", default=True, show_default=True, help="Put the result into the target.")
@click.option("--wait", is_flag=True, help="Until the job has ended; 1 is returned where it did not succeed.")
@remote
def start(
    kind: str,
    target: str,
    settings: tuple[str, ...],
    forget: Any,
    retain: Any,
    perturbed: Any,
    adapters: tuple[str, ...],
    attach: bool,
    wait: bool,
    server: str,
    key: str | None,
) -> None:
    """Queue a job of KIND for TARGET, and print its id."""
    client = connect(server, key)
    params: dict[str, Any] = {**dict(map(_setting, settings)), "attach": attach}
    for name, file in (("forget", forget), ("retain", retain), ("perturbed", perturbed)):
        if file is not None:
            params[name] = _rows(file, name)
    if adapters:
        params["adapters"] = adapters
    job = client.json("POST", "/jobs", json={"kind": kind, "target": target, "params": params})
    click.echo(job["id"])
    if wait:
        _told(_waited(client, job["id"]))


@jobs.command("list", epilog=example("lethe jobs list --state running"))
@click.option("--target", help="Only jobs for this target.")
@click.option("--state", help="Only jobs in this state.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@remote
def list_jobs(target: str | None, state: str | None, as_json: bool, server: str, key: str | None) -> None:
    """List jobs, newest first."""
    wanted = {name: value for name, value in (("target", target), ("state", state)) if value is not None}
    for job in connect(server, key).pages("/jobs", wanted):
        if as_json:
            click.echo(json.dumps(job, ensure_ascii=False))
        else:
            click.echo(
                f"{job['id']}  {job['state']:<9}  {job['progress']:4.0%}  {job['kind']:<10}  {job['target']}"
            )


@jobs.command(epilog=example("lethe jobs show 0123456789abcdef"))
@click.argument("job_id", metavar="JOB")
@click.option("--wait", is_flag=True, help="Until it has ended; 1 is returned where it did not succeed.")
@remote
def show(job_id: str, wait: bool, server: str, key: str | None) -> None:
    """Print the end of a job's log, and how far it is."""
    client = connect(server, key)
    _told(_waited(client, job_id) if wait else client.json("GET", f"/jobs/{job_id}"), must_succeed=wait)


@jobs.command(epilog=example("lethe jobs cancel 0123456789abcdef"))
@click.argument("job_id", metavar="JOB")
@remote
def cancel(job_id: str, server: str, key: str | None) -> None:
    """Cancel a job, or forget one that has ended. What it made stays."""
    ended = connect(server, key).json("DELETE", f"/jobs/{job_id}")
    click.echo(f"{job_id} {'forgotten' if ended['deleted'] else ended['state']}")


def _waited(client: Client, job_id: str) -> dict[str, Any]:
    while (job := client.json("GET", f"/jobs/{job_id}"))["state"] not in _OVER:
        time.sleep(_POLL_S)
    return dict(job)


def _told(job: dict[str, Any], *, must_succeed: bool = True) -> None:
    for line in job["log"]:
        click.echo(line, err=True)
    click.echo(
        f"{job['state']}, {job['progress']:.0%}"
        + (f", artifact {job['artifact']}" if job["artifact"] else "")
    )
    if must_succeed and job["state"] != "succeeded":
        raise Failure(job["error"] or f"The job has {job['state']}.")


def _setting(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"--set {text}: write it as key=value.")
    return key, yaml.safe_load(value)


def _rows(file: IO[str], name: str) -> list[Any]:
    try:
        lines = list(file)
    except UnicodeDecodeError:
        raise click.UsageError(f"--{name}: the file is not in UTF-8.") from None
    return [_row(line, name, number) for number, line in enumerate(lines, 1) if line.strip()]


def _row(line: str, name: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise click.UsageError(f"--{name}: line {number} is not JSON.") from None
