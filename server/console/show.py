"""How values are shown: times, scores, text with marks in it, lists as lines, histograms as places of a drawing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

WIDTH, HEIGHT, GROUND, LEFT = 480, 150, 124, 8  # of a plot, in its own units
BINS = 20


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Plot:
    """One detector's scores: bars of texts that must not match, and of the target's own, as shares of each group,
    with the place of the threshold."""

    detector: str
    threshold: float
    at: float
    negatives: tuple[Bar, ...]
    own: tuple[Bar, ...]
    counts: Mapping[str, Sequence[int]]
    rows: Sequence[Mapping[str, Any]]
    recall: Mapping[str, Any]


def plots(calibration: Mapping[str, Any]) -> list[Plot]:
    """A plot for each detector that was calibrated on scores."""
    detectors: Mapping[str, Any] = calibration.get("detectors", {})
    return [_plot(name, of) for name, of in detectors.items() if "histogram" in of]


def _plot(name: str, of: Mapping[str, Any]) -> Plot:
    counts = of["histogram"]
    threshold = min(max(float(of["threshold"]), 0.0), 1.0)
    rows = [{"name": stratum, **measured} for stratum, measured in of["negatives"].items()]
    return Plot(
        name,
        threshold,
        _x(threshold),
        tuple(_bars(counts["negatives"], 0)),
        tuple(_bars(counts["own"], 1)),
        counts,
        rows,
        of["recall"],
    )


def _x(score: float) -> float:
    return round(LEFT + score * (WIDTH - 2 * LEFT), 1)


def _bars(counts: Sequence[int], side: int) -> Iterable[Bar]:
    """The two groups stand side by side in each bin: none hides the other, and neither needs its colour."""
    highest, wide = max(counts, default=0), (WIDTH - 2 * LEFT) / BINS
    for i, count in enumerate(counts):
        if count:
            tall = round(max(count / highest * (GROUND - 14), 1.5), 1)
            x = round(_x(i / BINS) + side * wide / 2, 1)
            yield Bar(x, round(GROUND - tall, 1), round(wide / 2 - 1, 1), tall)


def marked(text: str, spans: Iterable[tuple[int, int]]) -> list[tuple[str, bool]]:
    """The text in pieces, and whether each lies within one of the spans."""
    pieces: list[tuple[str, bool]] = []
    done = 0
    for start, end in sorted(spans):
        start, end = max(start, done), min(end, len(text))
        if start < end:
            pieces += [(text[done:start], False), (text[start:end], True)]
            done = end
    return [piece for piece in (*pieces, (text[done:], False)) if piece[0]]


def as_lines(items: Sequence[str]) -> str:
    """A list as a field of the form shows it: one on each line, or JSON where that would change one."""
    plain = all(item == item.strip() and item.splitlines() == [item] for item in items)
    if plain and not (items and items[0].startswith("[")):
        return "\n".join(items)
    return json.dumps(list(items), ensure_ascii=False, indent=1)


def from_lines(text: str) -> list[str]:
    """What `as_lines` shows.

    Raises:
        ValueError: it begins like a JSON list and is none of texts.
    """
    if not text.lstrip().startswith("["):
        return [line.strip() for line in text.splitlines() if line.strip()]
    items = read_json(text)
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError
    return items


def read_json(text: str) -> Any:
    """JSON that can be stored and given back: no NaN, no infinity, no lone surrogates.

    Raises:
        ValueError: it is anything else.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value


def moment(iso: Any) -> str:
    """A time to the second, in UTC."""
    if iso in (None, ""):
        return "-"
    if isinstance(iso, str):
        iso = datetime.fromisoformat(iso)
    elif not isinstance(iso, datetime):
        iso = datetime.fromtimestamp(iso, UTC)
    return str(iso.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"))


def local(iso: Any) -> str:
    """A time as a field of a form takes it."""
    return moment(iso).replace(" ", "T") if iso else ""


def score(value: Any) -> str:
    return "-" if value is None else f"{float(value):.3f}"


def percent(value: Any) -> str:
    return "-" if value is None else f"{float(value):.2%}"


def share(value: float) -> str:
    """How far something is."""
    return f"{value:.0%}"


def pretty(value: Any) -> str:
    """JSON for people; what is not in ASCII stands as it is."""
    return json.dumps(value, ensure_ascii=False, indent=2, default=str)


def short(value: Any) -> str:
    """The beginning of a digest or id."""
    return str(value)[:12]


FILTERS = {
    "lines": as_lines,
    "moment": moment,
    "local": local,
    "score": score,
    "percent": percent,
    "share": share,
    "pretty": pretty,
    "short": short,
}
