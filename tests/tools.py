"""Programs that system tests need: from `.venv-tools` (`make tools`, requirements/tools.txt), or from the PATH."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".venv-tools" / "bin"


def missing(message: str) -> NoReturn:
    """Skips the test. Where LETHE_CI is set, that something is missing is a failure."""
    if os.environ.get("LETHE_CI"):
        pytest.fail(message)
    pytest.skip(message)


def tool(name: str) -> Path:
    found = shutil.which(name, path=str(FOLDER)) or shutil.which(name)
    if found is None:
        missing(f"there is no {name} here (make tools)")
    return Path(found)


def python() -> Path:
    """The interpreter that has the tools' packages."""
    path = FOLDER / "python"
    if not path.exists():
        missing("the tools are not installed (make tools)")
    return path
