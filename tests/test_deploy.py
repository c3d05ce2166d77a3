"""What `deploy/` asks of a server exists in it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from server.metrics import TABLE

ROOT = Path(__file__).parents[1]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
DASHBOARD = ROOT / "deploy" / "grafana" / "lethe.json"
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
BOARD = json.loads(DASHBOARD.read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [rule["expr"] for rule in RULES] + [t["expr"] for p in PANELS for t in p["targets"]]

METRICS = {metric.name: metric for metric in TABLE}
PARTS = {m.name + part: m for m in TABLE if m.kind == "histogram" for part in ("_bucket", "_sum", "_count")}
SERIES = {name: m for name, m in METRICS.items() if m.kind != "histogram"} | PARTS
THEIRS = {"up", "vllm:generation_tokens_total"}
ALWAYS = {"instance", "job", "le"}

TOKEN = re.compile(
    r"""\s+ | (?P<series>up|(?:lethe_|vllm:)\w+) (?P<selector>\{[^}]*\})? | "[^"]*"
      | \[(?:\d+[smhd]|\$__rate_interval)\] | (?P<by>by\s*\([^)]*\)) | (?P<call>[a-z_]+)(?=\s*\() | sum|max
      | \d+(?:\.\d+)? | (?P<open>\() | (?P<close>\)) | (?P<between>or|[<>=!]=|[<>+*/,-])""",
    re.X,
)
FUNCTIONS = {"rate", "increase", "delta", "histogram_quantile", "time", "sum", "max", "count"}


def read(expression):
    """The matches of an expression's tokens; what is none of PromQL's that we use fails."""
    at, depth, found = 0, 0, []
    while at < len(expression):
        token = TOKEN.match(expression, at)
        assert token, f"{expression[at:]!r} in {expression!r}"
        depth += bool(token["open"]) - bool(token["close"])
        assert depth >= 0, expression
        at = token.end()
        if token[0].isspace():
            continue
        last = found[-1] if found else TOKEN.match("(")
        assert not (token["between"] and (last["between"] or last["open"])), expression
        assert not (token["series"] and last["series"]), expression
        assert token["call"] is None or token["call"] in FUNCTIONS, token["call"]
        found.append(token)
    assert depth == 0 and not found[-1]["between"], expression
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_series_label_and_value_is_one_that_the_server_has(expression):
    tokens = read(expression)
    named = [token for token in tokens if token["series"]]
    assert named
    grouped = {name for t in tokens if t["by"] for name in re.findall(r"\w+", t["by"].partition("(")[2])}
    for token in named:
        if token["series"] not in SERIES:
            assert token["series"] in THEIRS
            continue
        metric = SERIES[token["series"]]
        assert grouped <= {*metric.labels, *ALWAYS}
        for label, values in re.findall(r'(\w+)\s*=~?\s*"([^"]*)"', token["selector"] or ""):
            if label not in ALWAYS:
                assert set(values.split("|")) <= set(metric.labels[label])


@pytest.mark.parametrize(
    "broken",
    [
        "rate(lethe_ready[5m]",
        "lethe_ready)",
        "irate(lethe_ready[5m])",
        "lethe_ready > few",
        "lethe_ready[5x]",
    ],
)
def test_a_broken_expression_is_noticed(broken):
    with pytest.raises(AssertionError):
        read(broken)


def test_counters_are_asked_for_their_increase_and_nothing_else_is():
    for expression in EXPRESSIONS:
        for wrapped, name in re.findall(r"(?:\b(rate|increase)\()?\b(lethe_\w+)", expression):
            assert bool(wrapped) == (SERIES[name].kind != "gauge"), expression


@pytest.mark.parametrize("state", ["failed", "expired"])
def test_a_target_that_is_not_enforced_any_more_pages_somebody(state):
    (rule,) = [
        rule for rule in RULES if f'state="{state}"' in rule["expr"] and "lethe_targets" in rule["expr"]
    ]
    assert rule["labels"]["severity"] == "page" and rule["expr"].endswith("> 0")


def test_every_metric_is_on_the_dashboard():
    shown = {
        SERIES[t["series"]].name for e in EXPRESSIONS for t in read(e) if (t["series"] or "")[:5] == "lethe"
    }
    assert shown == METRICS.keys()


def test_the_dashboards_panels_have_numbers_of_their_own_and_do_not_overlap():
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken = set()
    for at in (panel["gridPos"] for panel in BOARD["panels"]):
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24
        taken |= cells


def test_the_dashboard_names_no_data_source_and_no_server_of_ours():
    variables = {variable["name"] for variable in BOARD["templating"]["list"]}
    assert variables == {"datasource", "instance"}
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            series = [t for t in read(target["expr"]) if t["series"]]
            assert all('instance=~"$instance"' in t["selector"] for t in series)


def test_alerts_say_how_urgent_they_are_and_what_is_wrong():
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description"}
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            by = re.search(r"by \(([^)]*)\)", rule["expr"])
            series = next(t["series"] for t in read(rule["expr"]) if t["series"])
            assert label in (re.findall(r"\w+", by[1]) if by else [*SERIES[series].labels, *ALWAYS])


@pytest.mark.parametrize(
    "metric",
    [
        "lethe_bypasses_total",
        "lethe_targets",
        "lethe_decisions_dropped_total",
        "lethe_ready",
        "lethe_jobs",
        "lethe_snapshot_version",
        "lethe_drift_matched_share",
        "lethe_drift_mean_drop",
    ],
)
def test_what_must_wake_somebody_does(metric):
    assert any(metric in rule["expr"] for rule in RULES)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on the PATH")
def test_prometheus_takes_the_alerts():
    done = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_documentation_has_every_alert():
    text = (ROOT / "docs" / "operations.md").read_text()
    told = set(re.findall(r"^\| `(Lethe\w+)` \|", text, re.M))
    assert told == {rule["alert"] for rule in RULES}


def test_the_documentation_has_every_metric_with_its_type_and_labels():
    section = (ROOT / "docs" / "operations.md").read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(lethe_\w+)` \| (\w+) \|([^|]*)\|([^|]+)\|$", section, re.M)
    told = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows}
    assert len(rows) == len(told)
    assert told == {name: (m.kind, tuple(m.labels)) for name, m in METRICS.items()}
