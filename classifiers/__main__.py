"""`python -m classifiers TRAINER --model FOLDER --forget FILE --retain FILE --out FOLDER [--set key=value]`."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import yaml

from classifiers import TRAINERS
from classifiers.base import Task, load, run, schemas
from classifiers.checkpoints import EVERY, Checkpoint
from classifiers.data import Example, load_examples, read_example
from classifiers.encoding import Encoding
from classifiers.progress import Bar, Lines, Progress, Silent
from guard import artifacts
from guard.detection.encoder import BACKENDS
from guard.errors import BadRequest, LetheError

_File = click.Path(path_type=Path, exists=True, dir_okay=False)
_Folder = click.Path(path_type=Path, file_okay=False)
_PROGRESS: dict[str, Callable[[], Progress]] = {"bar": Bar, "json": Lines.of_stdout, "none": Silent}
_HERE = Path(__file__).resolve().parent


def _print_schemas(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(json.dumps(schemas()))
        context.exit()


@click.command(
    epilog="Example: python -m classifiers adapter --model demo/models/full --forget forget.jsonl "
    "--retain retain.jsonl --out /some/folder --set rank=4"
)
@click.argument("trainer", type=click.Choice(sorted(TRAINERS)))
@click.option(
    "--model",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The served model; detectors are trained for the encoder instead.",
)
@click.option("--forget", type=_File, help="Examples of what must go, JSON lines.")
@click.option("--retain", type=_File, help="Examples of what must stay, JSON lines.")
@click.option(
    "--perturbed", type=_File, help="Wrong answers to forget questions, for `assistant`, JSON lines."
)
@click.option(
    "--adapter",
    "adapters",
    type=_Folder,
    multiple=True,
    help="An adapter that was made before, for the trainers that take some; repeatable.",
)
@click.option("--name", "names", multiple=True, help="What the target goes by; repeatable.")
@click.option(
    "--stdin",
    "from_stdin",
    is_flag=True,
    help="Read examples and names as one line from the input, a JSON object of lists; end when the input closes.",
)
@click.option("--out", type=_Folder, required=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter of the trainer.")
@click.option("--base-model", metavar="DIGEST", help="The weights that the artifact is wanted for.")
@click.option("--encoder", metavar="NAME", help="The detectors' encoder.  [default: the packaged one]")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)
@click.option("--encoder-digest", metavar="DIGEST", help="The encoder that the artifact is wanted for.")
@click.option(
    "--cache",
    type=_Folder,
    default=Path("data/cache"),
    show_default=True,
    help="Where graphs and vectors of the encoder are kept.",
)
@click.option("--work", type=_Folder, help="A folder in which long training keeps its state.")
@click.option("--checkpoint-every", type=click.IntRange(1), default=EVERY, show_default=True, metavar="STEPS")
@click.option("--resume", is_flag=True, help="Go on from the state in --work, where there is one.")
@click.option("--progress", type=click.Choice(sorted(_PROGRESS)), default="bar", show_default=True)
@click.option(
    "--schemas",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schemas,
    help="Print the JSON schemas of all trainers' parameters.",
)
def main(
    trainer: str,
    model: Path | None,
    forget: Path | None,
    retain: Path | None,
    perturbed: Path | None,
    adapters: tuple[Path, ...],
    names: tuple[str, ...],
    from_stdin: bool,
    out: Path,
    settings: tuple[str, ...],
    base_model: str | None,
    encoder: str | None,
    backend: str,
    encoder_digest: str | None,
    cache: Path,
    work: Path | None,
    checkpoint_every: int,
    resume: bool,
    progress: str,
) -> None:
    """Train an artifact for the guard from examples of what must go and what must stay."""
    wanted = load(trainer)
    given = from_stdin + (forget is not None)
    if given > 1 or (wanted.needs_forget and not given):
        raise click.UsageError("Give --forget FILE, or --stdin.")
    if model is None and wanted.reads == "model":
        raise click.UsageError("Give --model FOLDER.")
    if resume and work is None:
        raise click.UsageError("--resume needs --work FOLDER.")
    teller: Progress = _PROGRESS[progress]()
    checkpoint = Checkpoint(work, checkpoint_every)
    if not resume:
        checkpoint.clear()
    try:
        if from_stdin:
            sets, names = _read_stdin()
        else:
            sets = [load_examples(path) if path else () for path in (forget, retain, perturbed)]
        encoding = Encoding(encoder, backend, cache, encoder_digest)
        place = model or Path()  # nobody looks at it
        made = tuple(map(artifacts.read, adapters))
        task = Task(
            place, sets[0], sets[1], out, base_model, teller, checkpoint, names, encoding, sets[2], made
        )
        artifact = run(trainer, task, dict(map(_setting, settings)))
    except LetheError as error:
        _fail(teller, error.message)
    except Exception as error:
        if progress != "json":
            raise
        _fail(teller, _without_text(error))
    teller.finish(artifact.digest, artifact.manifest.measured)
    if progress != "json":
        for name, value in artifact.manifest.measured.items():
            click.echo(f"{name}: {value}")
        click.echo(f"artifact {artifact.digest} in {out}")


def _read_stdin() -> tuple[list[tuple[Example, ...]], tuple[str, ...]]:
    """Forget, retain and perturbed examples, and names. From then on the process ends when whoever started it closes
    the input or dies."""
    line = sys.stdin.buffer.readline()
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        rows = json.loads(line)
        given = (rows["forget"], rows["retain"], rows.get("perturbed", ()))
        sets = [tuple(map(read_example, part)) for part in given]
        names = tuple(map(str, rows.get("names", ())))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadRequest("The examples on the input cannot be read.") from None
    return sets, names


def _end_with_input() -> NoReturn:
    while os.read(0, 4_096):
        pass
    os._exit(1)


def _fail(teller: Progress, message: str) -> NoReturn:
    teller.error(message)
    raise click.ClickException(message) from None


def _without_text(error: Exception) -> str:
    """What went wrong and where, without the error's own words: they may hold text of the examples."""
    if isinstance(error, ImportError):
        return f"The package '{error.name}' is missing; install the extra `train`."
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    path, line = [(path, line) for path, line in frames if path.parent == _HERE][-1]
    place = f"{_HERE.name}/{path.name}, line {line}"
    return f"The trainer failed with {type(error).__name__} in {place}."


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        raise click.ClickException(f"--set {text}: write it as key=value.")
    return key, yaml.safe_load(value)


if __name__ == "__main__":
    main(prog_name="python -m classifiers")
