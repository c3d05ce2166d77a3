"""The commands that read reports: `compare`, `check` and `html`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from evals import options
from evals.html import page
from evals.items import ItemError
from evals.limits import Limit, figures_of, judge
from evals.report import Report, as_text, read
from evals.suites import compare as compare_suite

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _limits(_: click.Context, __: click.Parameter, texts: tuple[str, ...]) -> list[Limit]:
    try:
        return [Limit.parse(text) for text in texts]
    except ItemError as error:
        raise click.BadParameter(str(error)) from error


def limit_options(of: str) -> options.Decorator:
    """--limit and --strict."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        limit = click.option(
            "--limit",
            "limits",
            multiple=True,
            callback=_limits,
            metavar="NAME<=NUMBER",
            help=f"{of} Repeatable.",
        )
        strict = click.option(
            "--strict", is_flag=True, help="Fail also where an interval lies on both sides of its limit."
        )
        return limit(strict(function))

    return decorate


@click.command()
@click.argument("first", type=_FILE)
@click.argument("second", type=_FILE)
@limit_options("Exit with 1 where the difference's whole interval is beyond; >= where less is worse.")
@options.common_options("compare")
def compare(
    first: Path, second: Path, limits: list[Limit], strict: bool, seed: int, out: Path, rows: bool
) -> None:
    """Paired differences, second minus first, between two reports of one suite.

    A difference is named as it is printed, rows and metric with a dot between. Exit code 1: a limit is broken, or the
    reports cannot be compared; 2: wrong usage.

    \b
    Example:
      python -m evals compare reports/before.json reports/after.json \\
        --limit 'forget, heldout.guarded.rouge<=0.02' --limit 'neighbour.guarded.rouge>=-0.02'
    """
    try:
        report = compare_suite.compare_all(read(first), read(second), seed=seed)
        judge(report, limits, report.results["differences"], strict=strict)
    except ItemError as error:
        raise click.ClickException(f"cannot compare: {error}") from error
    options.finish(report, out, rows=rows)


@click.command()
@click.argument("report", type=_FILE)
@limit_options("Exit with 1 where a figure, or its whole interval, is beyond; >= where less is worse.")
def check(report: Path, limits: list[Limit], strict: bool) -> None:
    """Whether a report meets its own criteria, and the limits given here.

    Names: a part of its results (`results.geometric.model_utility`), a cell of a table (title, row, column:
    `Sets.forget.recall`), or the mean of a score over rows (`forget, heldout.guarded.rouge`). Exit code 1: one is
    not met, or has no figure; 2: wrong usage.

    \b
    Example:
      python -m evals check reports/targets.json --limit 'forget, heldout.guarded.rouge<=0.1'
    """
    try:
        found = read(report)
        judged = Report("check", criteria=[one for data in found for one in data["criteria"]])
        judge(judged, limits, figures_of(found), strict=strict)
    except ItemError as error:
        raise click.ClickException(str(error)) from error
    click.echo(as_text(judged.as_dict()).lstrip() or "The report has no criteria.")
    if judged.passed is False:
        sys.exit(1)


@click.command()
@click.argument("report", type=_FILE)
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
def html(report: Path, out: Path) -> None:
    """A JSON report as one self-contained HTML page.

    \b
    Example:
      python -m evals html reports/targets.json reports/targets.html
    """
    try:
        found = read(report)
    except ItemError as error:
        raise click.ClickException(str(error)) from error
    out.write_text(page(found), encoding="utf-8")
    click.echo(f"Page: {out}")


COMMANDS = (compare, check, html)
