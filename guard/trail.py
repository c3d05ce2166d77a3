"""Who changes what in this installation: an `Act` follows an admin request to the transaction that writes.

The store records the act in the very transaction that it causes (`guard.store.audit`), so it must know the act there; a
context variable carries it, as `guard.context` carries a request for inference.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Actor:
    """By which key, with its role and tenant."""

    key_id: str
    role: str | None = None
    tenant: str | None = None


SYSTEM = Actor("system")
"""The server itself: the demo's targets, and a job that puts its artifact into a target."""


@dataclass(slots=True)
class Act:
    """One admin request. `by` is set when the caller is known, `written` when a transaction has recorded it; `target`
    is an id of a target, `subject` that of anything else."""

    action: str
    target: str | None = None
    subject: str | None = None
    request_id: str | None = None
    source: str | None = None
    by: Actor | None = None
    written: bool = False


_current: contextvars.ContextVar[Act | None] = contextvars.ContextVar("lethe_act", default=None)


def current() -> Act | None:
    """The act that is being done, or None where the server acts by itself."""
    return _current.get()


@contextmanager
def following(act: Act | None) -> Iterator[None]:
    """`act` is the current one for the length of the block."""
    token = _current.set(act)
    try:
        yield
    finally:
        _current.reset(token)
