"""Where stores of tests live: in a file, and in a PostgreSQL that the session starts for itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import make_url

from guard.store import Store
from tests.guard.register_fakes import SECRETS, open_store
from tests.postgres import Server, server


@dataclass
class Place:
    """`url` names a new database. `raw` gives all bytes that it has on disk."""

    url: str
    raw: Callable[[], bytes]
    _opened: list[Store] = field(default_factory=list)

    def open(self) -> Store:
        """One more store at this place, as another process has it; closed at the end of the test."""
        self._opened.append(Store(self.url, SECRETS))
        return self._opened[-1]

    def close(self) -> None:
        for store in self._opened:
            store.close()


@pytest.fixture(scope="session")
def postgres():
    with server() as running:
        url = running.fresh()
        Store(url, SECRETS).close()
        running.template = make_url(url).database  # the many tests that need a store do not all migrate
        yield running


def _in_file(folder: Path) -> Place:
    open_store(folder).close()
    files = lambda: b"".join(path.read_bytes() for path in sorted(folder.iterdir()))  # noqa: E731
    return Place(f"sqlite:///{folder / 'lethe.db'}", files)


def _in_server(running: Server) -> Place:
    return Place(running.fresh(), running.raw)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def place(request, tmp_path):
    if request.param == "sqlite":
        found = _in_file(tmp_path)
    else:
        found = _in_server(request.getfixturevalue("postgres"))
    yield found
    found.close()
