"""JSON reports as one HTML page that needs nothing else: inline CSS and SVG, no script, no other host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from guard import pages
from guard.pages import show

_DRAWN: dict[str, Callable[..., str]] = {
    "chart": pages.chart,
    "plane": pages.plane,
    "matrix": pages.matrix,
    "histogram": pages.histogram,
    "examples": pages.examples,
}
_MARKS = {True: ("good", "pass"), False: ("bad", "FAIL"), None: ("note", "not judged")}


def _criteria(report: dict[str, Any]) -> str:
    lines = []
    for one in report["criteria"]:
        kind, word = _MARKS[one["passed"]]
        text = f"{escape(one['name'])} = {escape(show(one['value']))} (limit {escape(show(one['limit']))})"
        lines.append(f'<li><span class="{kind}">{word}</span>: {text}</li>')
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _section(report: dict[str, Any]) -> str:
    about = [("command", " ".join(report["command"])), ("made", report["created"]), ("seed", report["seed"])]
    about += [
        ("parameters", report["params"]),
        ("inputs", report["inputs"]),
        ("versions", report["versions"]),
    ]
    lines = "".join(f"<li>{name}: <code>{escape(str(value))}</code></li>" for name, value in about)
    return (
        f"<h2>{escape(report['suite'])}</h2><p>n = {report['n']}</p>{_criteria(report)}"
        + "".join(map(_drawing, report["drawings"]))
        + "".join(pages.table(t["title"], t["columns"], t["rows"], t["note"]) for t in report["tables"])
        + f"<details><summary>How to make it again</summary><ul>{lines}</ul></details>"
    )


def _drawing(one: dict[str, Any]) -> str:
    return _DRAWN[one["kind"]](**{name: value for name, value in one.items() if name != "kind"})


def page(reports: Sequence[dict[str, Any]], title: str = "Lethe evaluation") -> str:
    """The whole page."""
    return pages.page(title, "".join(map(_section, reports)))
