"""The evasion suite: its disguises, and its report on the demo's targets."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from evals.cli import main
from evals.disguises import DISGUISES, PADDING_CHARS, PADDINGS
from evals.report import SCHEMA

TEXT = "Where was Jane Doe born, and in which year?"


def test_every_disguise_is_another_text() -> None:
    made = [disguise(TEXT) for disguise in DISGUISES.values()]
    assert made[0] == TEXT
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("name", PADDINGS)
def test_padding_is_as_long_as_stated(name: str) -> None:
    assert len(PADDINGS[name](TEXT)) > PADDING_CHARS * 0.95


def test_padding_between_leaves_names_whole() -> None:
    padded = PADDINGS["padding between"](TEXT)
    assert "Jane Doe" in padded
    assert TEXT not in padded


def test_the_suite_finds_what_is_in_code_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    out = tmp_path / "evasion.json"
    words = ["evasion", "--demo", "--encoder", "hashing", "--n", "3", "--disguise", "base64", "--no-check"]

    ran = CliRunner().invoke(main, [*words, "--cache", str(tmp_path), "--out", str(out)])

    assert ran.exit_code == 0, ran.output
    report = json.loads(out.read_text())
    jsonschema.validate(report, SCHEMA)
    assert [row[0] for row in report["tables"][0]["rows"]] == ["plain", "base64"]
    found = {(row["phrasing"], row["split"]): row["detectors"] for row in report["rows"]}
    assert "lexical" in found["base64", "named"]
    assert found["base64", "benign"] == []


def test_it_needs_something_to_ask() -> None:
    assert CliRunner().invoke(main, ["evasion"]).exit_code == 2
