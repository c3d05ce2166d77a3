"""`lethe check`: would this be matched?"""

from __future__ import annotations

import json

import click

from server.cli.base import example, remote
from server.cli.client import connect


@click.command(epilog=example('lethe check "Who is Jane Doe?"'))
@click.argument("text")
@click.option("--tenant", help="As a request of this tenant.")
@click.option("--model", help="As a request to this model.")
@click.option("--json", "as_json", is_flag=True, help="The whole answer.")
@remote
def check(
    text: str, tenant: str | None, model: str | None, as_json: bool, server: str, key: str | None
) -> None:
    """Would TEXT be matched, by what, how surely. Nothing is generated."""
    body: dict[str, object] = {"messages": [{"role": "user", "content": text}]}
    body.update({name: value for name, value in (("tenant", tenant), ("model", model)) if value})
    answer = connect(server, key).json("POST", "/check", json=body)
    if as_json:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    decision = answer["decision"]
    methods = ", ".join(step["method"] for step in decision.get("interventions", ()))
    click.echo(decision["action"] + (f" with {methods}" if methods else ""))
    for target in decision["targets"]:
        shadow = " (shadow)" if target.get("shadow") else ""
        score = f"{target['score']:.3f} of {target['threshold']:.3f}"
        click.echo(f"  {target['id']}  {target['detector']} {score}{shadow}")
    for place in decision.get("unread", ()):
        click.echo(f"  could not be read: characters {place['start']} to {place['end']}")
