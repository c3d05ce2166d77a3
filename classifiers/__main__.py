"""`python -m classifiers TRAINER --model FOLDER --forget FILE --retain FILE --out FOLDER [--set key=value]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml

from classifiers import TRAINERS
from classifiers.base import Task, run
from classifiers.data import load_examples
from guard.errors import LetheError

_File = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(
    epilog="Example: python -m classifiers adapter --model demo/models/full --forget forget.jsonl "
    "--retain retain.jsonl --out /some/folder --set rank=4"
)
@click.argument("trainer", type=click.Choice(sorted(TRAINERS)))
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--forget", type=_File, required=True, help="Examples of what must go, JSON lines.")
@click.option("--retain", type=_File, help="Examples of what must stay, JSON lines.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the trainer.")
def main(
    trainer: str, model: Path, forget: Path, retain: Path | None, out: Path, settings: tuple[str, ...]
) -> None:
    """Train an artifact for the guard from examples of what must go and what must stay."""
    try:
        task = Task(model, load_examples(forget), load_examples(retain) if retain else (), out)
        artifact = run(trainer, task, dict(map(_setting, settings)))
    except LetheError as error:
        raise click.ClickException(error.message) from None
    for name, value in artifact.manifest.measured.items():
        click.echo(f"{name}: {value}")
    click.echo(f"artifact {artifact.digest} in {out}")


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise click.ClickException(f"--set {text}: write it as key=value.")
    return key, yaml.safe_load(value)


if __name__ == "__main__":
    main(prog_name="python -m classifiers")
