"""A sheet of names from the shell and over HTTP."""

from __future__ import annotations

import json
from datetime import date

import openpyxl
import pytest

from tests.guard.register_fakes import COMMON, matched
from tests.server.admin_app import admin
from tests.server.test_cli import lethe

CSV = {"Content-Type": "text/csv; charset=utf-8"}


@pytest.fixture
def api(tmp_path):
    with admin(tmp_path) as running:
        yield running


@pytest.fixture
def book(tmp_path):
    def make(*rows):
        made = openpyxl.Workbook()
        for row in rows:
            made.active.append(row)
        path = tmp_path / "names.xlsx"
        made.save(path)
        return path

    return make


def test_a_sheet_is_sent_again_without_making_others(api):
    sheet = f"name;aliases;tags\nJane Doe;JD;legal\n{COMMON};;\nBob Ray;;\nBob Ray;;\n".encode("utf-8-sig")
    for created, updated in ((2, 0), (0, 2)):
        report = api.http.post("/targets/import", content=sheet, headers=CSV).json()
        assert (report["created"], report["updated"]) == (created, updated)
        assert [line["line"] for line in report["rejected"]] == [3, 5]
    assert api.http.get("/targets/jane-doe").json()["aliases"] == ["JD"]


@pytest.mark.parametrize("kind", ["text/csv", "application/jsonl"])
def test_a_dry_run_tells_and_stores_nothing(api, kind):
    lines = "name\nJane Doe\nthe\n" if kind == "text/csv" else '{"name": "Jane Doe"}\n{"name": "the"}\n'
    before = api.store.snapshot
    report = api.http.post(
        "/targets/import", content=lines, params={"dry_run": "true"}, headers={"Content-Type": kind}
    ).json()
    assert (report["created"], len(report["rejected"])) == (1, 1)
    assert (api.store.snapshot, matched(api.register, "Jane Doe")) == (before, set())
    assert api.http.get("/audit").json()["data"] == []


def test_a_file_that_is_no_sheet_is_400(api):
    response = api.http.post("/targets/import", content=b"alias\nx\n", headers=CSV)
    assert response.status_code == 400 and "'aliases'" in response.json()["error"]["message"]


def test_a_workbook_is_read_by_the_command(api, book):
    path = book(
        ["Name", "Aliases", "Expires at", "Description"],
        ["Jane Doe", "J. Doe; Janie", date(2040, 1, 31), "born\nin Vintry"],
        [1984, None, None, None],
        [],
        ["=A2&A3", None, None, None],
        ["Bob Ray", None, None, "=1/0"],
    )
    dry = lethe("targets", "import", str(path), "--dry-run", api=api)
    assert dry.exit_code == 1 and "2 created, 0 updated, 2 rejected" in dry.output
    assert "line 5: name holds a formula" in dry.stderr and "line 6: description" in dry.stderr
    assert matched(api.register, "Jane Doe") == set()
    assert lethe("targets", "import", str(path), api=api).exit_code == 1
    view = json.loads(lethe("targets", "show", "jane-doe", api=api).output)
    assert (view["aliases"], view["description"]) == (["J. Doe", "Janie"], "born in Vintry")
    assert view["expires_at"].startswith("2040-01-31T00:00:00")
    assert json.loads(lethe("targets", "show", "1984", api=api).output)["name"] == "1984"


def test_a_csv_file_and_standard_input_work_alike(api, tmp_path):
    path = tmp_path / "names.CSV"
    path.write_text("name,tags\nJane Doe,legal\n")
    assert lethe("targets", "import", str(path), api=api).exit_code == 0
    assert json.loads(lethe("targets", "show", "jane-doe", api=api).output)["tags"] == ["legal"]
    piped = lethe("targets", "import", "-", api=api, input='{"name": "Bob Ray"}\n')
    assert piped.exit_code == 0 and matched(api.register, "Bob Ray") == {"bob-ray"}


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken"])
def test_a_broken_workbook_is_one_sentence(api, tmp_path, content):
    path = tmp_path / "names.xlsx"
    path.write_bytes(content)
    result = lethe("targets", "import", str(path), api=api)
    assert result.exit_code == 1 and "save the sheet as 'CSV UTF-8'" in result.stderr
    assert "Traceback" not in result.stderr
    missing = lethe("targets", "import", str(tmp_path / "none.xlsx"), api=api)
    assert missing.exit_code == 1 and "cannot be read" in missing.stderr
