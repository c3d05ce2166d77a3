"""`attacks`, the red team in one command, and `relearn`, what somebody can do who has the weights."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import click

from evals import options
from evals.items import ItemError, fingerprint
from evals.judges import LlmJudge
from evals.opening import Opening
from evals.report import Report
from evals.suites import attack_report, relearning
from evals.suites import attacks as suite
from evals.suites.targets import GUARDED, NEVER, UNGUARDED
from guard.detection import Compiler, Encoder

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--base-url", help="The endpoint that is measured.")
@options.key_option
@click.option("--model", type=_FOLDER, help="Instead: a model in this process.")
@click.option("--adapter", type=_FOLDER, help="A LoRA adapter on it.")
@click.option("--base-only-url", help="The same model unguarded: the control of every attack.")
@click.option("--base-only-model", type=_FOLDER, help="Such a model in this process.")
@click.option("--reference-url", help="A server with a model that never learned the targets.")
@click.option("--reference-model", type=_FOLDER, help="Such a model in this process.")
@options.items_option()
@click.option(
    "--targets-file", type=_FILE, help="Targets, JSON lines: their aliases and descriptions are used."
)
@click.option(
    "--attack", "names", multiple=True, help="Only this, or all whose names begin with it and a colon."
)
@click.option("--templates", type=_FILE, help="Jailbreaks, one a line, with {question} in each.")
@click.option(
    "--sample", type=click.IntRange(2), default=40, show_default=True, help="Questions about targets."
)
@click.option("--benign", type=click.IntRange(0), default=10, show_default=True, help="Of each other split.")
@click.option("--limit", type=click.FloatRange(0, 1), default=suite.LIMIT, show_default=True,
              help="What may be told beyond the never-learned model.")  # fmt: skip
@options.entailment_option
@options.encoder_options
@options.judge_options
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True)
@options.rate_option
@options.journal_option
@options.check_option
@options.common_options("attacks")
def attacks(
    base_url: str | None,
    key: str | None,
    model: Path | None,
    adapter: Path | None,
    base_only_url: str | None,
    base_only_model: Path | None,
    reference_url: str | None,
    reference_model: Path | None,
    items_path: Path,
    targets_file: Path | None,
    names: tuple[str, ...],
    templates: Path | None,
    sample: int,
    benign: int,
    limit: float,
    load: Callable[[], tuple[Encoder, Compiler]],
    judge: Callable[[AsyncExitStack], Awaitable[LlmJudge | None]],
    entailment: bool,
    concurrency: int,
    rate: float | None,
    journal: Path | None,
    check: bool,
    seed: int,
    out: Path,
    rows: bool,
) -> None:
    """A red team: what gets out of a guarded server, attack by attack, and which fault of the guard that shows.

    \b
    Example:
      python -m evals attacks --base-url http://127.0.0.1:8000 --key $LETHE_KEY \\
        --base-only-url http://127.0.0.1:8002 --reference-url http://127.0.0.1:8001
    """
    if (base_url is None) == (model is None):
        raise click.UsageError("Give --base-url, or --model for one in this process.")
    items = options.read_items(items_path)
    lines = targets_file.read_text(encoding="utf-8").splitlines() if targets_file else []

    async def work() -> Report:
        plan = suite.Plan(suite.chosen(names, templates), sample, benign, seed, limit)
        team = suite.RedTeam(items, [json.loads(line) for line in lines if line.strip()], plan)
        async with AsyncExitStack() as stack:
            opening = Opening(stack, concurrency, journal, rate)
            subjects = {
                UNGUARDED: await opening.either(base_only_url, None, base_only_model, lenient=True),
                NEVER: await opening.either(reference_url, None, reference_model, lenient=True),
                GUARDED: await opening.either(base_url, key, model, adapter, lenient=True),
            }
            for system, subject in subjects.items():
                if subject is not None:
                    await team.ask(system, subject)
            judged = await team.judge(load()[0] if entailment else None, await judge(stack))
        report = attack_report.build(team.found, plan)
        report.params = {"attacks": list(plan.attacks), "sample": sample, "benign": benign, "limit": limit}
        report.params |= judged
        report.inputs = {"targets": fingerprint(targets_file)} if targets_file else {}
        return report

    options.finish(options.drive(work()), out, rows=rows, items_path=items_path, check=check)


@click.command()
@click.option("--model", required=True, type=_FOLDER, help="The model that knows.")
@click.option("--adapter", required=True, type=_FOLDER, help="The LoRA adapter that makes it forget.")
@click.option("--reference-model", type=_FOLDER, help="A model that never learned the targets.")
@options.items_option()
@click.option(
    "--stop", "stops", type=click.IntRange(0), multiple=True, help="Ask after so many steps; repeatable."
)
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), default=relearning.Plan().rate, show_default=True
)
@click.option(
    "--sample", type=click.IntRange(2), default=50, show_default=True, help="Questions of each split."
)
@options.common_options("relearn")
def relearn(
    model: Path,
    adapter: Path,
    reference_model: Path | None,
    items_path: Path,
    stops: tuple[int, ...],
    rate: float,
    sample: int,
    seed: int,
    out: Path,
    rows: bool,
) -> None:
    """What fine-tuning on other facts brings back of what an adapter made a model forget. Needs the weights.

    \b
    Example:
      python -m evals relearn --model demo/models/full --adapter demo/artifacts/lora_adapter \\
        --reference-model demo/models/never
    """
    plan = relearning.Plan(rate=rate, sample=sample, seed=seed)
    if stops:
        plan = replace(plan, stops=tuple(sorted({0, *stops})))
    try:
        report = relearning.run(options.read_items(items_path), model, adapter, reference_model, plan)
    except ItemError as error:
        raise click.ClickException(str(error)) from None
    options.finish(report, out, rows=rows, items_path=items_path)
