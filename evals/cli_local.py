"""The commands that are given no server: `demo` starts its own, the others judge prompts by themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from evals import cases, corpora, options
from evals.items import ItemError, names_in
from evals.languages import asked_in_other_languages
from evals.suites import conversations as conversations_suite
from evals.suites import demo as demo_suite
from evals.suites import detection as detection_suite
from guard.detection import Compiler, Encoder


@click.command()
@options.items_option()
@click.option(
    "--full", default="demo/models/full", show_default=True, help="The model that knows the targets."
)
@click.option(
    "--never", default="demo/models/never", show_default=True, help="The one that never learned them."
)
@click.option(
    "--targets-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Targets to import, JSON lines. Default: what `lethe serve` brings.",
)
@click.option(
    "--suite",
    "suites",
    type=click.Choice((*demo_suite.SUITES, *demo_suite.MORE)),
    multiple=True,
    help="Only these; may be repeated.  [default: all but methods, curves, attacks]",
)
@click.option(
    "--serve-option", "serve_options", multiple=True, help="Extra word for `lethe serve`; repeatable."
)
@click.option(
    "--logs",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("reports/logs"),
    show_default=True,
    help="Where the servers' logs go.",
)
@click.option("--n", type=click.IntRange(1), default=500, show_default=True, help="Requests of isolation.")
@click.option(
    "--sample",
    type=click.IntRange(1),
    help="Questions of each split and phrasing, in methods, curves, attacks.",
)
@click.option("--others", type=click.IntRange(0), help="The same, of those about anything but the targets.")
@click.option(
    "--artifacts",
    type=click.Path(file_okay=False, path_type=Path),
    default=demo_suite.ARTIFACTS,
    show_default=True,
    help="Folders of what the methods' rungs name.",
)
@click.option(
    "--shown", default="demo-methods", show_default=True, help="The target whose rungs are measured."
)
@click.option("--tag", default="demo", show_default=True, help="The targets that they are laid on.")
@options.journal_option
@options.common_options("demo")
def demo(
    items_path: Path,
    full: str,
    never: str,
    targets_file: Path | None,
    suites: tuple[str, ...],
    serve_options: tuple[str, ...],
    logs: Path,
    n: int,
    sample: int | None,
    others: int | None,
    artifacts: Path,
    shown: str,
    tag: str,
    journal: Path | None,
    seed: int,
    out: Path,
    rows: bool,
) -> None:
    """Starts guarded, bare and never-learned servers on the demo and runs all suites; writes JSON and HTML.

    \b
    Example:
      python -m evals demo --targets-file demo/targets.jsonl --out reports/demo.json
    """
    items = options.read_items(items_path)
    plan = demo_suite.Plan(
        full,
        never,
        targets_file,
        logs,
        suites or demo_suite.SUITES,
        serve_options,
        seed,
        n,
        sample=sample,
        others=others,
        artifacts=artifacts,
        shown=shown,
        tag=tag,
        journal=journal,
    )
    reports = options.drive(demo_suite.run(items, names_in(items), plan))
    options.finish_many(reports, out, rows=rows, items_path=items_path)


_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.option(
    "--tofu", "tofu_folder", type=_FOLDER, help="TOFU as published: forgetXX_perturbed.json and so on."
)
@click.option("--lume", "lume_folder", type=_FOLDER, help="LUME: forget.jsonl and retain.jsonl.")
@click.option(
    "--benign", "benign_folder", type=_FOLDER, help="Arena-Hard, MT-Bench and nq_open; with --tofu."
)
@click.option("--demo", "demo_folder", type=_FOLDER, help="The demo: targets.jsonl and items.jsonl.")
@options.encoder_options
@click.option("--sample", type=click.IntRange(1), help="At most so many questions of each sort.")
@options.check_option
@options.common_options("detection")
def detection(
    tofu_folder: Path | None,
    lume_folder: Path | None,
    benign_folder: Path | None,
    demo_folder: Path | None,
    load: Callable[[], tuple[Encoder, Compiler]],
    sample: int | None,
    check: bool,
    seed: int,
    out: Path,
    rows: bool,
) -> None:
    """What the gate finds and what it leaves alone, on public benchmarks. Needs no server.

    \b
    Example:
      python -m evals detection --tofu data/tofu --lume data/lume --benign data/benign --demo demo
    """
    blocks: dict[str, list[corpora.Trial]] = {}
    try:
        if tofu_folder:
            others = corpora.benign(benign_folder) if benign_folder else []
            blocks["TOFU"] = list(corpora.tofu(tofu_folder, others, described=False))
            blocks["TOFU, row 0 registered"] = list(corpora.tofu(tofu_folder, others, described=True))
            blocks["TOFU, other languages"] = [
                asked_in_other_languages(blocks["TOFU, row 0 registered"][-1], corpora.ROWS_PER_AUTHOR)
            ]
        if lume_folder:
            blocks["LUME"] = [corpora.lume(lume_folder, seed)]
        if demo_folder:
            blocks["demo"] = [corpora.demo(demo_folder)]
    except ItemError as error:
        raise click.ClickException(str(error)) from error
    if not blocks:
        raise click.UsageError("Give at least one of --tofu, --lume and --demo.")
    loaded, compiler = load()
    report = detection_suite.run(blocks, loaded, compiler, seed=seed, sample=sample)
    options.finish(report, out, rows=rows, check=check)


@click.command()
@click.option("--tofu", "tofu_folder", type=_FOLDER, help="TOFU as published.")
@click.option("--benign", "benign_folder", type=_FOLDER, help="nq_open; with --tofu.")
@click.option("--demo", "demo_folder", type=_FOLDER, help="The demo: targets.jsonl and items.jsonl.")
@options.encoder_options
@click.option(
    "--sample",
    type=click.IntRange(1),
    default=conversations_suite.SAMPLE,
    show_default=True,
    help="Questions of each sort, in each form.",
)
@options.check_option
@options.common_options("conversations")
def conversations(
    tofu_folder: Path | None,
    benign_folder: Path | None,
    demo_folder: Path | None,
    load: Callable[[], tuple[Encoder, Compiler]],
    sample: int,
    check: bool,
    seed: int,
    out: Path,
    rows: bool,
) -> None:
    """What the gate finds when a question is spread over turns or put into other fields. Needs no server.

    \b
    Example:
      python -m evals conversations --tofu data/tofu --benign data/benign --demo demo
    """
    settings: list[conversations_suite.Setting] = []
    try:
        if tofu_folder:
            others = corpora.benign(benign_folder) if benign_folder else []
            asked = [question for question in others if question.sort == "nq_open"]
            named, described = (
                cases.tofu_named(tofu_folder, asked, seed),
                cases.tofu_described(tofu_folder, asked, seed),
            )
            settings.append(conversations_suite.Setting("TOFU", named, ("named", "split", "moved on")))
            settings.append(
                conversations_suite.Setting("TOFU, row 0 registered", described, ("described", "moved on"))
            )
        if demo_folder:
            found = cases.demo(demo_folder, seed)
            settings.append(conversations_suite.Setting("demo", found, ("named", "split", "moved on")))
    except ItemError as error:
        raise click.ClickException(str(error)) from error
    if not settings:
        raise click.UsageError("Give at least one of --tofu and --demo.")
    loaded, compiler = load()
    report = conversations_suite.run(settings, loaded, compiler, seed=seed, sample=sample)
    options.finish(report, out, rows=rows, check=check)
