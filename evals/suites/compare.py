"""Paired differences between two reports of one suite, over the rows that both have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evals.items import ItemError
from evals.report import Report, as_cell
from guard.metrics.bootstrap import mean_interval, paired_difference

_GROUPS = ("split", "phrasing", "operation")


def _group(row: dict[str, Any]) -> str:
    return ", ".join(str(row[key]) for key in _GROUPS if row.get(key)) or "all"


def compare(first: dict[str, Any], second: dict[str, Any], *, seed: int = 0) -> Report:
    """Second minus first for every score of every group of rows."""
    if first["suite"] != second["suite"]:
        raise ItemError(f"the reports are of different suites: {first['suite']} and {second['suite']}")
    mine = {row["id"]: row for row in first["rows"] if "scores" in row}
    pairs = [(mine[row["id"]], row) for row in second["rows"] if row["id"] in mine and "scores" in row]
    if not pairs:
        raise ItemError("the reports have no scored rows in common; make both with --rows and the same items")
    report = Report("compare", seed=seed, n=len(pairs))
    report.results = {
        "suite": first["suite"],
        "only_in_first": len(mine) - len(pairs),
        "only_in_second": sum("scores" in row for row in second["rows"]) - len(pairs),
        "inputs_equal": first["inputs"] == second["inputs"],
    }
    table = []
    for group in dict.fromkeys(_group(row) for _, row in pairs):
        part = [(a["scores"], b["scores"]) for a, b in pairs if _group(b) == group]
        for metric in dict.fromkeys(name for _, scores in part for name in scores):
            table.append(_line(group, metric, part, seed))
    columns = ["rows", "metric", "n", "first", "second", "second - first"]
    report.table("Second report minus first, paired", columns, [line for line in table if line])
    return report


def _line(group: str, metric: str, pairs: Sequence[tuple[dict, dict]], seed: int) -> list[Any] | None:
    both = [(a[metric], b[metric]) for a, b in pairs if metric in a and metric in b]
    if not both:
        return None
    first, second = [a for a, _ in both], [b for _, b in both]
    means = [as_cell(mean_interval(values, seed=seed)) for values in (first, second)]
    return [group, metric, len(both), *means, as_cell(paired_difference(second, first, seed=seed))]
