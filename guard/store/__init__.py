"""The store of one installation: targets with all their versions, API keys, the decision log, jobs, and
the processes that serve from it.

Everything here blocks; callers on an event loop use threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from guard.crypto import Secrets
from guard.errors import ConfigError, LetheError, StartupError
from guard.store.audit import Audit
from guard.store.database import Database, Listener, number_of, put_value, value_of
from guard.store.decisions import Decisions
from guard.store.jobs import Jobs
from guard.store.keys import Key, Keys
from guard.store.replicas import Replicas
from guard.store.targets import Targets
from guard.store.usage import Usage

_PROBE = "lethe"


class Store:
    """Opens, migrates and checks; the work is done by its parts: `targets`, `keys`, `decisions` and so on.

    Raises:
        StartupError: the database cannot be used.
        ConfigError: it was written with another master secret.
    """

    def __init__(self, url: str, secrets: Secrets, clock: Callable[[], float] = time.time) -> None:
        self._database = Database(url)
        try:
            self._check_secret(secrets)
        except LetheError:
            self.close()
            raise
        self.audit = Audit(self._database, secrets, clock)
        self.targets = Targets(self._database, secrets, self.audit)
        self.keys = Keys(self._database, secrets, self.audit)
        self.decisions = Decisions(self._database, secrets)
        self.jobs = Jobs(self._database, secrets, self.audit)
        self.replicas = Replicas(self._database)
        self.usage = Usage(self._database)

    @property
    def snapshot(self) -> int:
        """The number of the last change of what is enforced."""
        with self._database.read() as connection:
            return number_of(connection, "snapshot")

    def listener(self) -> Listener:
        """Hears when another process has changed targets or keys."""
        return self._database.listener()

    def close(self) -> None:
        self._database.close()

    def _check_secret(self, secrets: Secrets) -> None:
        """Without this a wrong secret would be noticed only when there is a target to open."""
        with self._database.write() as connection:
            probe = value_of(connection, "probe")
            if probe is None:
                value = secrets.seal(_PROBE, label="probe").hex()
                put_value(connection, "probe", value)
                return
        try:
            secrets.open(bytes.fromhex(probe), label="probe")
        except ConfigError:
            raise ConfigError(
                f"The store {self._database.name} was written with another master secret; "
                "set LETHE_MASTER_KEY, or restore the file `secret` of its data folder."
            ) from None
        except ValueError:
            raise StartupError(
                f"The store {self._database.name} is damaged; {self._database.advice}."
            ) from None


__all__ = ["Audit", "Decisions", "Jobs", "Key", "Keys", "Store", "Targets", "Usage"]
