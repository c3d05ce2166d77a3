"""Targets from a spreadsheet: one row of CSV for each, the first row naming the columns."""

from __future__ import annotations

import codecs
import csv
import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from guard.errors import BadRequest
from guard.importing import Row

COLUMNS = ("id", "name", "aliases", "description", "reference", "expires_at", "tags", "kind", "mode")
LISTS = ("aliases", "tags")
"""Columns whose cells hold several values with `;` between them."""
_DELIMITERS = ",;\t"
_ERRORS = ("#NULL!", "#DIV/0!", "#VALUE!", "#REF!", "#NAME?", "#NUM!", "#N/A")
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def csv_rows(content: bytes) -> Iterator[Row]:
    """The rows below the header, each with the number of the line that it begins in; empty ones are left out.

    Raises:
        BadRequest: the text cannot be read, or a column is missing or not known.
    """
    text = _decoded(content)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        columns = _columns(next(reader, []))
    except csv.Error:
        raise BadRequest("The first line must name the columns; its quotes do not match.") from None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error:
            yield Row(
                number,
                error=BadRequest("The quotes of this line do not match; what is behind it was not read."),
            )
            return
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield _row(number, columns, cells)


def _row(number: int, columns: Sequence[str], cells: Sequence[str]) -> Row:
    try:
        return Row(number, _fields(columns, cells))
    except BadRequest as error:
        return Row(number, error=error)


def _fields(columns: Sequence[str], cells: Sequence[str]) -> Mapping[str, Any]:
    if any(cell.strip() for cell in cells[len(columns) :]):
        raise BadRequest("This line has more cells than there are columns.")
    fields: dict[str, Any] = {}
    for column, cell in zip(columns, map(str.strip, cells), strict=False):
        if cell.startswith("="):
            raise BadRequest(f"{column} holds a formula; put its value there.", param=column)
        if cell in _ERRORS:
            raise BadRequest(f"{column} holds the error {cell} of a formula.", param=column)
        if column in LISTS:
            fields[column] = [part.strip() for part in cell.split(";") if part.strip()]
        elif cell:
            fields[column] = cell
    return fields


def _columns(header: Sequence[str]) -> list[str]:
    columns = [name.strip().lower().replace(" ", "_") for name in header]
    while columns and not columns[-1]:
        columns.pop()
    for name in columns:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, 1, 0.0)
            raise BadRequest(
                f"There is no column '{name}'; the nearest is '{near[0]}'. Known: {', '.join(COLUMNS)}."
            )
        if columns.count(name) > 1:
            raise BadRequest(f"The column '{name}' stands there twice.")
    if "name" not in columns:
        raise BadRequest("The first line must name the columns, and one of them 'name'.")
    return columns


def _decoded(content: bytes) -> str:
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        raise BadRequest("The file is not in UTF-8; save it as 'CSV UTF-8'.") from None


def _delimiter(text: str) -> str:
    """The one that the header has most of: names of columns hold none."""
    header = text.partition("\n")[0]
    return max(_DELIMITERS, key=header.count)
