"""Tokens that accounts have used, by day: what daily quotas of several servers go by."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from guard.store.database import Database
from guard.store.schema import usage

_KEPT_DAYS = 31


class Usage:
    def __init__(self, database: Database) -> None:
        self._database = database

    def exchange(self, day: int, used: Mapping[str, int]) -> dict[str, int]:
        """Add what this process has counted for `day`, in days since the epoch; what all have counted so far."""
        if used:
            with self._database.write() as connection:
                connection.execute(usage.delete().where(usage.c.day < day - _KEPT_DAYS))
                for account, tokens in used.items():
                    mine = sa.and_(usage.c.day == day, usage.c.account == account)
                    more = usage.update().where(mine).values(tokens=usage.c.tokens + tokens)
                    if connection.execute(more).rowcount == 0:
                        connection.execute(usage.insert().values(day=day, account=account, tokens=tokens))
        query = sa.select(usage.c.account, usage.c.tokens).where(usage.c.day == day)
        with self._database.read() as connection:
            return {row.account: row.tokens for row in connection.execute(query)}
