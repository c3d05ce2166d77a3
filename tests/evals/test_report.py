"""Reports: schema, secrets, tables, comparison, page, and the item file."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from evals.cli import main
from evals.html import page
from evals.items import ItemError, load_items, names_in
from evals.limits import Limit, figures_of, find
from evals.published.base import Measured
from evals.report import SCHEMA, Report, as_cell, as_text, command_line, read, write_json
from evals.suites.compare import compare, compare_all
from guard.metrics.bootstrap import mean_interval


def make(scores: dict[str, float], suite: str = "targets") -> dict:
    report = Report(suite, seed=1, n=len(scores))
    interval = as_cell(mean_interval(list(scores.values())))
    report.table("Table <1>", ["name", "figure"], [["a", interval], ["b", None]], "a note")
    report.chart("Chart", [{"label": "a", "interval": interval}], 0.05)
    report.criterion("mean", 0.2, 0.5, True)
    report.rows = [{"id": i, "split": "forget", "scores": {"rouge": s}} for i, s in scores.items()]
    return report.as_dict()


def test_a_report_fits_its_schema_and_survives_the_disk(tmp_path: Path):
    data = make({"a": 0.1, "b": 0.3})
    jsonschema.validate(data, SCHEMA)
    path = tmp_path / "deep" / "report.json"
    write_json(path, data)
    assert json.loads(path.read_text()) == data
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data | {"surplus": 1}, SCHEMA)


def test_keys_are_not_written():
    words = ["evals", "swap", "--admin-key", "secret", "--key=secret", "--base-url", "http://a"]
    shown = command_line(words)
    assert "secret" not in " ".join(shown)
    assert shown[-2:] == ["--base-url", "http://a"]


def test_tables_as_text_and_as_a_page():
    data = make({"a": 0.1, "b": 0.3})
    text = as_text(data)
    assert "0.200 [0.100, 0.300]" in text
    assert "pass: mean = 0.200 (limit 0.500)" in text
    html = page([data])
    assert all(part in html for part in ("Table &lt;1&gt;", "<svg"))
    assert not any(part in html for part in ("http://", "https://", "<script"))


def drawn() -> dict:
    interval = {"n": 3, "mean": 0.25, "low": 0.1, "high": 0.4}
    report = Report("attacks")
    report.plane("<plane>", ("<x>", "<y>"), [{"label": "<m>", "x": interval, "y": interval}], (0.1, None))
    report.matrix("<matrix>", ["<few shot>", "b"], ["<off>", "on"], [[interval, 1.0], [None, "<why>"]], "<n>")
    report.histogram("<scores>", {"<forget>": [0.0, 0.1, 1.0, float("nan")], "retain": [0.5]}, bins=4)
    report.examples("<worst>", ["<question>", "score"], [["<script>alert(1)</script>", 0.9]])
    report.rows = [{"id": "a", "scores": {}}]
    return report.as_dict()


def test_every_drawing_fits_the_schema_and_is_drawn_escaped(tmp_path: Path):
    data = drawn()
    write_json(tmp_path / "r.json", data)
    (again,) = read(tmp_path / "r.json")
    assert again == data
    html = page([again])
    for text in ("plane", "x", "y", "m", "matrix", "few shot", "off", "why", "scores", "forget", "worst"):
        assert f"&lt;{text}" in html, text
    assert not any(part in html for part in ("http://", "https://", "<script", "<why", "<m>"))
    assert "0.250 [0.100, 0.400]</td>" in html and html.count("<details>") == 2


@pytest.mark.parametrize("kind", ["plane", "matrix", "histogram", "examples"])
def test_a_drawing_with_a_part_too_many_or_too_few_is_refused(tmp_path: Path, kind: str):
    data = drawn()
    (one,) = (d for d in data["drawings"] if d["kind"] == kind)
    last = list(one)[-1]
    for wrong in ({**one, "surplus": 1}, {k: v for k, v in one.items() if k != last}, {**one, "kind": "pie"}):
        write_json(tmp_path / "r.json", data | {"drawings": [wrong]})
        with pytest.raises(ItemError, match=r"r\.json is no report"):
            read(tmp_path / "r.json")


def test_a_matrix_is_printed_as_a_table_and_must_be_whole():
    text = as_text(drawn())
    assert "<few shot>  0.250 [0.100, 0.400]  1.000" in text
    with pytest.raises(ValueError, match="2 cells"):
        Report("a").matrix("m", ["a"], ["b", "c"], [[1.0]])


def test_histograms_share_bins_and_tell_what_is_not_finite():
    (one,) = (d for d in drawn()["drawings"] if d["kind"] == "histogram")
    assert one["edges"] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert one["groups"] == [
        {"label": "<forget> (1 more not finite)", "counts": [2, 0, 0, 1], "n": 3},
        {"label": "retain", "counts": [0, 0, 1, 0], "n": 1},
    ]


def test_examples_leave_with_the_rows():
    report = Report("a")
    report.examples("worst", ["question"], [["q"]])
    report.plane("p", ("x", "y"), [])
    report.rows = [{"id": "a"}]
    report.without_items()
    assert not report.rows and [d["kind"] for d in report.drawings] == ["plane"]


def test_reports_of_the_first_version_are_read_and_unknown_ones_refused(tmp_path: Path):
    data = make({"a": 0.1})
    (chart,) = data.pop("drawings")
    old = data | {"schema": 1, "charts": [{k: v for k, v in chart.items() if k != "kind"}]}
    write_json(tmp_path / "old.json", {"reports": [old]})
    assert read(tmp_path / "old.json")[0]["drawings"] == [chart]
    result = CliRunner().invoke(main, ["html", str(tmp_path / "old.json"), str(tmp_path / "old.html")])
    assert result.exit_code == 0 and "<svg" in (tmp_path / "old.html").read_text()
    for wrong in (data | {"schema": 9}, [1], {"a": 1}):
        (tmp_path / "new.json").write_text(json.dumps(wrong))
        result = CliRunner().invoke(main, ["html", str(tmp_path / "new.json"), str(tmp_path / "new.html")])
        assert result.exit_code == 1 and "new.json is no report" in result.output


def test_compare_pairs_rows_by_id():
    report = compare(make({"a": 0.0, "b": 0.2, "c": 0.9}), make({"b": 0.3, "a": 0.1, "d": 0.0}))
    assert report.n == 2
    line = dict(zip(report.tables[0]["columns"], report.tables[0]["rows"][0], strict=True))
    assert line["rows"] == "forget"
    assert line["second - first"]["mean"] == pytest.approx(0.1)
    assert (report.results["only_in_first"], report.results["only_in_second"]) == (1, 1)


def test_compare_refuses_what_it_cannot_pair(tmp_path: Path):
    with pytest.raises(ItemError, match="different suites"):
        compare(make({"a": 0.0}), make({"a": 0.0}, "swap"))
    with pytest.raises(ItemError, match="in common"):
        compare(make({"a": 0.0}), make({"b": 0.0}))
    for name, report in (("a", make({"a": 0.0})), ("b", make({"b": 0.0}))):
        write_json(tmp_path / f"{name}.json", report)
    result = CliRunner().invoke(main, ["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert result.exit_code == 1
    assert "in common" in result.output


def test_compare_takes_rows_of_published_benchmarks_and_leaves_out_what_is_no_number():
    def published(shift: float) -> dict:
        found = Measured()
        for i in range(4):
            scores = {"recall": i / 10 + shift, "probability": None, "per token": [1.0], "nan": float("nan")}
            found.add(f"forget.{i}", "forget", scores)
        found.add("retain.0", "retain", {})
        report = Report("tofu")
        report.rows = found.rows
        return report.as_dict()

    report = compare(published(0.0), published(0.25))
    assert [line[:3] for line in report.tables[0]["rows"]] == [["forget", "recall", 4]]
    assert report.results["differences"]["forget"]["recall"]["mean"] == pytest.approx(0.25)


def test_compare_refuses_two_rows_of_one_id():
    data = make({"a": 0.0})
    with pytest.raises(ItemError, match="two rows with the id 'a'"):
        compare(data | {"rows": data["rows"] * 2}, data)


def test_files_of_several_reports_are_compared_suite_by_suite():
    first = [make({"a": 0.0}), make({"a": 0.5}, "tofu"), make({"a": 0.0}, "swap")]
    second = [make({"a": 0.9}, "tofu"), make({"a": 0.1}), make({"b": 0.0}, "swap")]
    report = compare_all(first, second)
    found = {suite: one["forget"]["rouge"]["mean"] for suite, one in report.results["differences"].items()}
    assert found == {"targets": pytest.approx(0.1), "tofu": pytest.approx(0.4)} and report.n == 2
    assert list(report.results["not_compared"]) == ["swap"]
    with pytest.raises(ItemError, match="no two reports"):
        compare_all(first, second[2:] * 2)


def test_rows_about_one_entity_are_resampled_as_one():
    def about(entities: str, shift: float) -> dict:
        report = Report("targets")
        scores = [float(i // 10) * shift for i in range(20)]
        report.rows = [
            {"id": str(i), "split": "forget", "entity": entities[i], "scores": {"rouge": score}}
            for i, score in enumerate(scores)
        ]
        return report.as_dict()

    def width(found: dict) -> float:
        return found["high"] - found["low"]

    alone, together = "abcdefghijklmnopqrst", "a" * 10 + "b" * 10
    for figure in (
        lambda who: compare(about(who, 0.0), about(who, 1.0)).results["differences"]["forget"]["rouge"],
        lambda who: find(figures_of([about(who, 1.0)]), "forget.rouge"),
    ):
        assert figure(alone)["mean"] == figure(together)["mean"] == 0.5
        assert width(figure(alone)) < 0.5 < width(figure(together)) == 1.0


# --- limits


@pytest.mark.parametrize(
    ("limit", "figure", "holds"),
    [
        ("a<=0.1", 0.1, True),
        ("a<=0.1", 0.11, False),
        ("a>=-1e-1", -0.1, True),
        ("a >= +0.2", 0.1, False),
        ("a<=0.1", {"low": 0.0, "high": 0.1}, True),
        ("a<=0.1", {"low": 0.11, "high": 0.2}, False),
        ("a<=0.1", {"low": 0.05, "high": 0.2}, None),
        ("a>=0.1", {"low": 0.1, "high": 0.2}, True),
        ("a>=0.1", {"low": 0.0, "high": 0.05}, False),
        ("a>=0.1", {"low": 0.0, "high": 0.2}, None),
    ],
)
def test_limits_hold_are_broken_or_cannot_be_told(limit: str, figure: float | dict, holds: bool | None):
    assert Limit.parse(limit).holds(figure) is holds


@pytest.mark.parametrize("text", ["a", "a<0.1", "<=1", "a<=x", "a<=", "a<=1 and more", "a==1"])
def test_what_is_no_limit_is_refused(text: str):
    with pytest.raises(ItemError, match="is no limit"):
        Limit.parse(text)


def test_figures_are_named_by_result_table_and_rows():
    report = Report("tofu", n=3)
    report.results = {
        "geometric": {"model.utility": {"mean": 0.5, "low": 0.4, "high": 0.6}, "p": "not measured: x"}
    }
    report.table("Sets", ["set", "metric", "value", "twice", "twice"], [["forget", "rouge", 0.25, 1, 2]])
    report.matrix("Attacks", ["few.shot"], ["off", "on"], [["not measured", 0.75]])
    report.rows = [{"id": str(i), "split": "forget", "scores": {"a.b": i}} for i in (0, 1)]
    figures = figures_of([report.as_dict()])
    assert find(figures, "results.geometric.model.utility")["high"] == 0.6
    assert find(figures, "results.geometric.model.utility.low") == 0.4
    assert find(figures, "Sets.forget, rouge.value") == 0.25
    assert find(figures, "Attacks.few.shot.on") == 0.75
    with pytest.raises(ItemError, match="is no figure but 'not measured'"):
        find(figures, "Attacks.few.shot.off")
    assert find(figures, "forget.a.b")["mean"] == 0.5 and find(figures, "forget.a.b.n") == 2
    assert find(figures_of([report.as_dict(), make({"a": 1.0})]), "tofu.n") == 3
    for name, said in (
        ("Sets.forget, rouge.twice", "no figure is named"),
        ("results.geometric.p", "is no figure but 'not measured: x'"),
        ("results.geometric", "is no figure"),
        ("forget.ab", r"is it 'forget\.a\.b'\?"),
    ):
        with pytest.raises(ItemError, match=said):
            find(figures, name)


def compared(tmp_path: Path, *words: str, shift: float = 0.1) -> tuple[int, str]:
    """Exit code and output of comparing six rows with the same ones that score `shift` more, give or take."""
    scores = {name: i / 10 for i, name in enumerate("abcdef")}
    noise = dict(zip(scores, (-0.05, 0.05) * 3, strict=True))
    write_json(tmp_path / "a.json", make(scores))
    write_json(
        tmp_path / "b.json", make({name: value + shift + noise[name] for name, value in scores.items()})
    )
    files = [str(tmp_path / f"{name}.json") for name in "ab"]
    result = CliRunner().invoke(main, ["compare", *files, "--out", str(tmp_path / "c.json"), *words])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("limit", "code", "mark"),
    [
        ("forget.rouge<=0.02", 1, "FAIL"),  # worse for certain
        ("forget.rouge<=0.1", 0, "not judged"),  # the interval lies on both sides
        ("forget.rouge<=0.3", 0, "pass"),
        ("forget.rouge>=-0.02", 0, "pass"),  # where more is better
        ("forget.rouge>=0.2", 1, "FAIL"),
        ("forget.rouge.mean<=0.09", 1, "FAIL"),
    ],
)
def test_compare_ends_with_1_where_the_second_is_worse_for_certain(
    tmp_path: Path, limit: str, code: int, mark: str
):
    found, output = compared(tmp_path, "--limit", limit)
    assert (found, f"{mark}: {limit.split('<')[0].split('>')[0]} = " in output) == (code, True), output
    report = json.loads((tmp_path / "c.json").read_text())
    assert report["passed"] is {"FAIL": False, "pass": True, "not judged": None}[mark]


def test_strict_limits_fail_where_it_cannot_be_told(tmp_path: Path):
    assert compared(tmp_path, "--limit", "forget.rouge<=0.1", "--strict")[0] == 1
    assert compared(tmp_path, "--limit", "forget.rouge<=0.3", "--strict")[0] == 0


def test_a_limit_on_nothing_is_a_failure_and_a_broken_one_wrong_usage(tmp_path: Path):
    code, output = compared(tmp_path, "--limit", "forget.ruoge<=0.1")
    assert code == 1 and "is it 'forget.rouge'?" in output
    assert compared(tmp_path, "--limit", "forget.rouge")[0] == 2


def checked(tmp_path: Path, report: dict, *words: str) -> tuple[int, str]:
    write_json(tmp_path / "r.json", report)
    result = CliRunner().invoke(main, ["check", str(tmp_path / "r.json"), *words])
    return result.exit_code, result.output


def test_check_judges_a_report_by_its_own_criteria_and_by_limits(tmp_path: Path):
    data = make({"a": 0.1, "b": 0.3})
    assert checked(tmp_path, data)[0] == 0
    assert checked(tmp_path, data, "--limit", "forget.rouge<=0.3")[0] == 0
    assert checked(tmp_path, data, "--limit", "forget.rouge<=0.3", "--limit", "n<=1")[0] == 1
    code, output = checked(tmp_path, data, "--limit", "Table <1>.a.figure<=0.05")
    assert code == 1 and "pass: mean" in output and "FAIL: Table <1>.a.figure = 0.200" in output
    assert checked(tmp_path, data, "--limit", "Table <1>.b.figure<=0.05")[0] == 1, "a gap meets no limit"
    failed = data | {"criteria": [{"name": "own", "value": 1, "limit": 0, "passed": False}]}
    assert checked(tmp_path, failed)[0] == 1
    assert "no criteria" in checked(tmp_path, data | {"criteria": []})[1]
    assert checked(tmp_path, {"schema": 3})[0] == 1


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["targets"],
        ["isolation"],
        ["parity"],
        ["swap"],
        ["demo"],
        ["judges"],
        ["compare"],
        ["check"],
        ["html"],
    ],
)
def test_every_command_has_help_with_an_example(command: list[str]):
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    assert "Example:" in result.output


def test_wrong_usage_is_2():
    assert CliRunner().invoke(main, ["targets"]).exit_code == 2
    assert CliRunner().invoke(main, ["no-such-suite"]).exit_code == 2


ROW = {
    "id": "a", "entity": "ada-byl", "split": "forget", "phrasing": "trained", "answer": "x", "value": "x",
    "turns": [{"role": "user", "content": "q"}],
}  # fmt: skip


def test_items_are_read(tmp_path: Path):
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(json.dumps(ROW | {"id": i}) for i in "ab") + "\n\n")
    items = load_items(path)
    assert [item.id for item in items] == ["a", "b"]
    assert items[0].messages == ROW["turns"]
    assert names_in(items) == ["ada-byl"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no items"),
        ([ROW, ROW], "stands twice"),
        ([ROW | {"split": "odd"}], "split 'odd'"),
        ([ROW | {"turns": []}], "last turn"),
        ([{"id": "a"}], "missing"),
        (["text"], "wrong type"),
    ],
)
def test_broken_items_are_named(tmp_path: Path, rows: list, said: str):
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ItemError, match=said):
        load_items(path)


DEAD = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    "command",
    [
        ["targets", "--base-url", DEAD],
        ["isolation", "--guarded-url", DEAD, "--bare-url", DEAD],
        ["parity", "--guarded-url", DEAD, "--bare-url", DEAD],
        ["swap", "--base-url", DEAD],
    ],
)
def test_a_dead_server_is_one_sentence_and_1(tmp_path: Path, command: list[str]):
    path = tmp_path / "items.jsonl"
    rows = [
        ROW | {"id": str(i), "split": split}
        for i, split in enumerate(["forget", "retain", "chat", "unknown"])
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    result = CliRunner().invoke(main, [*command, "--items", str(path), "--out", str(tmp_path / "r.json")])
    assert result.exit_code == 1, result.output
    assert "does not answer" in result.output
    assert not (tmp_path / "r.json").exists()


def test_a_report_as_a_page_from_the_command_line(tmp_path: Path):
    write_json(tmp_path / "a.json", make({"a": 0.0}))
    result = CliRunner().invoke(main, ["html", str(tmp_path / "a.json"), str(tmp_path / "a.html")])
    assert result.exit_code == 0
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
