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


def shades(html: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    found = re.findall(r"background:rgb\((.*?)\);color:rgb\((.*?)\)", html)
    return [tuple(tuple(map(int, colour.split(","))) for colour in pair) for pair in found]


def test_a_matrix_writes_its_figures_and_each_is_readable_on_its_shade() -> None:
    cells = [[i / 50, {"mean": i / 50, "low": 0.0, "high": 1.0}, None, "not measured"] for i in range(51)]
    html = pages.matrix("t", [f"row {i}" for i in range(51)], ["a", "b", "c", "d"], cells, "note")
    assert "0.240</td>" in html and "0.240 [0.000, 1.000]</td>" in html and ">not measured</td>" in html
    pairs = shades(html)
    assert len(pairs) == 2 * 51, "gaps and texts have no shade"
    assert min(pages.contrast(ink, back) for back, ink in pairs) >= 4.5
    backs = [pages.contrast(back, (255, 255, 255)) for back, _ in pairs[::2]]
    assert backs == sorted(backs) and backs[-1] > 8 * backs[0], "more is deeper"
    assert "from 0 (pale) to 1 (deep)" in html and 'tabindex="0"' in html


def test_contrast_is_that_of_the_standard() -> None:
    assert round(pages.contrast((255, 255, 255), (0, 0, 0)), 3) == 21
    assert round(pages.contrast((255, 255, 255), (119, 119, 119)), 2) == 4.48  # known to fail by a hair


def test_the_shades_of_a_matrix_go_as_far_as_its_figures() -> None:
    assert pages.scale([[0.2, None], ["x", 0.4]]) == (0.0, 1.0)
    assert pages.scale([[-2.0, {"mean": 3.0}]]) == (-2.0, 3.0)
    assert pages.scale([[7, 7]]) == (7, 8) and pages.scale([]) == (0.0, 1.0)


def test_colours_of_texts_are_readable_in_light_and_in_dark() -> None:
    style = pages.page("t", "").split("</style>")[0]
    for back, part in (((255, 255, 255), style.split("@media")[0]), ((18, 18, 18), style.split("@media")[1])):
        found = re.findall(r"--(good|bad|mark|other): #(\w{6})", part)
        assert len(found) == 4
        for name, colour in found:
            ink = tuple(bytes.fromhex(colour))
            assert pages.contrast(ink, back) >= 4.5, name


def test_a_histogram_tells_groups_apart_without_colour() -> None:
    groups = [{"label": f"<{n}>", "counts": [n, 10 - n], "n": 10} for n in (2, 5)]
    svg = pages.histogram("t", [0.0, 0.5, 1.0], [*groups, {"label": "none", "counts": [0, 0], "n": 0}])
    paths = re.findall(r'<path d="([^"]*)".*?stroke-dasharray="([^"]*)"', svg)
    assert len(paths) == 2 and len({dashes for _, dashes in paths}) == 2
    tops = [re.findall(r"L[\d.]+,([\d.]+)", path) for path, _ in paths]
    assert float(tops[0][2]) < float(tops[0][0]) and tops[1][0] == tops[1][2], "shares, upwards"
    assert "&lt;2&gt;, n = 10" in svg and "none" not in re.sub('"none"', "", svg)
    assert pages.histogram("t", [0.0, 1.0], [{"label": "a", "counts": [0], "n": 0}]) == ""


def test_points_of_a_plane_are_hollow_where_they_are_not_good() -> None:
    def fills(good: bool | None) -> str:
        point = {"label": "a", "x": interval(0.1), "y": interval(0.1), "good": good}
        (fill,) = re.findall(r'<circle [^>]*fill="([^"]*)"', pages.plane("t", ("a", "b"), [point]))
        return fill

    assert fills(False) == "none" and "none" not in (fills(True), fills(None))


def test_a_chart_without_figures_is_left_out_and_a_terminals_columns_are_in_line() -> None:
    assert pages.chart("t", [{"label": "a", "interval": None}]) == ""
    assert pages.columns([["a", "bb"], ["ccc", "d"]]) == ["a    bb", "---  --", "ccc  d"]
