"""The context of one HTTP request, made by the server's middleware and read by the engine client.

vLLM calls `generate` deep inside its handlers, several times for n prompts, beam search and tool loops. A
context variable carries one mutable `RequestContext` there, so that nested calls share the decision id and
what was already judged, and the middleware sees the verdict when it writes the response.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from guard.errors import LetheError, Reason
from guard.types import Admission, AppliedEdit, Decision, Match, Message


@dataclass(frozen=True, slots=True)
class Judgement:
    """One prompt that was judged: when, in seconds since the epoch, how long it took, and the decision or why there is
    none. `bypassed`: it failed, and was passed over."""

    began_at: float
    seconds: float
    decision: Decision | None = None
    failure: Reason | None = None
    bypassed: bool = False


@dataclass(slots=True)
class Usage:
    """What an answer has cost, as its client is told: tokens of its own prompts and of the answers, and why these
    ended."""

    input_tokens: int = 0
    output_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)


@dataclass
class RequestContext:
    """`admissions` holds one entry per distinct prompt judged, keyed by its token ids; `withheld` are the matches
    of tools that were taken out of the request."""

    decision_id: str
    route: str
    received_at: float
    tenant: str | None = None
    request_id: str | None = None  # the client's own
    trace_id: str | None = None  # of the trace that the request is a part of, where traces are kept
    model: str | None = None
    stream: bool = False
    messages: tuple[Message, ...] = ()
    asides: tuple[str, ...] = ()
    must_parse: bool = False  # the client asked for JSON or a forced tool call: prose would break its parser
    tools: bool = False  # the request offers tools: an answer may be a call that somebody parses
    admissions: dict[tuple[int, ...], Admission] = field(default_factory=dict)
    judgements: list[Judgement] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    beams: dict[tuple[int, ...], tuple[Admission, int]] = field(
        default_factory=dict
    )  # the engine client's own
    applied: list[str] = field(default_factory=list)
    edits: list[AppliedEdit] = field(default_factory=list)
    withheld: list[Match] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    replaced: bool = False  # the reply of a target took the place of an answer: it has no likelihoods
    broken: bool = False  # an answer ended within something that is parsed as a whole
    spend: Callable[[int], None] | None = (
        None  # hears of tokens as they are read and said, for the tenant's limits
    )
    begun_at: float | None = None  # when the first byte of the answer left
    failure: LetheError | None = None  # set by whoever raises it, so that the gate answers it in one shape

    @property
    def matched(self) -> bool:
        return any(a.matched for a in self.admissions.values())


_current: contextvars.ContextVar[RequestContext | None] = contextvars.ContextVar(
    "lethe_request", default=None
)


def current() -> RequestContext | None:
    """The context of the request being served, or None outside one."""
    return _current.get()


def enter(context: RequestContext) -> contextvars.Token[RequestContext | None]:
    """Make `context` current; give the token to `leave` when the response is done."""
    return _current.set(context)


def leave(token: contextvars.Token[RequestContext | None]) -> None:
    _current.reset(token)
