"""Paired differences between two reports of one suite, over the rows that both have.

Every suite's rows do that have an `id` and `scores`. Rows about one `entity` are resampled as one, because their
answers rise and fall together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.items import ItemError
from evals.limits import cluster_of, group_of, number
from evals.report import Report, as_cell
from guard.metrics.bootstrap import mean_interval, paired_difference

Data = Mapping[str, Any]


def compare(first: Data, second: Data, *, seed: int = 0) -> Report:
    """Second minus first for every score of every group of rows: in `results.differences` by group and score.

    Raises:
        ItemError: they are of different suites, or have no scored rows in common.
    """
    if first["suite"] != second["suite"]:
        raise ItemError(f"the reports are of different suites: {first['suite']} and {second['suite']}")
    mine, other = _scored(first), _scored(second)
    pairs = [(mine[name], row) for name, row in other.items() if name in mine]
    if not pairs:
        raise ItemError("the reports have no scored rows in common; make both with --rows and the same items")
    report = Report("compare", seed=seed, n=len(pairs))
    differences: dict[str, dict[str, Any]] = {}
    table = []
    for group in dict.fromkeys(group_of(row) for _, row in pairs):
        part = [(a, b) for a, b in pairs if group_of(b) == group]
        for metric in dict.fromkeys(name for _, row in part for name in row["scores"]):
            if line := _line(group, metric, part, seed):
                table.append(line)
                differences.setdefault(group, {})[metric] = line[-1]
    report.results = {
        "suite": first["suite"],
        "only_in_first": len(mine) - len(pairs),
        "only_in_second": len(other) - len(pairs),
        "inputs_equal": first["inputs"] == second["inputs"],
        "differences": differences,
    }
    columns = ["rows", "metric", "n", "first", "second", "second - first"]
    report.table("Second report minus first, paired", columns, table)
    return report


def compare_all(firsts: Sequence[Data], seconds: Sequence[Data], *, seed: int = 0) -> Report:
    """The same for files of several reports, paired by their suites, whose name stands before each figure's; suites
    that share no scored rows are named in `results.not_compared`.

    Raises:
        ItemError: no two of them can be compared.
    """
    if len(firsts) == len(seconds) == 1:
        return compare(firsts[0], seconds[0], seed=seed)
    others = {one["suite"]: one for one in seconds}
    whole = Report("compare", seed=seed)
    whole.results = {"differences": {}, "not_compared": {}}
    for first in firsts:
        suite = first["suite"]
        try:
            if suite not in others:
                raise ItemError("the second file has no such report")
            one = compare(first, others[suite], seed=seed)
        except ItemError as error:
            whole.results["not_compared"][suite] = str(error)
            continue
        whole.n += one.n
        whole.results["differences"][suite] = one.results["differences"]
        whole.tables += [{**table, "title": f"{suite}: {table['title']}"} for table in one.tables]
    if not whole.n:
        raise ItemError("no two reports of the files can be compared: " + str(whole.results["not_compared"]))
    return whole


def _scored(report: Data) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in report["rows"]:
        if row.get("scores"):
            if row["id"] in found:
                raise ItemError(f"a report of {report['suite']} has two rows with the id {row['id']!r}")
            found[row["id"]] = row
    return found


def _line(group: str, metric: str, pairs: Sequence[tuple[Data, Data]], seed: int) -> list[Any] | None:
    found = [(*(number(row["scores"].get(metric)) for row in pair), cluster_of(pair[1])) for pair in pairs]
    both = [one for one in found if None not in one]
    if not both:
        return None
    first, second, clusters = zip(*both, strict=True)
    options = {"seed": seed, "groups": clusters}
    means = [as_cell(mean_interval(values, **options)) for values in (first, second)]
    return [group, metric, len(both), *means, as_cell(paired_difference(second, first, **options))]
