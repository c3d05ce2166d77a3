"""Limits on the figures of reports, for CI: `NAME<=NUMBER` or `NAME>=NUMBER`.

A figure is named by where it stands, with dots between: `results.geometric.model_utility`; a table's title, the texts
that open the row, and the column (`Sets.forget.recall`); a matrix's title, row and column; or a group of rows and one
of their scores, whose mean is taken (`forget, trained.guarded.rouge`). A limit holds where the whole interval keeps it
and is broken where the whole interval breaks it; else the sample is too small to tell. `.mean`, `.low`, `.high` or
`.upper` behind the name take that one number. A name that a table has twice names nothing.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from evals.items import ItemError
from evals.report import Report, as_cell
from guard.metrics.bootstrap import mean_interval

GROUPS = ("split", "phrasing", "operation", "method")
_FORM = re.compile(r"(?P<name>.+?)\s*(?P<sign><=|>=)\s*(?P<bound>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")
_KEEPS: Mapping[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True, slots=True)
class Limit:
    """`sign` tells which way is worse: with `<=` more is."""

    name: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Raises ItemError: it is none."""
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise ItemError(f"'{text}' is no limit; write NAME<=NUMBER or NAME>=NUMBER")
        return cls(found["name"], found["sign"], float(found["bound"]))

    def holds(self, figure: float | Mapping[str, float]) -> bool | None:
        """None where an interval lies on both sides of the bound."""
        ends = (figure["low"], figure["high"]) if isinstance(figure, Mapping) else (figure, figure)
        kept = [_KEEPS[self.sign](end, self.bound) for end in ends]
        return kept[0] if kept[0] == kept[1] else None


def judge(report: Report, limits: Sequence[Limit], figures: Mapping[str, Any], *, strict: bool) -> None:
    """A criterion of `report` for each limit on `figures`; with `strict` it fails where it cannot be told.

    Raises:
        ItemError: there is no such figure.
    """
    for limit in limits:
        figure = find(figures, limit.name)
        holds = limit.holds(figure)
        report.criterion(
            limit.name, figure, f"{limit.sign} {limit.bound:g}", bool(holds) if strict else holds
        )


def figures_of(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All figures of reports by their names; those of several reports under the suite's name each."""
    found = {report["suite"]: _figures(report) for report in reports}
    return next(iter(found.values())) if len(reports) == 1 else found


def group_of(row: Mapping[str, Any]) -> str:
    """The rows that a row is counted with."""
    return ", ".join(str(row[key]) for key in GROUPS if row.get(key)) or "all"


def cluster_of(row: Mapping[str, Any]) -> str:
    """What is resampled as one: all rows about an entity, whose answers rise and fall together, else the row."""
    return str(row.get("entity") or row["id"])


def number(value: Any) -> float | None:
    """A score that is one."""
    return float(value) if isinstance(value, int | float) and value == value else None


def find(figures: Mapping[str, Any], name: str) -> float | dict[str, float]:
    """A number or an interval.

    Raises:
        ItemError: nothing has that name, or what has it is no figure.
    """
    found = next(_at(figures, name), None)
    if found is None:
        near = difflib.get_close_matches(name, list(_names(figures)), n=3, cutoff=0.4)
        raise ItemError(f"no figure is named '{name}'" + (f"; is it '{near[0]}'?" if near else ""))
    value = _mean(found[0])
    if isinstance(value, Mapping) and {"low", "high"} <= value.keys():
        return dict(value)
    if isinstance(value, bool) or (figure := number(value)) is None:
        raise ItemError(f"'{name}' is no figure" + (f" but '{value}'" if isinstance(value, str) else ""))
    return figure


def _figures(report: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in report["rows"]:
        group = found.setdefault(group_of(row), {})
        for score, value in row.get("scores", {}).items():
            if (one := number(value)) is not None:
                group.setdefault(score, []).append((one, cluster_of(row)))
    for table in report["tables"]:
        lines = []
        for row in table["rows"]:
            texts = list(takewhile(lambda cell: isinstance(cell, str), row))
            cells = zip(table["columns"][len(texts) :], row[len(texts) :], strict=True)
            lines.append((", ".join(texts), _once(cells)))
        found.setdefault(table["title"], {}).update(_once(lines))
    for one in report["drawings"]:
        if one["kind"] == "matrix":
            rows = [_once(zip(one["columns"], cells, strict=True)) for cells in one["cells"]]
            found.setdefault(one["title"], {}).update(_once(zip(one["rows"], rows, strict=True)))
    return {**found, "n": report["n"], "results": report["results"]}


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Without the keys that stand twice."""
    known = list(pairs)
    times = Counter(key for key, _ in known)
    return {key: value for key, value in known if times[key] == 1}


def _at(node: Any, name: str) -> Iterator[tuple[Any]]:
    """What stands at that name; keys may hold dots themselves."""
    node = _mean(node)
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        if name == key:
            yield (value,)
        elif name.startswith(f"{key}."):
            yield from _at(value, name[len(key) + 1 :])


def _mean(node: Any) -> Any:
    """The interval of a group's scores, which is not computed before it is asked for."""
    if not isinstance(node, list):
        return node
    values, clusters = zip(*node, strict=True)
    return as_cell(mean_interval(values, groups=clusters))


def _names(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, Mapping) and "low" not in node:
        for key, value in node.items():
            yield from _names(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix(".")
