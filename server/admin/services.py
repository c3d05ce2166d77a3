"""What the admin API works on; made by whoever starts the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from guard.audit import DecisionLog
from guard.errors import LetheError
from guard.evidence import Evidence
from guard.register import Register
from guard.replica import Laggard
from guard.store import Audit
from server.auth import Authenticator
from server.jobs import Runner

Json = dict[str, Any]


@dataclass(frozen=True)
class Services:
    """`check` judges a body as generation would, `score` tells how likely an answer to it is, `status` what is live,
    and `settled` waits until other processes have in force what was written here. They run on the event loop. `denied`
    hears of every request that was not let in."""

    register: Register
    jobs: Runner
    log: DecisionLog
    authenticator: Authenticator
    evidence: Evidence
    check: Callable[[Json], Awaitable[Mapping[str, Any]]]
    score: Callable[[Json], Awaitable[Mapping[str, Any]]]
    status: Callable[[], Awaitable[Mapping[str, Any]]]
    audit: Audit
    denied: Callable[[LetheError], None]
    settled: Callable[[], Awaitable[list[Laggard]]]
