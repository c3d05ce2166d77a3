"""Who is logged in to the console, and how often logging in may fail. All of it is in memory and bounded."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

SESSIONS = 256
CLIENTS = 4_096
TRIES, WITHIN_SECONDS = 5, 60.0


@dataclass
class Session:
    """Somebody who showed the key `key_id`, at `began_at`; times in seconds since the epoch."""

    key_id: str
    began_at: float
    seen_at: float


class Sessions:
    """Sessions by the digest of their random id, so that nothing in memory logs anybody in.

    One that made no request for `idle_s`, or began `lasts_s` ago, is over; of too many the longest unseen ends.
    """

    def __init__(
        self, idle_s: float, lasts_s: float, *, most: int = SESSIONS, clock: Callable[[], float] = time.time
    ) -> None:
        self._idle_s, self._lasts_s, self._most, self._clock = idle_s, lasts_s, most, clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def begin(self, key_id: str) -> str:
        """The id of a new session, which only this call returns."""
        session_id, now = secrets.token_urlsafe(32), self._clock()
        while len(self._sessions) >= self._most:
            self._sessions.popitem(last=False)
        self._sessions[_digest(session_id)] = Session(key_id, now, now)
        return session_id

    def find(self, session_id: str, *, active: bool = True) -> Session | None:
        """The session of that id, unless it is over. It stays alive when somebody is `active` in it; a page that
        renews itself is not."""
        digest, now = _digest(session_id), self._clock()
        session = self._sessions.get(digest)
        if session is None:
            return None
        if now - session.seen_at >= self._idle_s or now - session.began_at >= self._lasts_s:
            del self._sessions[digest]
            return None
        if active:
            session.seen_at = now
            self._sessions.move_to_end(digest)
        return session

    def end(self, session_id: str) -> None:
        self._sessions.pop(_digest(session_id), None)


def form_token(session_id: str) -> str:
    """What every form of a session carries, and no other site can know."""
    return hmac.new(session_id.encode(), b"console-form", hashlib.sha256).hexdigest()


def is_form_token(session_id: str, given: str) -> bool:
    return hmac.compare_digest(form_token(session_id).encode(), given.encode(errors="replace"))


class Attempts:
    """Failed logins by client: after `tries` of them within `within_s`, the client waits."""

    def __init__(
        self,
        tries: int = TRIES,
        within_s: float = WITHIN_SECONDS,
        *,
        clients: int = CLIENTS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tries, self._within_s, self._clients, self._clock = tries, within_s, clients, clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """Seconds until the client may try again, 0 if it may now."""
        failures = self._failures.get(client)
        if failures is None or len(failures) < self._tries:
            return 0.0
        return max(0.0, failures[0] + self._within_s - self._clock())

    def failed(self, client: str) -> None:
        while len(self._failures) >= self._clients and client not in self._failures:
            self._failures.popitem(last=False)
        self._failures.setdefault(client, deque(maxlen=self._tries)).append(self._clock())
        self._failures.move_to_end(client)


def _digest(session_id: str) -> str:
    return hashlib.sha256(session_id.encode(errors="replace")).hexdigest()
