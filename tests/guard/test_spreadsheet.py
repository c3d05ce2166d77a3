"""Rows of a spreadsheet: read as they are meant, or refused with their line."""

from __future__ import annotations

import pytest

from guard.errors import BadRequest
from guard.spreadsheet import csv_rows


def read(text, encoding="utf-8"):
    return list(csv_rows(text.encode(encoding) if isinstance(text, str) else text))


def fields(text, **options):
    return [row.fields for row in read(text, **options)]


def refused(text):
    return [(row.number, row.error.message) for row in read(text) if row.error]


def test_cells_become_fields_and_lists():
    text = "Name,Aliases,Expires at,Tags,Reference\nJane Doe,J. Doe; Janie ;,2030-01-31,legal,T-1\nBob,,,,\n"
    assert fields(text) == [
        {
            "name": "Jane Doe",
            "aliases": ["J. Doe", "Janie"],
            "expires_at": "2030-01-31",
            "tags": ["legal"],
            "reference": "T-1",
        },
        {"name": "Bob", "aliases": [], "tags": []},
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_programs_write_is_read(encoding, delimiter, end):
    text = end.join([delimiter.join(["name", "aliases"]), delimiter.join(["Zoë Łuk", '"Z;L"']), ""])
    assert fields(text, encoding=encoding) == [{"name": "Zoë Łuk", "aliases": ["Z", "L"]}]


def test_rows_are_numbered_as_lines_and_empty_ones_left_out():
    text = 'name,description\n\n"Jane","two\nlines"\n , \nBob,=1+1\n'
    assert [(row.number, row.fields.get("name"), row.error is None) for row in read(text)] == [
        (3, "Jane", True),
        (6, None, False),
    ]


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("=A1", "name holds a formula"),
        (" =HYPERLINK(1)", "name holds a formula"),
        ("#REF!", "name holds the error #REF!"),
        ("#NAME?", "name holds the error #NAME?"),
        ("Jane,x", "more cells than there are columns"),
        ('"Jane', "quotes of this line do not match"),
    ],
)
def test_a_row_that_cannot_be_taken_is_refused_with_its_line(cell, why):
    ((number, message),) = refused(f"name\nBob\n{cell}\n")
    assert number == 3 and why in message and message.endswith(".")


def test_names_may_look_odd():
    assert [row["name"] for row in fields("name\n@handle\n+1 555\n-ism\n1984\n")] == [
        "@handle",
        "+1 555",
        "-ism",
        "1984",
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "must name the columns"),
        (b"alias\nx\n", "no column 'alias'; the nearest is 'aliases'"),
        (b"name,name\nx,y\n", "stands there twice"),
        (b"description\nx\n", "one of them 'name'"),
        (b'"name\nx\n', "quotes do not match"),
        ("name\nZoë\n".encode("latin-1"), "not in UTF-8"),
        (b"\xff\xfe\x00", "not in UTF-8"),
        (b"PK\x03\x04\xff\xfe", "not in UTF-8"),
    ],
)
def test_a_file_that_is_no_sheet_of_names_is_refused_whole(content, why):
    with pytest.raises(BadRequest, match=why) as caught:
        read(content)
    assert "\n" not in caught.value.message
