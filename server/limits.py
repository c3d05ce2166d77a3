"""What each tenant may use: requests and tokens in a minute, requests at once, tokens in a day.

An account is a tenant, a key without one, or everybody who needs no key; admin keys without a tenant have none and no
limits. What is counted per minute, and at once, is counted in this process. Tokens of a day are exchanged with the
store, so that servers of one store share a quota, each behind the others by `EXCHANGE_SECONDS` at most.

A request is let in while something is left, and pays for its tokens as they come; how long an answer gets is not known
before. It may thus go over by its own length, and the account waits until that is paid back.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from guard.config import TenantLimits, TenantSettings
from guard.errors import Limit, RateLimited
from guard.store import Usage

EXCHANGE_SECONDS = 1.0
MINUTE, DAY = 60.0, 86_400
_MOST_ACCOUNTS = 10_000  # beyond it, those that have nothing to remember are forgotten


class Payer(Protocol):
    """Whoever a request is counted for. `account` is None for those without limits."""

    @property
    def tenant(self) -> str | None: ...

    @property
    def account(self) -> str | None: ...


@dataclass(slots=True)
class Bucket:
    """So much a minute, all of it at once if need be. `left` may be a debt."""

    size: int
    at: float
    left: float

    def fill(self, now: float) -> float:
        """What there is now."""
        self.left = min(self.size, self.left + max(0.0, now - self.at) * self.size / MINUTE)
        self.at = now
        return self.left

    def wait(self, wanted: float) -> float:
        """Seconds until there is so much."""
        return max(0.0, (wanted - self.left) * MINUTE / self.size)


@dataclass(slots=True)
class Account:
    limits: TenantLimits
    requests: Bucket | None
    tokens: Bucket | None
    running: int = 0
    day: int = 0
    counted: int = 0  # tokens of the day that are in the store, of all servers
    fresh: int = 0  # and those that are not yet

    @classmethod
    def of(cls, limits: TenantLimits, now: float) -> Account:
        def bucket(size: int | None) -> Bucket | None:
            return Bucket(size, now, size) if size is not None else None

        return cls(limits, bucket(limits.requests_per_minute), bucket(limits.tokens_per_minute))

    def turn(self, day: int) -> None:
        if day != self.day:
            self.day, self.counted, self.fresh = day, 0, 0

    @property
    def idle(self) -> bool:
        full = all(bucket is None or bucket.left >= bucket.size for bucket in (self.requests, self.tokens))
        return full and not (self.running or self.fresh)

    def headers(self) -> dict[str, str]:
        """As OpenAI tells them."""
        told = {}
        for name, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket is not None:
                told[f"x-ratelimit-limit-{name}"] = str(bucket.size)
                told[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.left)))
                told[f"x-ratelimit-reset-{name}"] = _duration(bucket.wait(bucket.size))
        return told


@dataclass(slots=True)
class Lease:
    """One request that was let in. `spend` takes tokens as they come, also after `close` for what runs on behind."""

    headers: dict[str, str] = field(default_factory=dict)
    spend: Callable[[int], None] | None = None
    close: Callable[[], None] = lambda: None


class Limiter:
    """`clock` gives seconds since the epoch."""

    def __init__(
        self, settings: TenantSettings, usage: Usage, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._usage = usage
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self._totals: dict[str, int] = {}
        self._day = 0
        self._exchanging = threading.Lock()
        self._lock = threading.Lock()  # requests come on the event loop, the exchange on a thread

    def admit(self, payer: Payer) -> Lease:
        """Let a request in.

        Raises:
            RateLimited: its account has used up what it may.
        """
        if payer.account is None:
            return Lease()
        limits = self._settings.of(payer.tenant)
        if limits == TenantLimits():
            return Lease()
        with self._lock:
            now = self._clock()
            account = self._account(payer.account, limits, now)
            self._demand(account, now)
            account.running += 1
            if account.requests is not None:
                account.requests.left -= 1
            return Lease(
                account.headers(), lambda tokens: self._spend(account, tokens), self._closing(account)
            )

    @property
    def quotas(self) -> bool:
        """Whether anybody has a quota of a day, so that there is something to exchange."""
        every = (self._settings.defaults, *self._settings.limits.values())
        return any(limits.tokens_per_day is not None for limits in every)

    def exchange(self) -> None:
        """Give the store what was counted, and take what others have. Blocks.

        Raises:
            GuardUnavailable: the store does not answer; counting goes on from what is known.
        """
        with self._exchanging:
            day = int(self._clock() // DAY)
            with self._lock:
                used = {name: a.fresh for name, a in self._accounts.items() if a.day == day and a.fresh}
            totals = self._usage.exchange(day, used)
            with self._lock:
                self._day, self._totals = day, totals
                for name, account in self._accounts.items():
                    if account.day == day:
                        account.fresh -= used.get(name, 0)
                        account.counted = totals.get(name, 0)

    def _account(self, name: str, limits: TenantLimits, now: float) -> Account:
        account = self._accounts.get(name)
        if account is None:
            if len(self._accounts) >= _MOST_ACCOUNTS:
                self._accounts = {key: a for key, a in self._accounts.items() if not a.idle}
            account = self._accounts[name] = Account.of(limits, now)
            account.turn(int(now // DAY))
            if self._day == account.day:
                account.counted = self._totals.get(name, 0)
        account.turn(int(now // DAY))
        for bucket in (account.requests, account.tokens):
            if bucket is not None:
                bucket.fill(now)
        return account

    @staticmethod
    def _demand(account: Account, now: float) -> None:
        limits, requests, tokens = account.limits, account.requests, account.tokens
        if limits.tokens_per_day is not None and account.counted + account.fresh >= limits.tokens_per_day:
            raise _refused(account, "day", DAY - now % DAY, f"{limits.tokens_per_day} tokens of today")
        if tokens is not None and tokens.left <= 0:
            raise _refused(account, "tokens", tokens.wait(1), f"{tokens.size} tokens per minute")
        if limits.concurrent is not None and account.running >= limits.concurrent:
            raise _refused(account, "concurrent", 1.0, f"{limits.concurrent} requests at once")
        if requests is not None and requests.left < 1:
            raise _refused(account, "requests", requests.wait(1), f"{requests.size} requests per minute")

    def _spend(self, account: Account, tokens: int) -> None:
        with self._lock:
            now = self._clock()
            account.turn(int(now // DAY))
            if account.tokens is not None:
                account.tokens.fill(now)
                account.tokens.left -= tokens
            if account.limits.tokens_per_day is not None:
                account.fresh += tokens

    def _closing(self, account: Account) -> Callable[[], None]:
        def close() -> None:
            with self._lock:
                account.running -= 1

        return close


def _refused(account: Account, limit: Limit, seconds: float, what: str) -> RateLimited:
    headers = {**account.headers(), "Retry-After": str(math.ceil(max(seconds, 1)))}
    if limit == "day":
        headers["x-should-retry"] = "false"  # clients would try again at once, which is of no use today
    return RateLimited(f"The limit of {what} is reached; try again in {_duration(seconds)}.", limit, headers)


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 6s, 1m30s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
