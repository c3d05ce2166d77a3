"""A store in a SQLite file that was damaged: found out, backed up in time, and brought back.

A backup is older than what it replaces, so it may hold what was purged since. Tombstones are therefore read out of the
damaged file, as far as that can be read, and what they name is purged from the restored one before it takes its place.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from guard.crypto import Secrets
from guard.errors import LetheError, StartupError
from guard.store import Store
from guard.store.schema import Tombstone
from guard.store.sqlite import lock_of

_IS_STORE = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'target_versions'"
_SIDE_FILES = ("", "-wal", "-shm")


class Unusable(StartupError):
    """A file that is no sound store, or cannot be read or written."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a sound store holds."""

    targets: int
    versions: int
    keys: int
    acts: int


@dataclass(frozen=True, slots=True)
class Restored:
    """What the restored store holds, where the damaged one lies now, and how many later purges were done again; None:
    what was purged could not be read."""

    report: Report
    aside: Path | None
    purged: int | None


def check(url: str, secrets: Secrets) -> Report:
    """Read the whole store: in SQLite its structure, and in every database each sealed text and the audit trail.

    Raises:
        StartupError: it is damaged, or cannot be opened.
        ConfigError: it was written with another master secret.
    """
    if path := file_of(url):
        _demand_sound(path)
    return _read(url, secrets)


def backup(path: Path, to: Path) -> None:
    """Copy a store that may be in use; the copy is one moment of it.

    Raises:
        Unusable: the copy exists already, cannot be written, or is not sound.
    """
    if to.exists():
        raise Unusable(f"{to} exists already; name a new file.")
    try:
        _copy(path, to)
        _demand_sound(to)
    except Unusable:
        to.unlink(missing_ok=True)
        raise


def restore(copy: Path, path: Path, secrets: Secrets) -> Restored:
    """Put a backup in the place of a store that nobody uses; that one is moved aside, whole or not.

    Raises:
        Unusable: a server uses the store, or the backup is not sound.
        ConfigError: the backup was written with another master secret.
    """
    with _alone(path):
        fresh = path.with_name(path.name + ".restoring")
        _remove(fresh)
        try:
            _copy(copy, fresh)
            _demand_sound(fresh)
            later = _tombstones(path) if path.exists() else ()
            store = Store(f"sqlite:///{fresh}", secrets)
            try:
                purged = store.targets.purge_again(later or (), time.time())
                store.targets.erase_traces()
            finally:
                store.close()
            report = _read(f"sqlite:///{fresh}", secrets)
        except LetheError:
            _remove(fresh)
            raise
        aside = _move_aside(path) if path.exists() else None
        os.replace(fresh, path)
        _sync(path.parent)
        return Restored(report, aside, None if later is None else purged)


def file_of(url: str) -> Path | None:
    """The file of a SQLite store; None: it is another database."""
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


def _read(url: str, secrets: Secrets) -> Report:
    store = Store(url, secrets)
    try:
        targets = store.targets.all()
        versions = sum(1 for _ in store.targets.everything())
        trail = store.audit.verify()
        if trail.problem is not None:
            raise Unusable(f"The audit trail is not as it was written: {trail.problem}")
        return Report(len(targets), versions, len(store.keys.all()), trail.rows)
    finally:
        store.close()


def _copy(path: Path, to: Path) -> None:
    """Page by page, which waits for no writer and stops none."""
    try:
        os.close(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with closing(_opened(path)) as source, closing(sqlite3.connect(to)) as target:
            source.backup(target, pages=1_000)
        with to.open("rb") as file:
            os.fsync(file.fileno())
    except FileNotFoundError:
        raise Unusable(f"There is no file {path}.") from None
    except OSError as error:
        raise Unusable(f"{to} cannot be written: {error.strerror}.") from None
    except sqlite3.Error as error:
        raise Unusable(f"{path} cannot be read: {error}.") from None


def _demand_sound(path: Path) -> None:
    try:
        with closing(_opened(path)) as connection:
            (first,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if first == "ok" and not connection.execute(_IS_STORE).fetchone()[0]:
                first = "it holds no store"
    except sqlite3.Error as error:
        first = str(error)
    if first != "ok":
        raise Unusable(
            f"{path} is damaged ({' '.join(first.split())}); bring back a backup with `lethe store restore`."
        )


def _opened(path: Path) -> sqlite3.Connection:
    """Raises sqlite3.Error: there is no such file."""
    if not path.is_file():
        raise sqlite3.OperationalError("there is no such file")
    return sqlite3.connect(path, timeout=10)


def _tombstones(path: Path) -> list[Tombstone] | None:
    """Those of a file that may be damaged; None: they cannot be read."""
    try:
        with closing(_opened(path)) as connection:
            return [
                Tombstone(*row)
                for row in connection.execute("SELECT key, last_version, purged_at FROM tombstones")
            ]
    except sqlite3.Error:
        return None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Raises Unusable: a server holds the store."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(lock_of(path), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unusable(f"A server uses {path}; stop it and try again.") from None
        yield
    finally:
        os.close(lock)


def _move_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
    for ending in _SIDE_FILES:
        with suppress(FileNotFoundError):
            os.rename(f"{path}{ending}", f"{aside}{ending}")
    return aside


def _remove(path: Path) -> None:
    for ending in _SIDE_FILES:
        Path(f"{path}{ending}").unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
