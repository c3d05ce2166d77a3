"""HTML pages that need nothing else: inline CSS and SVG, no script, no other host. Every text is escaped.

What evaluation and training show has one set of tables and drawings. A cell is a text, a number, or an interval as
`Interval.as_dict` gives it; None is a gap. Colours tell nothing that is not also written or drawn in another form, and
texts stand out from them by 4.5 to 1 at least (WCAG 2 AA), in light and in dark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import cycle
from typing import Any

Cell = str | int | float | bool | None | dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #17703f; --bad: #b03426; --mark: #2f6fb0; --other: #9a5b00; }
@media (prefers-color-scheme: dark) { :root { --good: #58c48a; --bad: #ff8a7a; --mark: #7db3e8; --other: #e0a84f; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); } h3 { font-size: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; }
.wide { overflow-x: auto; } .wide:focus-visible, summary:focus-visible { outline: 2px solid var(--mark); }
th, td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; }
th { font-weight: 600; } td.number { text-align: right; white-space: nowrap; }
.matrix td.number { padding: .25rem .5rem; text-align: center; border: 1px solid var(--line); }
.long td { vertical-align: top; white-space: pre-wrap; overflow-wrap: anywhere; min-width: 6ch; max-width: 44ch; }
.good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; } .note { opacity: .8; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; } code { font-size: 12px; }
"""
_ALARMS = ("DIFFERENT",)
_WIDTH, _LEFT, _ROW = 720, 230, 24
_PLANE, _EDGE = 420, 56  # height of a plane, and its margin where the axes are named
_STEPS = 260  # height of a histogram
_PALE, _DEEP = (246, 248, 251), (16, 58, 105)  # shades of a matrix, in sRGB, the same in light and in dark
_INKS = ((0, 0, 0), (255, 255, 255))
_POINTS = {  # by `good`: what a point of a plane is filled with, and its edge
    True: ("var(--good)", "var(--good)"),
    False: ("none", "var(--bad)"),
    None: ("var(--mark)", "var(--mark)"),
}
_GROUPS = (  # of a histogram, told apart by dashes as well as by colour
    ("var(--mark)", "none"),
    ("var(--other)", "7 3"),
    ("var(--good)", "2 3"),
    ("var(--bad)", "9 3 2 3"),
)


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
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = "") -> str:
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    return _head(title, note) + _wide(title, f"<table>{_names(columns)}{body}</table>")


def matrix(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[Cell]],
    note: str = "",
) -> str:
    """One cell for each of `rows` and `columns`, shaded by its number or mean and with that written in it. The scale
    goes from 0 to 1 where every figure fits, else from the least to the greatest."""
    low, high = scale(cells)
    lines = []
    for name, line in zip(rows, cells, strict=True):
        shaded = "".join(_cell(cell, _shade(cell, low, high)) for cell in line)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{shaded}</tr>')
    told = f"{note + '; ' if note else ''}shades from {low:g} (pale) to {high:g} (deep)"
    head = _names(["", *columns])
    return _head(title, told) + _wide(title, f'<table class="matrix">{head}{"".join(lines)}</table>')


def scale(cells: Sequence[Sequence[Cell]]) -> tuple[float, float]:
    """The ends of the shades of a matrix."""
    found = [value for line in cells for cell in line if (value := _number(cell)) is not None]
    if not found or (min(found) >= 0 and max(found) <= 1):
        return 0.0, 1.0
    return (min(found), max(found)) if min(found) < max(found) else (min(found), min(found) + 1)


def examples(title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table of long texts, folded away until it is asked for."""
    if not rows:
        return ""
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in rows)
    inner = _wide(title, f'<table class="long">{_names(columns)}{body}</table>')
    return f"<details><summary>{escape(title)} ({len(rows)})</summary>{inner}</details>"


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
    return _head(title) + _svg(title, height, parts)


def histogram(title: str, edges: Sequence[float], groups: Sequence[Mapping[str, Any]]) -> str:
    """Groups `{"label", "counts", "n"}` over the bins between `edges`, as steps of their shares of each group's `n`."""
    tallest = max((c / g["n"] for g in groups if g["n"] for c in g["counts"]), default=0.0)
    if not tallest:
        return ""
    low, high, ground = edges[0], edges[-1], _STEPS - _EDGE

    def x(value: float) -> float:
        return round(_EDGE + (value - low) / (high - low) * (_WIDTH - 2 * _EDGE), 1)

    def y(share: float) -> float:
        return round(ground - share / tallest * (ground - 20), 1)

    parts = [f'<line x1="{x(low)}" x2="{x(high)}" y1="{ground}" y2="{ground}" stroke="currentColor"/>']
    for value in edges[:: max(1, len(edges) // 10)]:
        parts.append(f'<text x="{x(value)}" y="{ground + 16}" text-anchor="middle">{value:.3g}</text>')
    parts.append(f'<text x="{_EDGE - 6}" y="{y(tallest) + 4}" text-anchor="end">{tallest:.0%}</text>')
    drawn = [g for g in groups if g["n"]]
    for i, (group, (colour, dashes)) in enumerate(zip(drawn, cycle(_GROUPS), strict=False)):
        pen = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"'
        path = " ".join(_steps(edges, [c / group["n"] for c in group["counts"]], x, y))
        at = _WIDTH / len(drawn) * i
        parts.append(
            f'<path d="{path}" {pen}><title>{escape(group["label"])}</title></path>'
            f'<line x1="{at + 4}" x2="{at + 34}" y1="{_STEPS - 12}" y2="{_STEPS - 12}" {pen}/>'
            f'<text x="{at + 40}" y="{_STEPS - 8}">{escape(group["label"])}, n = {group["n"]}</text>'
        )
    return _head(title) + _svg(title, _STEPS, parts)


def plane(
    title: str,
    axes: tuple[str, str],
    points: Sequence[Mapping[str, Any]],
    limits: tuple[float | None, float | None] = (None, None),
) -> str:
    """Points `{"label", "x", "y", "good"}` of two intervals each, as crosses of both; zero as lines, the limits as
    dashed ones. Points that are not `good` are hollow; without `good` none is judged."""
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
        fill, edge = _POINTS[point.get("good")]
        anchor, side = ("end", -7) if x > _WIDTH * 0.7 else ("start", 7)  # names stay within the plane
        told = f"{point['label']}: {show(dict(point['x']))}, {show(dict(point['y']))}"
        parts.append(
            f'<g stroke="{edge}" opacity=".5"><line x1="{ends[0]}" x2="{ends[1]}" y1="{y}" y2="{y}"/>'
            f'<line x1="{x}" x2="{x}" y1="{sides[0]}" y2="{sides[1]}"/></g>'
            f'<circle cx="{x}" cy="{y}" r="4" fill="{fill}" stroke="{edge}" stroke-width="2">'
            f"<title>{escape(told)}</title></circle>"
            f'<text x="{x + side}" y="{y - 6}" text-anchor="{anchor}">{escape(point["label"])}</text>'
        )
    return _head(title) + _svg(title, _PLANE, parts)


def _steps(edges: Sequence[float], shares: Sequence[float], x: Any, y: Any) -> Iterator[str]:
    """A path along the tops of the bins, from the ground to the ground."""
    yield f"M{x(edges[0])},{y(0)}"
    for start, end, share in zip(edges, edges[1:], shares, strict=False):
        yield f"L{x(start)},{y(share)} L{x(end)},{y(share)}"
    yield f"L{x(edges[-1])},{y(0)}"


def _head(title: str, note: str = "") -> str:
    told = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<h3>{escape(title)}</h3>{told}"


def _wide(title: str, inner: str) -> str:
    """What may be wider than the page: keys can scroll it, too."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(title)}">{inner}</div>'


def _names(columns: Sequence[str]) -> str:
    cells = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in columns)
    return f"<tr>{cells}</tr>"


def _number(cell: Cell) -> float | None:
    value = cell["mean"] if isinstance(cell, dict) else cell
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _shade(cell: Cell, low: float, high: float) -> str:
    """Background and ink: of black and white the one that stands out more, which on any colour is 4.58 to 1."""
    value = _number(cell)
    if value is None:
        return ""
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    back = tuple(round(a + (b - a) * share) for a, b in zip(_PALE, _DEEP, strict=True))
    ink = max(_INKS, key=lambda one: contrast(one, back))
    return f' style="background:rgb{back};color:rgb{ink}"'


def contrast(one: Sequence[int], other: Sequence[int]) -> float:
    """WCAG 2's contrast ratio of two sRGB colours, from 1 to 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: Sequence[int]) -> float:
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _cell(cell: Cell, style: str = "") -> str:
    kind = "number" if _number(cell) is not None else ""
    if cell is False or cell in _ALARMS:
        kind = "bad"
    return f'<td class="{kind}"{style}>{escape(show(cell))}</td>'


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest, with a margin."""
    low, high = min(values), max(values)
    margin = (high - low or 1.0) * 0.06
    return low - margin, high + margin


def _given(limit: float | None) -> list[float]:
    return [] if limit is None else [limit]


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" style="max-width:100%"'
    return f'<svg {size} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
