"""The watch on what must stay answerable, on a server with a real engine."""

import time
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import PROBE, ROOT
from tests.e2e.test_metrics import ask, series

pytestmark = pytest.mark.engine

RULES = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
WORD = "birthplace"
EXPRESSION = next(rule["expr"] for rule in RULES if rule["alert"] == "LetheUtilityDrift")


def fires(http):
    """Whether the alert's expression, comparisons joined by `or`, holds of the page."""
    page = series(http)
    sides = [comparison.split(" > ") for comparison in EXPRESSION.split(" or ")]
    return any(page[left,] > page[right,] for left, right in sides)


def until(admin, wanted):
    """The first round that is as `wanted`, waited for."""
    for _ in range(240):
        last = admin.get("/status").json()["drift"]["last"]
        if last and wanted(last):
            return last
        time.sleep(0.5)
    raise AssertionError(f"no such round: {last}")


def test_an_alias_that_is_a_word_of_the_probes_raises_share_and_alert_until_it_is_gone(http, admin, running):
    if admin.get("/status").json()["drift"] is None:
        pytest.skip("this server watches no probes")
    lines = (ROOT / "demo" / "probes.jsonl").read_text(encoding="utf-8").splitlines()[::PROBE]
    times = sum(WORD in line for line in lines)
    assert times > 1
    before = until(admin, lambda last: last["matched"] == 0)
    assert before["probes"] == before["scored"] == len(lines)
    assert not fires(http)
    counted, decisions = series(http), len(admin.get("/decisions?limit=500").json()["data"])

    target = {"name": "Zorblax Quintel", "aliases": [WORD], "force": True}
    assert admin.put("/targets/too-common", json=target).status_code == 201
    try:
        hurt = until(admin, lambda last: last["targets"].get("too-common"))
        assert hurt["matched"] == hurt["targets"]["too-common"] == times
        assert hurt["matched_share"] == pytest.approx(hurt["matched"] / len(lines))
        assert fires(http) and hurt["mean_drop"] > 0.001 > abs(before["mean_drop"])
        page = series(http)
        assert page["lethe_drift_matched_share",] == pytest.approx(hurt["matched_share"])
    finally:
        admin.delete("/targets/too-common")
    after = until(admin, lambda last: last["snapshot"] > hurt["snapshot"])
    assert after["matched"] == 0 and not fires(http)

    # No client asked anything meanwhile: nothing was counted or recorded, and no probe stands in the log.
    counts = [key for key in counted if key[0] in ("lethe_requests_total", "lethe_interventions_total")]
    assert {key: series(http)[key] for key in counts} == {key: counted[key] for key in counts}
    assert len(admin.get("/decisions?limit=500").json()["data"]) == decisions
    assert WORD not in Path(running.log).read_text()
    ask(http, "Who are you?")
