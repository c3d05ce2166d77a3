"""HTML pages that need nothing else: inline CSS and SVG, no script, no other host. Every text is escaped.

What evaluation and training show has one set of tables and charts. A cell is a text, a number, or an interval as
`Interval.as_dict` gives it; None is a gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Cell = str | int | float | bool | None | dict[str, Any]

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
_ALARMS = ("DIFFERENT",)
_WIDTH, _LEFT, _ROW = 720, 230, 24
_PLANE, _EDGE = 420, 56  # height of a plane, and its margin where the axes are named


def show(cell: Cell) -> str:
    """A cell as text: an interval as mean [low, high], a number to three places."""
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "NO"
    if isinstance(cell, dict):
        return f"{cell['mean']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"
    if isinstance(cell, float):
        return f"{cell:.3g}" if cell and abs(cell) < 0.001 else f"{cell:.3f}"
    return str(cell)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines for a terminal: the cells of each row under those of the row before, the first of them underlined."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(t.ljust(w) for t, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [*lines[:1], "  ".join("-" * width for width in widths), *lines[1:]]


def page(title: str, body: str) -> str:
    """The whole page around `body`, which is HTML."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = "") -> str:
    head = "".join(f"<th>{escape(str(c))}</th>" for c in columns)
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    told = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<h3>{escape(title)}</h3>{told}<table><tr>{head}</tr>{body}</table>"


def chart(title: str, points: Sequence[Mapping[str, Any]], limit: float | None = None) -> str:
    """Points `{"label", "interval"}`: means as dots with their intervals, zero as a line, the limit as a dashed one."""
    drawn = [p for p in points if p["interval"]]
    if not drawn:
        return ""
    ends = [v for p in drawn for v in (p["interval"]["low"], p["interval"]["high"])]
    low, high = _range([*ends, 0.0, *([limit] if limit is not None else [])])

    def x(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - 10), 1)

    height = _ROW * (len(drawn) + 1) + 10

    def rule(value: float, style: str) -> str:
        line = f'<line x1="{x(value)}" x2="{x(value)}" y1="0" y2="{height - 24}" {style}/>'
        return f'{line}<text x="{x(value)}" y="{height - 8}" text-anchor="middle">{value:g}</text>'

    parts = [rule(0, 'stroke="currentColor" opacity=".4"')]
    if limit is not None:
        parts.append(rule(limit, 'stroke="var(--bad)" stroke-dasharray="4 3"'))
    for i, point in enumerate(drawn):
        y, interval = _ROW * i + 14, point["interval"]
        a, m, b = x(interval["low"]), x(interval["mean"]), x(interval["high"])
        parts.append(
            f'<text x="0" y="{y + 4}">{escape(point["label"])}</text>'
            f'<line x1="{a}" x2="{b}" y1="{y}" y2="{y}" stroke="var(--mark)" stroke-width="2"/>'
            f'<circle cx="{m}" cy="{y}" r="4" fill="var(--mark)">'
            f"<title>{escape(show(interval))}</title></circle>"
        )
    return f"<h3>{escape(title)}</h3>{_svg(height, parts)}"


def plane(
    title: str,
    axes: tuple[str, str],
    points: Sequence[Mapping[str, Any]],
    limits: tuple[float | None, float | None] = (None, None),
) -> str:
    """Points `{"label", "x", "y", "good"}` of two intervals each, as crosses of both; zero as lines, the limits as
    dashed ones. `good` colours a point."""
    if not points:
        return ""
    spans = [
        _range([0.0, *(v for p in points for v in (p[axis]["low"], p[axis]["high"])), *_given(limit)])
        for axis, limit in zip("xy", limits, strict=True)
    ]

    def at(axis: int, value: float) -> float:
        low, high = spans[axis]
        share = (value - low) / (high - low)
        room = (_WIDTH - 2 * _EDGE, _PLANE - 2 * _EDGE)[axis]
        return round(_EDGE + room * (share if axis == 0 else 1 - share), 1)

    def rule(axis: int, value: float, style: str) -> str:
        place, name = at(axis, value), f"{value:g}"
        if axis == 0:
            line = f'<line x1="{place}" x2="{place}" y1="{_EDGE}" y2="{_PLANE - _EDGE}" {style}/>'
            return f'{line}<text x="{place}" y="{_PLANE - _EDGE + 16}" text-anchor="middle">{name}</text>'
        line = f'<line x1="{_EDGE}" x2="{_WIDTH - _EDGE}" y1="{place}" y2="{place}" {style}/>'
        return f'{line}<text x="{_EDGE - 6}" y="{place + 4}" text-anchor="end">{name}</text>'

    parts = [rule(axis, 0.0, 'stroke="currentColor" opacity=".4"') for axis in (0, 1)]
    for axis, limit in enumerate(limits):
        if limit is not None:
            parts.append(rule(axis, limit, 'stroke="var(--bad)" stroke-dasharray="4 3"'))
    parts.append(f'<text x="{_WIDTH / 2}" y="{_PLANE - 8}" text-anchor="middle">{escape(axes[0])}</text>')
    parts.append(f'<text x="{_EDGE}" y="{_EDGE / 2}">{escape(axes[1])}</text>')
    for point in points:
        x, y = at(0, point["x"]["mean"]), at(1, point["y"]["mean"])
        ends = [at(0, point["x"]["low"]), at(0, point["x"]["high"])]
        sides = [at(1, point["y"]["low"]), at(1, point["y"]["high"])]
        colour = "var(--good)" if point["good"] else "var(--mark)"
        anchor, side = ("end", -7) if x > _WIDTH * 0.7 else ("start", 7)  # names stay within the plane
        told = f"{point['label']}: {show(dict(point['x']))}, {show(dict(point['y']))}"
        parts.append(
            f'<g stroke="{colour}" opacity=".5"><line x1="{ends[0]}" x2="{ends[1]}" y1="{y}" y2="{y}"/>'
            f'<line x1="{x}" x2="{x}" y1="{sides[0]}" y2="{sides[1]}"/></g>'
            f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"><title>{escape(told)}</title></circle>'
            f'<text x="{x + side}" y="{y - 6}" text-anchor="{anchor}">{escape(point["label"])}</text>'
        )
    return f"<h3>{escape(title)}</h3>{_svg(_PLANE, parts)}"


def _cell(cell: Cell) -> str:
    kind = "number" if isinstance(cell, int | float | dict) and not isinstance(cell, bool) else ""
    if cell is False or cell in _ALARMS:
        kind = "bad"
    return f'<td class="{kind}">{escape(show(cell))}</td>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest, with a margin."""
    low, high = min(values), max(values)
    margin = (high - low or 1.0) * 0.06
    return low - margin, high + margin


def _given(limit: float | None) -> list[float]:
    return [] if limit is None else [limit]


def _svg(height: int, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" role="img">{"".join(parts)}</svg>'
