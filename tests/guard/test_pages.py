"""Pages are escaped, need nothing else, and draw what they are given."""

from __future__ import annotations

import re

from guard import pages


def interval(mean: float, width: float = 0.1) -> dict:
    return {"mean": mean, "low": mean - width, "high": mean + width}


def test_a_page_escapes_texts_and_asks_no_other_host() -> None:
    body = pages.table("<t>", ["<c>"], [["<x>", interval(0.5)], [None, False]], "<n>")
    body += pages.chart("<h>", [{"label": "<l>", "interval": interval(0.2)}], 0.1)
    points = [{"label": "<p>", "x": interval(0.2), "y": interval(0.4), "good": True}]
    body += pages.plane("<q>", ("<a>", "<b>"), points, (0.1, None))
    page = pages.page("<title>", body)
    assert not re.search(r"<(t|c|x|n|h|l|p|q|a|b)>", page.replace("<table>", ""))
    for text in "tcxnhlpqab":
        assert f"&lt;{text}&gt;" in page
    assert "http" not in page and "<script" not in page and "0.500 [0.400, 0.600]" in page


def places(svg: str, part: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(rf'<{part} c?x="([\d.]+)" c?y="([\d.]+)"', svg)]


def test_a_plane_puts_more_to_the_right_and_to_the_top_and_keeps_names_inside() -> None:
    points = [
        {"label": name, "x": interval(x), "y": interval(y), "good": False}
        for name, x, y in (("low", 0.0, 0.1), ("high", 1.0, 0.9))
    ]
    svg = pages.plane("t", ("a", "b"), points, (0.5, None))
    (low, bottom), (high, top) = places(svg, "circle")
    assert low < high and bottom > top
    assert svg.count("stroke-dasharray") == 1 and 'text-anchor="end">high' in svg
    assert 'text-anchor="start">low' in svg
    assert pages.plane("t", ("a", "b"), []) == ""


def test_a_chart_without_figures_is_left_out_and_a_terminals_columns_are_in_line() -> None:
    assert pages.chart("t", [{"label": "a", "interval": None}]) == ""
    assert pages.columns([["a", "bb"], ["ccc", "d"]]) == ["a    bb", "---  --", "ccc  d"]
