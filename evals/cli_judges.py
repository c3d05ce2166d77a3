"""`lethe eval judges`: how far the judges of answers can be trusted on given items."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import click

from evals import options
from evals.judges import LlmJudge
from evals.report import Report
from evals.suites import judges as judges_suite
from guard.detection import Compiler, Encoder


@click.command()
@options.items_option()
@options.judge_options
@options.encoder_options
@options.rate_option
@click.option(
    "--sample",
    type=click.IntRange(1),
    default=judges_suite.SAMPLE,
    show_default=True,
    help="Gold answers, each in every wording.",
)
@options.common_options("judges")
def judges(
    items_path: Path,
    judge: Callable[[AsyncExitStack], Awaitable[LlmJudge | None]],
    load: Callable[[], tuple[Encoder, Compiler]],
    rate: float | None,
    sample: int,
    seed: int,
    out: Path,
    rows: bool,
) -> None:
    """What each judge makes of right and wrong answers to the items, in several wordings. Needs no server.

    \b
    Example:
      python -m evals judges --items demo/items.jsonl
    """
    items = options.read_items(items_path)

    async def work() -> Report:
        async with AsyncExitStack() as stack:
            encoder, _ = load()
            return await judges_suite.run(items, encoder, await judge(stack), sample=sample, seed=seed)

    options.finish(options.drive(work()), out, rows=rows, items_path=items_path)
