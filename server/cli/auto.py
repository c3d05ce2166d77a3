"""`lethe train auto`: the best ladder for a target, found on this machine and put into the target on its server."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import click

from server.cli.artifacts import in_store, into_store
from server.cli.base import example, remote
from server.cli.client import Client, Failure, connect, path_of

PROGRAM = "classifiers.auto"
LADDER, PAGE = "ladder.json", "report.html"
_CHECKED = 100  # retained questions that the gate is asked about


@click.command(
    "auto",
    context_settings={"ignore_unknown_options": True},
    epilog=example(
        "lethe train auto --target jane-doe --model demo/models/full --budget 10",
        "lethe train auto --target jane-doe --model qwen --forget forget.jsonl --retain retain.jsonl",
        "lethe train auto --name 'Jane Doe' --model qwen --forget forget.jsonl --out reports/jane",
        "python -m classifiers.auto --help",
    ),
)
@click.option("--target", "target_id", metavar="ID", help="A target on the server, which gets the ladder.")
@click.option(
    "--file", type=click.File(encoding="utf-8"), help="In its place a target as JSON; nothing is registered."
)
@click.option(
    "--model", required=True, help="The served model: a folder, or a Hugging Face id that was fetched."
)
@click.option(
    "--retain",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="What must stay, JSON lines.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="[default: reports/auto/ID]")
@click.option("--dry-run", is_flag=True, help="Only say what would be tried, and how long it would take.")
@click.option("--attach/--no-attach", default=True, show_default=True, help="Put the ladder into the target.")
@in_store
@remote
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def auto(
    target_id: str | None,
    file: Any,
    model: str,
    retain: Path | None,
    out: Path | None,
    dry_run: bool,
    attach: bool,
    config: Path | None,
    data_dir: Path | None,
    args: tuple[str, ...],
    server: str,
    key: str | None,
) -> None:
    """Try the methods that this model and a budget (--budget MINUTES) allow, take the best that fulfils what you ask
    for (--set tolerance=0.05, gibberish, harm, slower), and put its ladder into the target; ARGS are those of
    `python -m classifiers.auto`. Run it where the server's data folder lies."""
    from guard.artifacts import weights_folder
    from server.cli.local import run

    if target_id is not None and file is not None:
        raise click.UsageError("Give either --target or --file.")
    client = connect(server, key)
    place = out or Path("reports") / "auto" / (target_id or "target")
    words = ["--model", str(weights_folder(model)), "--out", str(place), *args]
    words += ["--retain", str(retain)] if retain else []
    words += ["--dry-run"] if dry_run else []
    given, tag = (file.read() if file else None), ""
    if target_id is not None:
        answer = client.call("GET", path_of(target_id))
        given, tag = answer.text, answer.headers.get("etag", "")
    if given is not None:
        words += ["--target", "-"]
    if code := run(PROGRAM, tuple(words), given):
        sys.exit(code)
    if target_id is None or dry_run or not attach:
        return
    found = _read(place / LADDER)
    ladder = _loaded(client, found, place, config, data_dir)
    body = {"intervention": ladder}
    view = client.json("PATCH", path_of(target_id), json=body, headers={"If-Match": tag})
    click.echo(f"{target_id} v{view['version']} is {view['state']}: {', '.join(r['method'] for r in ladder)}")
    prompts = [*view.get("retain", ()), *(_prompts(retain) if retain else ())]
    _tell_mistaken(client, target_id, prompts)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise Failure(f"{path} was not written; look at what the program said above.") from None
    return found


def _loaded(
    client: Client, found: dict[str, Any], place: Path, config: Path | None, data_dir: Path | None
) -> list[dict[str, Any]]:
    """The ladder without the rungs whose artifacts the server does not take: such a one would only wait."""
    refused = set()
    for digest, folder in found["folders"].items():
        into_store(place / folder, config, data_dir)
        try:
            client.json("POST", "/artifacts", json={"digest": digest})
        except Failure as error:
            refused.add(digest)
            click.echo(f"The server does not take the artifact {digest[:16]}: {error.message}", err=True)
    return [rung for rung in found["intervention"] if rung["params"].get("artifact") not in refused]


def _prompts(path: Path) -> list[str]:
    """The last turns of the examples in the file, which the program has read before."""
    rows = map(json.loads, filter(str.strip, path.read_text(encoding="utf-8-sig").split("\n")))
    return [row["turns"][-1]["content"] if "turns" in row else row["prompt"] for row in rows]


def _tell_mistaken(client: Client, target_id: str, prompts: list[str]) -> None:
    """How many questions that must stay answered the gate takes for the target."""
    asked = random.Random(0).sample(prompts, min(_CHECKED, len(prompts)))
    bodies = ({"messages": [{"role": "user", "content": prompt}]} for prompt in asked)
    decisions = [client.json("POST", "/check", json=body)["decision"] for body in bodies]
    mistaken = sum(target_id in [one["id"] for one in d.get("targets", ())] for d in decisions)
    if asked:
        click.echo(f"Of {len(asked)} retained questions the gate takes {mistaken} for the target.")
