"""One report that several commands write, its gate, and its drawing."""

import json
import xml.etree.ElementTree as ET

import click
import pytest
from click.testing import CliRunner

from benchmarks.reporting import Report, Row, merged, reported
from evals.client import ClientError
from guard.metrics.bootstrap import Interval


def made(mean, width=0.01):
    return Interval(5, mean, mean - width, mean + width, mean + width)


def row(name, mean, model="demo", measure="throughput"):
    spread = {"shares": [0.05, 0.25, 0.5, 0.75, 0.95, 0.99], "first": [0.5, 0.8, 1, 1.2, 2, 3],
              "second": [0.6, 0.9, 1.1, 1.3, 2.2, 4]}  # fmt: skip
    return Row(name, {"model": model}, {f"{name}_{measure}": made(mean)}, first_tokens=spread)


def test_a_run_replaces_its_own_rows_and_leaves_the_others():
    before = merged({}, [row("unmatched", 0.9), row("half_billion_unmatched", 0.99, "half-billion")])
    old = Row("unmatched", {}, {"unmatched_renamed": made(1.0)}, {"unmatched_ms": made(3.0)})
    after = merged(merged(before, [old]), [row("unmatched", 0.8)])
    assert {name: one["mean"] for name, one in after["ratios"].items()} == {
        "half_billion_unmatched_throughput": 0.99,
        "unmatched_throughput": 0.8,
    }
    assert after["figures"] == {}  # what a row does not hold any more is gone
    assert after["rows"]["half_billion_unmatched"] == before["rows"]["half_billion_unmatched"]
    assert after["rows"]["unmatched"]["machine"]["cores"] >= 1


def test_what_was_measured_is_written_before_a_later_part_fails(tmp_path):
    path = tmp_path / "report.json"
    Report(path, None).add(row("unmatched", 0.9))
    assert json.loads(path.read_text())["ratios"]["unmatched_throughput"]["mean"] == 0.9
    assert path.with_suffix(".svg").exists() and not path.with_suffix(".part").exists()


@pytest.mark.parametrize(("mean", "passes"), [(0.9, True), (0.885, True), (0.95, True), (0.87, False)])
def test_a_worse_report_does_not_take_the_place_of_the_one_it_failed_against(tmp_path, mean, passes):
    path = tmp_path / "report.json"
    Report(path, None).add(row("unmatched", 0.9))
    again = Report(path, path)
    again.add(row("unmatched", mean))
    if passes:
        again.close()
    else:
        with pytest.raises(click.ClickException, match=r"unmatched_throughput: 0\.870, was 0\.900"):
            again.close()
    assert json.loads(path.read_text())["ratios"]["unmatched_throughput"]["mean"] == (mean if passes else 0.9)


def test_a_gate_that_compares_nothing_does_not_pass(tmp_path):
    path = tmp_path / "report.json"
    Report(path, None).add(row("unmatched", 0.9))
    other = Report(tmp_path / "other.json", path)
    other.add(row("shadow", 0.9))
    with pytest.raises(click.ClickException, match="nothing was compared"):
        other.close()


def test_what_is_no_report_is_refused_in_a_sentence(tmp_path):
    @click.command()
    @reported
    def command(report):
        raise ClientError("the server is gone")

    path = tmp_path / "report.json"
    for text in ("", "[]", '{"ratios": 1}'):
        path.write_text(text)
        done = CliRunner().invoke(command, ["--against", str(path), "--out", str(tmp_path / "out.json")])
        assert (done.exit_code, "no report" in done.output) == (1, True)
    done = CliRunner().invoke(command, ["--out", str(tmp_path / "out.json")])
    assert (done.exit_code, done.output) == (1, "Error: the server is gone\n")


def test_every_ratio_of_a_report_is_drawn(tmp_path):
    path = tmp_path / "report.json"
    report = Report(path, None)
    for one in (row("unmatched", 0.9), row("a & b", 0.5), Row("swap", {}, {"swap_gap_p99": made(1.5)})):
        report.add(one)
    drawn = ET.parse(path.with_suffix(".svg")).getroot()
    texts = [of.text for of in drawn.iter("{http://www.w3.org/2000/svg}text")]
    for wanted in ("unmatched", "a & b", "swap_gap_p99", "0.9", "0.5", "1.5", "throughput"):
        assert wanted in texts
    circles = list(drawn.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 3 + 2 * 2  # three ratios, and two sides' medians in two rows
    width = float(drawn.get("viewBox").split()[2])
    assert all(0 <= float(of.get("cx")) <= width for of in circles)
