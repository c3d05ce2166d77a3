"""Command-line options that suites share, and what they all do at the end."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from evals.client import Client, ClientError
from evals.html import page
from evals.items import Item, ItemError, fingerprint, load_items
from evals.judges import LlmJudge
from evals.report import Report, as_text, write_json
from guard.detection import Compiler, Encoder, load_encoder
from guard.detection.encoder import BACKENDS, PACKAGED

DEFAULT_ITEMS = Path("demo/items.jsonl")
T = TypeVar("T")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _stack(*decorators: Decorator) -> Decorator:
    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def items_option(required: bool = True) -> Decorator:
    return click.option(
        "--items",
        "items_path",
        type=click.Path(exists=required, dir_okay=False, path_type=Path),
        default=DEFAULT_ITEMS,
        show_default=True,
        help="Questions, one JSON object a line.",
    )


key_option = click.option("--key", envvar="LETHE_KEY", help="Key of the guarded server. [env: LETHE_KEY]")
admin_key_option = click.option(
    "--admin-key", envvar="LETHE_ADMIN_KEY", help="Admin key of the guarded server. [env: LETHE_ADMIN_KEY]"
)

check_option = click.option(
    "--check/--no-check", default=True, show_default=True, help="Exit with 1 when a criterion fails."
)


rate_option = click.option(
    "--rate", type=click.FloatRange(0, min_open=True), help="Requests per second to each server, at most."
)
"""`rate`, for suites that measure no times: a request waits where its time is taken already."""


journal_option = click.option(
    "--journal", type=click.Path(file_okay=False, path_type=Path),
    help="A folder for what was told, so that a stopped run goes on. One for each state of the targets.",
)  # fmt: skip


def judge_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--judge-url, --judge-model, --judge-key. The command is given `judge`, a call that opens the judge on an exit
    stack: `await judge(stack)` is an `LlmJudge`, or None where no --judge-url was given."""

    @wraps(function)
    def with_judge(
        *args: Any, judge_url: str | None, judge_model: str | None, judge_key: str | None, **others: Any
    ) -> Any:
        async def judge(stack: AsyncExitStack) -> LlmJudge | None:
            if judge_url is None:
                return None
            client = Client(judge_url, judge_key, model=judge_model, rate=others.get("rate"))
            return LlmJudge(await stack.enter_async_context(client), seed=others.get("seed", 0))

        return function(*args, judge=judge, **others)

    stack = _stack(
        click.option(
            "--judge-url", help="An OpenAI-compatible endpoint that judges answers as well. Default: none."
        ),
        click.option("--judge-model", help="Its model. Default: the first that it serves."),
        click.option("--judge-key", envvar="LETHE_JUDGE_KEY", help="Its key. [env: LETHE_JUDGE_KEY]"),
    )
    decorated: Callable[..., Any] = stack(with_judge)
    return decorated


entailment_option = click.option(
    "--entailment/--no-entailment",
    default=True,
    show_default=True,
    help="Judge answers by the sentence encoder, too.",
)


def encoder_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--encoder, --backend, --threads, --cache. The command is given `load`, a call that makes the encoder that they
    describe and a compiler with it."""

    @wraps(function)
    def with_load(*args: Any, encoder: str, backend: str, threads: int, cache: Path, **others: Any) -> Any:
        def load() -> tuple[Encoder, Compiler]:
            loaded = load_encoder(encoder, threads=threads, backend=backend, cache_dir=cache)
            return loaded, Compiler(loaded, cache)

        return function(*args, load=load, **others)

    stack = _stack(
        click.option(
            "--encoder", default=PACKAGED, show_default=True, help="The detectors' sentence encoder."
        ),
        click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="What runs the encoder."),
        click.option(
            "--threads", type=click.IntRange(1), default=1, show_default=True, help="Of the encoder."
        ),
        click.option(
            "--cache",
            type=click.Path(file_okay=False, path_type=Path),
            default=Path("data/cache"),
            show_default=True,
            help="Where the encoder's vectors of the background set are kept.",
        ),
    )
    decorated: Callable[..., Any] = stack(with_load)
    return decorated


def common_options(name: str) -> Decorator:
    """--seed, --out, --rows, which every suite has."""
    return _stack(
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of orders and bootstraps."),
        click.option(
            "--out",
            type=click.Path(dir_okay=False, path_type=Path),
            default=Path(f"reports/{name}.json"),
            show_default=True,
            help="Where the JSON report goes.",
        ),
        click.option(
            "--rows/--no-rows", default=True, show_default=True, help="Keep one row per item in it."
        ),
    )


def read_items(path: Path) -> list[Item]:
    """The items, or one sentence about what is wrong with the file."""
    try:
        return load_items(path)
    except ItemError as error:
        raise click.ClickException(f"{path}: {error}") from error


def finish(
    report: Report, out: Path, *, rows: bool, items_path: Path | None = None, check: bool = True
) -> None:
    """Writes the report and its page, prints its tables, and ends the process with 1 when a criterion fails."""
    if items_path is not None:
        report.inputs["items"] = fingerprint(items_path)
    if not rows:
        report.without_items()
    data = report.as_dict()
    _write(out, data, [data])
    click.echo(as_text(data))
    click.echo(f"\nReport: {out} and {out.with_suffix('.html')}")
    if check and report.passed is False:
        sys.exit(1)


def finish_many(reports: list[Report], out: Path, *, rows: bool, items_path: Path) -> None:
    """The same for a run of several suites: one file and one page of all."""
    for report in reports:
        report.inputs["items"] = fingerprint(items_path)
        if not rows:
            report.without_items()
    data = [report.as_dict() for report in reports]
    _write(out, {"reports": data}, data)
    for one in data:
        click.echo(f"\n=== {one['suite']} (n = {one['n']}){as_text(one)}")
    click.echo(f"\nReport: {out} and {out.with_suffix('.html')}")
    if any(report.passed is False for report in reports):
        sys.exit(1)


def _write(out: Path, data: dict[str, Any], reports: Sequence[dict[str, Any]]) -> None:
    write_json(out, data)
    out.with_suffix(".html").write_text(page(reports), encoding="utf-8")


def drive(work: Coroutine[Any, Any, T]) -> T:
    """Runs a suite; what the user can put right becomes one sentence and exit code 1. A polite end from outside takes
    down what the suite has started."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return asyncio.run(work)
    except (ClientError, ItemError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        signal.signal(signal.SIGTERM, before)
