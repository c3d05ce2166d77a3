"""JSON reports as one HTML page that needs nothing else: inline CSS and SVG, no script, no other host."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from evals.report import show

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f4b; --bad: #c0392b; --mark: #2f6fb0; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); } h3 { font-size: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; display: block;
  overflow-x: auto; }
th, td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; }
th { font-weight: 600; } td.number { text-align: right; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; } .note, details { opacity: .75; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; } code { font-size: 12px; }
"""
_MARKS = {True: ("good", "pass"), False: ("bad", "FAIL"), None: ("note", "not judged")}
_WIDTH, _LEFT, _ROW = 720, 230, 24


def _cell(cell: Any) -> str:
    kind = "number" if isinstance(cell, int | float | dict) and not isinstance(cell, bool) else ""
    if cell is False or cell == "DIFFERENT":
        kind = "bad"
    return f'<td class="{kind}">{escape(show(cell))}</td>'


def _table(table: dict[str, Any]) -> str:
    head = "".join(f"<th>{escape(str(c))}</th>" for c in table["columns"])
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in table["rows"])
    note = f'<p class="note">{escape(table["note"])}</p>' if table["note"] else ""
    return f"<h3>{escape(table['title'])}</h3>{note}<table><tr>{head}</tr>{body}</table>"


def _chart(chart: dict[str, Any]) -> str:
    """Means as dots with their intervals, zero as a line, the limit as a dashed one."""
    points = [p for p in chart["points"] if p["interval"]]
    if not points:
        return ""
    ends = [v for p in points for v in (p["interval"]["low"], p["interval"]["high"])]
    ends += [0.0] + ([chart["limit"]] if chart["limit"] is not None else [])
    low, high = min(ends), max(ends)
    margin = (high - low or 1.0) * 0.06
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - 10), 1)

    height = _ROW * (len(points) + 1) + 10

    def rule(value: float, style: str) -> str:
        line = f'<line x1="{x(value)}" x2="{x(value)}" y1="0" y2="{height - 24}" {style}/>'
        return f'{line}<text x="{x(value)}" y="{height - 8}" text-anchor="middle">{value:g}</text>'

    parts = [rule(0, 'stroke="currentColor" opacity=".4"')]
    if chart["limit"] is not None:
        parts.append(rule(chart["limit"], 'stroke="var(--bad)" stroke-dasharray="4 3"'))
    for i, point in enumerate(points):
        y, interval = _ROW * i + 14, point["interval"]
        a, m, b = x(interval["low"]), x(interval["mean"]), x(interval["high"])
        parts.append(
            f'<text x="0" y="{y + 4}">{escape(point["label"])}</text>'
            f'<line x1="{a}" x2="{b}" y1="{y}" y2="{y}" stroke="var(--mark)" stroke-width="2"/>'
            f'<circle cx="{m}" cy="{y}" r="4" fill="var(--mark)">'
            f"<title>{escape(show(interval))}</title></circle>"
        )
    svg = f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img">{"".join(parts)}</svg>'
    return f"<h3>{escape(chart['title'])}</h3>{svg}"


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
        + "".join(_chart(chart) for chart in report["charts"])
        + "".join(_table(table) for table in report["tables"])
        + f"<details><summary>How to make it again</summary><ul>{lines}</ul></details>"
    )


def page(reports: Sequence[dict[str, Any]], title: str = "Lethe evaluation") -> str:
    """The whole page."""
    sections = "".join(_section(report) for report in reports)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{sections}</body></html>\n"
    )
