"""The report as one drawing: every ratio with its interval, and how the times to the first token are spread."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

PANELS = {
    "throughput": "throughput",
    "ttft_p50": "first token, p50",
    "ttft_p95": "first token, p95",
    "ttft_p99": "first token, p99",
    "tpot": "per token behind it, mean",
    "itl_p99": "gap between chunks, p99",
    "cpu_per_token": "processor per token",
    "memory": "memory",
}
_NAMES, _WIDE, _LINE, _HEAD, _ACROSS = 270, 200, 18, 34, 4
_TICKS = (1.0, 2.0, 0.5, 5.0, 0.2, 10.0, 0.1, 1.2, 0.8, 1.1, 0.9)  # the first that have room
_LEAST, _MOST, _APART = 0.05, 20.0, 26
_BETTER, _WORSE, _PLAIN = "#1b7837", "#b2182b", "#555"


def draw(report: Mapping[str, Any]) -> str:
    """The whole drawing, SVG."""
    rows = [name for name in report["rows"] if f"{name}_throughput" in report["ratios"]]
    others = [name for name in report["ratios"] if not any(name.startswith(f"{row}_") for row in rows)]
    parts: list[str] = []
    height = 10.0
    for first in range(0, len(PANELS), _ACROSS):
        chosen = list(PANELS)[first : first + _ACROSS]
        parts += _panels(report["ratios"], rows, chosen, height)
        height += _HEAD + _LINE * len(rows) + 20
    if others:
        parts += _panels({f"{name}_": report["ratios"][name] for name in others}, others, [""], height)
        height += _HEAD + _LINE * len(others) + 20
    spread = [name for name in rows if "first_tokens" in report["rows"][name]]
    parts += _spreads(report["rows"], spread, height)
    height += _HEAD + 2 * _LINE * len(spread) + 20
    width = _NAMES + _ACROSS * _WIDE + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" font-size="11" '
        'font-family="system-ui, sans-serif" role="img" aria-label="Guarded over bare, ratios with intervals">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _panels(
    ratios: Mapping[str, Any], rows: Sequence[str], measures: Sequence[str], top: float
) -> Iterator[str]:
    """A panel for each measure side by side, a line for each row."""
    if not rows:
        return
    for i, name in enumerate(rows):
        yield _text(10, top + _HEAD + i * _LINE + 4, name)
    for column, measure in enumerate(measures):
        left = _NAMES + column * _WIDE
        found = {i: ratios[key] for i, row in enumerate(rows) if (key := f"{row}_{measure}") in ratios}
        x = _axis([v for one in found.values() for v in (one["low"], one["high"])], left)
        yield from _frame(PANELS.get(measure, "other ratios"), x, left, top, _LINE * len(rows))
        for i, one in found.items():
            y = top + _HEAD + i * _LINE
            colour = _colour(one, measure == "throughput")
            yield f'<path d="M{x(one["low"]):.1f} {y}H{x(one["high"]):.1f}" stroke="{colour}" stroke-width="2"/>'
            yield f'<circle cx="{x(one["mean"]):.1f}" cy="{y}" r="3.2" fill="{colour}"/>'
            yield _text(left + _WIDE - 18, y + 4, f"{one['mean']:.3g}", "end")


def _spreads(told: Mapping[str, Any], rows: Sequence[str], top: float) -> Iterator[str]:
    """From the least to the greatest quantile that is told, with the median as a dot: the first side, below it the
    second."""
    if not rows:
        return
    found = {name: told[name]["first_tokens"] for name in rows}
    x = _axis([v for one in found.values() for v in (*one["first"], *one["second"])], _NAMES, 3 * _WIDE)
    title = "first token, 5 % to 99 %, in medians of bare vLLM (of unmatched prompts): bare grey, guarded red"
    yield from _frame(title, x, _NAMES, top, 2 * _LINE * len(rows), 3 * _WIDE)
    for i, (name, one) in enumerate(found.items()):
        yield _text(10, top + _HEAD + 2 * i * _LINE + 9, name)
        for j, (side, colour) in enumerate((("first", _PLAIN), ("second", _WORSE))):
            y = top + _HEAD + (2 * i + 0.6 * j) * _LINE
            quantiles = dict(zip(one["shares"], one[side], strict=True))
            yield f'<path d="M{x(min(one[side])):.1f} {y}H{x(max(one[side])):.1f}" stroke="{colour}"/>'
            yield (
                f'<path d="M{x(quantiles[0.25]):.1f} {y}H{x(quantiles[0.75]):.1f}" stroke="{colour}" '
                'stroke-width="5"/>'
            )
            yield f'<circle cx="{x(quantiles[0.5]):.1f}" cy="{y}" r="3.2" fill="#fff" stroke="{colour}"/>'


def _axis(values: Sequence[float], left: float, wide: float = _WIDE) -> Any:
    """From a ratio to where it lies; ratios lie on a scale of powers, so that a half is as far from one as two."""
    shown = [_log(value) for value in values]
    low, high = min([*shown, _log(0.9)]), max([*shown, _log(1.1)])

    def x(value: float) -> float:
        return left + (_log(value) - low) / (high - low) * (wide - 60)

    return x


def _log(value: float) -> float:
    """What lies further out is drawn at the edge; its number says how far."""
    return math.log(min(max(value, _LEAST), _MOST))


def _frame(title: str, x: Any, left: float, top: float, high: float, wide: float = _WIDE) -> Iterator[str]:
    yield _text(left, top + 8, title, weight="bold")
    drawn: list[float] = []
    for tick in _TICKS:
        if left <= x(tick) <= left + wide - 60 and all(abs(x(tick) - one) >= _APART for one in drawn):
            drawn.append(x(tick))
            colour = "#888" if tick == 1 else "#ddd"
            yield f'<path d="M{x(tick):.1f} {top + _HEAD - 8}v{high}" stroke="{colour}"/>'
            yield _text(x(tick), top + _HEAD - 12, f"{tick:g}", "middle", colour="#666")


def _colour(one: Mapping[str, float], more_is_better: bool) -> str:
    if one["low"] <= 1 <= one["high"]:
        return _PLAIN
    return _BETTER if (one["mean"] > 1) == more_is_better else _WORSE


def _text(
    x: float, y: float, text: str, anchor: str = "start", weight: str = "normal", colour: str = "#222"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{colour}">'
        f"{escape(text)}</text>"
    )
