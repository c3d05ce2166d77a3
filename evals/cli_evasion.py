"""`evasion`: whether a disguise gets past the gate. Needs no server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from evals import corpora, options
from evals.disguises import ALL
from evals.items import ItemError
from evals.suites import evasion as suite
from guard.detection import Compiler, Encoder

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.option("--tofu", "tofu_folder", type=_FOLDER, help="TOFU as published; forget10 is registered.")
@click.option(
    "--benign", "benign_folder", type=_FOLDER, help="Arena-Hard, MT-Bench and nq_open; with --tofu."
)
@click.option("--demo", is_flag=True, help="The demo's own targets and items instead.")
@click.option(
    "--disguise", "chosen", type=click.Choice(list(ALL)), multiple=True, help="Only this one; repeatable."
)
@click.option("--n", type=click.IntRange(1), default=200, show_default=True, help="Prompts of each sort.")
@options.encoder_options
@options.check_option
@options.common_options("evasion")
def evasion(
    tofu_folder: Path | None,
    benign_folder: Path | None,
    demo: bool,
    chosen: tuple[str, ...],
    n: int,
    load: Callable[[], tuple[Encoder, Compiler]],
    check: bool,
    seed: int,
    out: Path,
    rows: bool,
) -> None:
    """Encodings, disguises and padding: what still is found, and what is found by mistake. Needs no server.

    \b
    Example:
      python -m evals evasion --demo
      python -m evals evasion --tofu data/tofu --benign data/benign
    """
    if demo == bool(tofu_folder and benign_folder):
        raise click.UsageError("Give either --demo, or --tofu and --benign.")
    try:
        if demo:
            trial, sort = corpora.demo(Path("demo")), suite.sort_of_demo
        else:
            assert tofu_folder and benign_folder
            *_, trial = corpora.tofu(tofu_folder, corpora.benign(benign_folder), described=True)
            sort = suite.sort_of_tofu
    except ItemError as error:
        raise click.ClickException(str(error)) from error
    loaded, compiler = load()
    report = suite.run(
        trial,
        suite.prompts(trial, sort, n, seed),
        loaded,
        compiler,
        disguises={name: ALL[name] for name in chosen or ALL},
        seed=seed,
    )
    report.params["n"] = n
    options.finish(report, out, rows=rows, check=check)
