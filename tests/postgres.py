"""A PostgreSQL server of the tests' own: in a temporary folder, on a Unix socket, as a user that is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
import sqlalchemy as sa

START_SECONDS = 120
_SETTINGS = ("listen_addresses=", "shared_buffers=16MB", "max_connections=60", "log_min_messages=fatal")


def binaries() -> Path:
    """The folder of `initdb` and `postgres`. Where LETHE_CI is set, that there is none is a failure."""
    found = shutil.which("postgres")
    if found:
        return Path(found).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3]))
    if not installed:
        message = "there is no PostgreSQL here (Debian: apt-get install postgresql)"
        pytest.fail(message) if os.environ.get("LETHE_CI") else pytest.skip(message)
    return installed[-1].parent


class Server:
    """`fresh` gives the URL of a new database, a copy of `template`. With `url`, it is somebody else's server, and
    cannot be stopped or frozen and shows no files."""

    def __init__(self, folder: Path | None = None, *, fsync: bool = False, url: str | None = None) -> None:
        self.folder = folder
        self._fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        self.template = "template1"
        self.root = sa.make_url(url or f"postgresql+psycopg://lethe@/postgres?host={quote(str(folder))}")
        if folder is not None:
            self._as: dict[str, Any] = {}
            if os.geteuid() == 0:  # which the server refuses to be
                owner = pwd.getpwnam("postgres")
                os.chown(folder, owner.pw_uid, owner.pw_gid)
                self._as = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
            self._bin = binaries()
            initdb = [self._bin / "initdb", "-D", folder / "data", "-U", "lethe", "-A", "trust"]
            initdb += ["--no-sync", "-E", "UTF8", "--locale=C.UTF-8"]
            subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **self._as)

    def own(self) -> Path:
        """Its data folder; skips the test where the server is not the tests' own."""
        if self.folder is None:
            pytest.skip("LETHE_TEST_POSTGRES names a server whose files and processes are not ours")
        return self.folder / "data"

    def start(self) -> None:
        data = self.own()
        settings = [
            *_SETTINGS,
            f"unix_socket_directories={data.parent}",
            f"fsync={'on' if self._fsync else 'off'}",
        ]
        command = [self._bin / "postgres", "-D", data, *(f"--{setting}" for setting in settings)]
        self._process = subprocess.Popen(command, cwd=data, stderr=subprocess.DEVNULL, **self._as)
        ends = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, "PostgreSQL did not start"
            assert time.monotonic() < ends, "PostgreSQL does not answer"
            time.sleep(0.1)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends sessions in order, SIGQUIT as a crash does."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(START_SECONDS)
            self._process = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Every process of the server stands still; its sockets stay open."""
        self.own()
        assert self._process is not None
        main = psutil.Process(self._process.pid)
        everyone = [main, *main.children(recursive=True)]
        for process in everyone:
            process.suspend()
        try:
            yield
        finally:
            for process in everyone:
                process.resume()

    def fresh(self) -> str:
        self._made += 1
        name = f"lethe_{os.getpid()}_{self._made}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        return self.root.set(database=name).render_as_string(hide_password=False)

    def execute(self, statement: str) -> None:
        engine = sa.create_engine(self.root, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)

    def raw(self) -> bytes:
        """All that lies in the files of all databases; the log is no part of them."""
        self.execute("CHECKPOINT")
        return b"".join(p.read_bytes() for p in sorted((self.own() / "base").rglob("*")) if p.is_file())

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except sa.exc.OperationalError:
            return False
        return True


@contextmanager
def server(**options: Any) -> Iterator[Server]:
    """A started server, or that of LETHE_TEST_POSTGRES, the URL of a database whose role may make others."""
    pytest.importorskip("psycopg")
    if url := os.environ.get("LETHE_TEST_POSTGRES"):
        yield Server(url=url)
        return
    folder = Path(tempfile.mkdtemp(prefix="lethe-postgres-"))
    try:
        own = Server(folder, **options)
        try:
            own.start()
            yield own
        finally:
            own.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder)
