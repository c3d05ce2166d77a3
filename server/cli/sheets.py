"""A workbook as the CSV that the server takes; read here, so that no server parses workbooks."""

from __future__ import annotations

import csv
import io
import re
from datetime import date, datetime
from pathlib import Path
from typing import Any

from server.cli.client import Failure

MOST_BYTES = 32 * 2**20


def csv_of(path: Path) -> bytes:
    """The first sheet of a workbook, row for row. A formula stays one, so that the server refuses it.

    Raises:
        Failure: it cannot be read.
    """
    try:
        import openpyxl
    except ModuleNotFoundError:
        raise Failure(
            "Workbooks need the package openpyxl; install it, or save the sheet as 'CSV UTF-8'."
        ) from None
    try:
        if path.stat().st_size > MOST_BYTES:
            raise Failure(f"{path} is larger than {MOST_BYTES // 2**20} MB; save the sheet as 'CSV UTF-8'.")
        book = openpyxl.load_workbook(path, read_only=True)
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}.") from None
    except Failure:
        raise
    except Exception:  # whatever openpyxl trips over, it is no workbook
        raise Failure(f"{path} is not a workbook that can be read; save the sheet as 'CSV UTF-8'.") from None
    out = io.StringIO()
    writer = csv.writer(out)
    for row in book.worksheets[0].iter_rows():
        writer.writerow([_text(cell) for cell in row])
    book.close()
    return out.getvalue().encode()


def _text(cell: Any) -> str:
    value = cell.value
    if cell.data_type == "f":
        return "="
    if value is None:
        return ""
    if isinstance(value, datetime | date):
        return value.isoformat()
    return re.sub(r"\s+", " ", str(value))  # a line for each row, so that their numbers agree
