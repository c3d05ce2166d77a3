"""The tables. Times are seconds since the epoch; nothing that names a target is readable without the secret.

A target's id is often its name, so rows carry `key`, a keyed digest of the id, and the id itself is sealed.
A `uid` is one life of a target: purging ends it, so decisions, which hold uids, can never again be traced to
what was purged, not even when the same id is registered anew.

`changed` is the number of the snapshot that wrote, deleted or erased a row last: replicas read what is above the number
that they have. A version of a target was in force from snapshot `since` to before snapshot `until`.
"""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

metadata = sa.MetaData()

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

targets = sa.Table(
    "targets",
    metadata,
    sa.Column("uid", sa.String(32), primary_key=True),
    sa.Column("key", sa.String(64), nullable=False, unique=True),
    sa.Column("sealed_id", sa.LargeBinary, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("deleted_at", sa.Float(53)),
    sa.Column("changed", sa.Integer, nullable=False, index=True),
)

target_versions = sa.Table(
    "target_versions",
    metadata,
    sa.Column("uid", sa.String(32), sa.ForeignKey("targets.uid", ondelete="CASCADE"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("updated_at", sa.Float(53), nullable=False),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("since", sa.Integer, nullable=False),
    sa.Column("until", sa.Integer),
)

tombstones = sa.Table(
    "tombstones",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("last_version", sa.Integer, nullable=False),
    sa.Column("purged_at", sa.Float(53), nullable=False),
    sa.Column("changed", sa.Integer, nullable=False, index=True),
)

erasures = sa.Table(
    "erasures",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("changed", sa.Integer, nullable=False, index=True),
)

replicas = sa.Table(
    "replicas",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("snapshot", sa.Integer, nullable=False),
    sa.Column("keys", sa.Integer, nullable=False),
    sa.Column("seen_at", sa.Float(53), nullable=False),
    sa.Column("lease", sa.Float(53), nullable=False),
)


class Tombstone(NamedTuple):
    """What is left of a purged target: the keyed digest of its id, its last version and when it was purged."""

    key: str
    last_version: int
    purged_at: float


keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("tenant", sa.String(128)),
    sa.Column("created_at", sa.Float(53), nullable=False),
    sa.Column("expires_at", sa.Float(53)),
    sa.Column("speaks", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("successor", sa.String(32)),
    sa.Column("used_at", sa.Float(53)),
)

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column(
        "seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True
    ),
    sa.Column("id", sa.String(128), nullable=False, unique=True),
    sa.Column("time", sa.Float(53), nullable=False, index=True),
    sa.Column("tenant", sa.String(128)),
    sa.Column("action", sa.String(16), nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("sealed_text", sa.LargeBinary),
)

decision_targets = sa.Table(
    "decision_targets",
    metadata,
    sa.Column("uid", sa.String(32), primary_key=True),
    sa.Column(
        "seq",
        sa.BigInteger().with_variant(sa.Integer, "sqlite"),
        sa.ForeignKey("decisions.seq", ondelete="CASCADE"),
        primary_key=True,
        index=True,
    ),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column(
        "uid", sa.String(32), sa.ForeignKey("targets.uid", ondelete="CASCADE"), nullable=False, index=True
    ),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("tenant", sa.String(128)),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("progress", sa.Float(53), nullable=False),
    sa.Column("created_at", sa.Float(53), nullable=False, index=True),
    sa.Column("started_at", sa.Float(53)),
    sa.Column("ended_at", sa.Float(53)),
    sa.Column("runner", sa.String(32)),
    sa.Column("lease", sa.Float(53)),
    sa.Column("version", sa.Integer),
    sa.Column("artifact", sa.String(64)),
    sa.Column("attached", sa.Boolean),
    sa.Column("sealed_request", sa.LargeBinary, nullable=False),
    sa.Column("sealed_report", sa.LargeBinary),
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column(
        "seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=False
    ),
    sa.Column("time", sa.Float(53), nullable=False, index=True),
    sa.Column("key_id", sa.String(32), nullable=False),
    sa.Column("role", sa.String(16)),
    sa.Column("tenant", sa.String(128)),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("uid", sa.String(32), index=True),
    sa.Column("subject", sa.String(64)),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("status", sa.Integer),
    sa.Column("snapshot", sa.Integer, index=True),
    sa.Column("request_id", sa.String(128)),
    sa.Column("source", sa.String(64)),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("mac", sa.String(64), nullable=False),
)

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("day", sa.Integer, primary_key=True),
    sa.Column("account", sa.String(160), primary_key=True),
    sa.Column("tokens", sa.BigInteger, nullable=False),
)
