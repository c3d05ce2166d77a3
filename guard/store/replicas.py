"""The processes that serve from one store, and how far each has followed it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import sqlalchemy as sa

from guard.store.database import Database
from guard.store.schema import replicas


@dataclass(frozen=True, slots=True)
class Standing:
    """One process: the numbers of the last changes of targets and keys that it has in force, when it said so, and until
    when it may serve without saying so again; in seconds since the epoch."""

    id: str
    name: str
    snapshot: int
    keys: int
    seen_at: float
    lease: float


class Replicas:
    def __init__(self, database: Database) -> None:
        self._database = database

    def report(self, standing: Standing) -> None:
        """Where this process stands. Those whose lease has ended are forgotten."""
        gone = sa.or_(replicas.c.id == standing.id, replicas.c.lease <= standing.seen_at)
        with self._database.write() as connection:
            connection.execute(replicas.delete().where(gone))
            connection.execute(replicas.insert().values(asdict(standing)))

    def leave(self, replica_id: str) -> None:
        with self._database.write() as connection:
            connection.execute(replicas.delete().where(replicas.c.id == replica_id))

    def live(self, now: float) -> list[Standing]:
        """All that may serve now, by name."""
        query = sa.select(replicas).where(replicas.c.lease > now).order_by(replicas.c.name, replicas.c.id)
        with self._database.read() as connection:
            return [Standing(**row._mapping) for row in connection.execute(query)]
