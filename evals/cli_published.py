"""One command for each published benchmark: against an endpoint, a guarded server, or a model in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click

from evals import options
from evals.items import ItemError
from evals.opening import Opening, measured_by
from evals.published import BENCHMARKS
from evals.published.base import Benchmark, Measured, Source
from evals.report import Report
from evals.subjects import Subject

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom the command line names: an endpoint or a model, and what stands for never having learned."""

    base_url: str | None
    key: str | None
    admin_key: str | None
    model: Path | None
    adapter: Path | None
    reference_url: str | None
    reference_model: Path | None
    reference_report: Path | None
    concurrency: int
    rate: float | None
    journal: Path | None

    def check(self) -> None:
        """Raises click.UsageError: they name nobody, or two."""
        if (self.base_url is None) == (self.model is None):
            raise click.UsageError("Give --base-url, or --model for one in this process.")
        if self.adapter is not None and self.model is None:
            raise click.UsageError("--adapter goes on the --model in this process.")
        references = (self.reference_url, self.reference_model, self.reference_report)
        if sum(one is not None for one in references) > 1:
            raise click.UsageError(
                "Give one reference: --reference-url, --reference-model or --reference-report."
            )

    async def subject(self, opening: Opening) -> Subject:
        found = await opening.either(
            self.base_url, self.admin_key or self.key, self.model, self.adapter, measured_by(self.admin_key)
        )
        assert found is not None
        return found

    async def reference(self, opening: Opening) -> Subject | None:
        return await opening.either(self.reference_url, None, self.reference_model)


def command(benchmark: type[Benchmark]) -> click.Command:
    """The command that runs a benchmark."""

    def run(
        data: str | None,
        sample: int | None,
        seed: int,
        out: Path,
        rows: bool,
        own: Mapping[str, Any],
        asked: Asked,
    ) -> None:
        if data is None:
            raise click.UsageError("Give --data, the folder with the published files.")
        asked.check()
        source = Source(data)

        async def work() -> Report:
            prepared = benchmark(source, sample, seed, **own)
            report = Report(benchmark.name, seed=seed, params={**own, "sample": sample}, inputs=source.read)
            async with AsyncExitStack() as stack:
                opening = Opening(stack, asked.concurrency, asked.journal, asked.rate)
                subject, other = await asked.subject(opening), await asked.reference(opening)
                found = await prepared.measure(subject)
                reference = await prepared.measure(other) if other is not None else None
            if asked.reference_report is not None:
                reference = stored(asked.reference_report, benchmark.name, source.read, found)
            prepared.report(found, reference, report)
            report.params |= {
                "subject": subject.name,
                "reference": other.name if other else str(reference and "stored"),
            }
            report.rows, report.n = found.rows, len(found.rows)
            return report

        options.finish(options.drive(work()), out, rows=rows)

    return _with_options(run, benchmark)


def stored(path: Path, name: str, inputs: Mapping[str, str], found: Measured) -> Measured:
    """What a never-learned model did in an earlier run.

    Raises:
        ItemError: the report is of something else: another benchmark, other files or items, or another tokenizer.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        about, rows = (report["suite"], report["inputs"]), {row["id"]: row for row in report["rows"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise ItemError(f"{path.name} is no report") from None
    if about != (name, dict(inputs)):
        raise ItemError(f"{path.name} is no report of this benchmark on these files")
    for row in found.rows:
        other = rows.get(row["id"])
        if other is None:
            raise ItemError(
                f"{path.name} lacks {row['id']}; make it with --rows and the same sample and seed"
            )
        if row.get("tokens") and other.get("tokens") and row["tokens"] != other["tokens"]:
            raise ItemError(
                f"{path.name} has answers of other lengths in tokens: it was made with another tokenizer"
            )
    return Measured([rows[row["id"]] for row in found.rows])


def _with_options(run: Callable[..., None], benchmark: type[Benchmark]) -> click.Command:
    fields = Asked.__dataclass_fields__

    def called(**given: Any) -> None:
        asked = Asked(**{name: given.pop(name) for name in fields})
        own = {name: given.pop(name) for name in benchmark.options}
        run(**given, own=own, asked=asked)

    called.__doc__ = f"""{benchmark.title}.

    \b
    Example:
      python -m evals {benchmark.name} --data {benchmark.hub or "data/" + benchmark.name} \\
        --base-url http://127.0.0.1:8000 --reference-url http://127.0.0.1:8001
    """
    default, decorated = benchmark.hub or None, cast(Any, called)
    for decorate in (
        click.option("--data", default=default, show_default=True, help="Folder, or dataset of the hub."),
        click.option("--base-url", help="The endpoint that is measured."),
        options.key_option,
        click.option("--admin-key", envvar="LETHE_ADMIN_KEY", help="Of a Lethe server, to tell likelihoods."),
        click.option("--model", type=_FOLDER, help="Instead: a model in this process."),
        click.option("--adapter", type=_FOLDER, help="A LoRA adapter on it."),
        click.option("--reference-url", help="A server with a model that never learned the forget set."),
        click.option("--reference-model", type=_FOLDER, help="Such a model in this process."),
        click.option("--reference-report", type=_FILE, help="The report of an earlier run on such a model."),
        *(
            click.option(f"--{name}", name, type=type(value), default=value, show_default=True, help=told)
            for name, (value, told) in benchmark.options.items()
        ),
        click.option("--sample", type=click.IntRange(1), help="At most so many items of each set."),
        click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True),
        options.rate_option,
        options.journal_option,
        options.common_options(benchmark.name),
    ):  # fmt: skip
        decorated = decorate(decorated)
    return click.command(benchmark.name)(decorated)


COMMANDS = tuple(map(command, BENCHMARKS.values()))
