"""What a tenant may use, and that nobody else feels it."""

from __future__ import annotations

import threading

import pytest

from guard.config import TenantSettings
from guard.errors import GuardUnavailable, RateLimited
from server.auth import Principal
from server.gate import Nobody
from server.limits import DAY, Limiter
from tests.guard.register_fakes import Clock, open_store

ACME, RIVAL = Principal("inference", "acme", "k1"), Principal("inference", "rival", "k2")
NOON = 20_000 * DAY + DAY / 2


@pytest.fixture
def clock():
    return Clock(NOON)


@pytest.fixture
def store(tmp_path):
    store = open_store(tmp_path)
    yield store
    store.close()


@pytest.fixture
def limited(store, clock):
    def make(**limits) -> Limiter:
        return Limiter(TenantSettings(**limits), store.usage, clock)

    return make


def refused(limiter, payer=ACME) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        limiter.admit(payer)
    return caught.value


def test_requests_per_minute_come_back_with_time(limited, clock):
    limiter = limited(defaults={"requests_per_minute": 2})
    limiter.admit(ACME)
    limiter.admit(ACME)
    error = refused(limiter)
    assert (error.status, error.limit, error.kind, error.code) == (
        429,
        "requests",
        "requests",
        "rate_limit_exceeded",
    )
    assert error.headers["Retry-After"] == "30"
    clock.now += 29
    refused(limiter)
    clock.now += 1
    limiter.admit(ACME)
    refused(limiter)
    clock.now += 3_600
    limiter.admit(ACME)
    limiter.admit(ACME)
    refused(limiter)  # rest is not saved up


def test_a_tenants_limit_never_binds_another(limited):
    limiter = limited(defaults={"requests_per_minute": 1, "concurrent": 1, "tokens_per_minute": 5})
    lease = limiter.admit(ACME)
    lease.spend(100)
    refused(limiter)
    limiter.admit(RIVAL)
    limiter.admit(Nobody())
    limiter.admit(Principal("inference", None, "k3"))


def test_keys_of_one_tenant_share_and_keys_without_one_do_not(limited):
    limiter = limited(defaults={"requests_per_minute": 1})
    limiter.admit(ACME)
    refused(limiter, Principal("inference", "acme", "another"))
    limiter.admit(Principal("inference", None, "k3"))
    limiter.admit(Principal("inference", None, "k4"))
    refused(limiter, Principal("inference", None, "k4"))


def test_an_admin_without_a_tenant_has_no_limits_and_one_with_a_tenant_has_its(limited):
    limiter = limited(defaults={"requests_per_minute": 1})
    for _ in range(5):
        limiter.admit(Principal("admin", None, "environment"))
    limiter.admit(Principal("admin", "acme", "k1"))
    refused(limiter)


def test_a_tenants_own_limits_take_the_place_of_the_defaults_one_by_one(limited):
    limiter = limited(
        defaults={"requests_per_minute": 1, "concurrent": 1},
        limits={"acme": {"requests_per_minute": 3}, "rival": {"requests_per_minute": None}},
    )
    for _ in range(3):
        limiter.admit(ACME).close()
    assert refused(limiter).limit == "requests"
    for _ in range(9):
        limiter.admit(RIVAL).close()
    limiter.admit(RIVAL)
    assert refused(limiter, RIVAL).limit == "concurrent"


def test_requests_at_once(limited):
    limiter = limited(defaults={"concurrent": 2})
    first = limiter.admit(ACME)
    limiter.admit(ACME)
    assert refused(limiter).limit == "concurrent"
    first.close()
    limiter.admit(ACME)


def test_tokens_are_paid_as_they_come_and_debts_are_paid_back(limited, clock):
    limiter = limited(defaults={"tokens_per_minute": 60})
    lease = limiter.admit(ACME)
    lease.spend(59)
    limiter.admit(ACME)  # something is left
    lease.spend(31)  # the first is still being answered
    error = refused(limiter)
    assert (error.limit, error.kind, error.headers["Retry-After"]) == ("tokens", "tokens", "31")
    clock.now += 30
    refused(limiter)
    clock.now += 1
    limiter.admit(ACME)


def test_headers_tell_what_is_left(limited, clock):
    limiter = limited(defaults={"requests_per_minute": 60, "tokens_per_minute": 6_000})
    limiter.admit(ACME).spend(1_500)
    assert limiter.admit(ACME).headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "58",
        "x-ratelimit-reset-requests": "2s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "4500",
        "x-ratelimit-reset-tokens": "15s",
    }
    limiter.admit(RIVAL).spend(9_000)
    assert refused(limiter, RIVAL).headers["x-ratelimit-reset-tokens"] == "1m30s"
    assert limited().admit(ACME).headers == {}


def test_a_quota_of_a_day_ends_at_midnight(limited, clock):
    limiter = limited(defaults={"tokens_per_day": 100})
    lease = limiter.admit(ACME)
    lease.spend(100)
    error = refused(limiter)
    assert (error.kind, error.code, error.limit) == ("insufficient_quota", "insufficient_quota", "day")
    assert error.headers["Retry-After"] == str(DAY // 2)
    assert error.headers["x-should-retry"] == "false"
    clock.now += DAY / 2
    limiter.admit(ACME)
    lease.spend(100)  # what runs over midnight counts for the new day
    refused(limiter)


def test_servers_of_one_store_share_the_quota_of_a_day(limited, clock):
    limits = {"defaults": {"tokens_per_day": 100}}
    first, second = limited(**limits), limited(**limits)
    first.admit(ACME).spend(60)
    second.admit(ACME).spend(60)
    for limiter in (first, second, first):
        limiter.exchange()
    refused(first)
    refused(second)
    first.admit(RIVAL)
    after_restart = limited(**limits)
    after_restart.exchange()
    refused(after_restart)
    clock.now += DAY
    for limiter in (first, second, after_restart):
        limiter.exchange()
        limiter.admit(ACME)


def test_nothing_is_counted_twice_or_lost(limited, store, clock):
    limiter = limited(defaults={"tokens_per_day": 10**9})
    lease = limiter.admit(ACME)
    done = threading.Event()

    def exchanging():
        while not done.is_set():
            limiter.exchange()

    threads = [threading.Thread(target=exchanging) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(2_000):
        lease.spend(3)
    done.set()
    for thread in threads:
        thread.join()
    limiter.exchange()
    assert store.usage.exchange(int(clock.now // DAY), {}) == {"tenant:acme": 6_000}


def test_while_the_store_is_away_tokens_go_on_being_counted(limited, store, clock, monkeypatch):
    limiter = limited(defaults={"tokens_per_day": 100})
    limiter.admit(ACME).spend(60)

    def away(day, used):
        raise GuardUnavailable("The store does not answer.", reason="store")

    with monkeypatch.context() as patched:
        patched.setattr(store.usage, "exchange", away)
        with pytest.raises(GuardUnavailable):
            limiter.exchange()
        limiter.admit(ACME).spend(40)
        refused(limiter)
    limiter.exchange()
    assert store.usage.exchange(int(clock.now // DAY), {}) == {"tenant:acme": 100}


def test_old_days_are_forgotten(store):
    store.usage.exchange(100, {"a": 1})
    store.usage.exchange(132, {"a": 1})
    assert store.usage.exchange(100, {}) == {}


def test_accounts_that_have_nothing_to_remember_are_forgotten(limited, clock, monkeypatch):
    monkeypatch.setattr("server.limits._MOST_ACCOUNTS", 10)
    limiter = limited(defaults={"concurrent": 1})
    limiter.admit(ACME)
    for number in range(100):
        limiter.admit(Principal("inference", f"tenant {number}", "k")).close()
    assert len(limiter._accounts) <= 11
    refused(limiter)


def test_a_clock_that_goes_back_gives_nothing(limited, clock):
    limiter = limited(defaults={"requests_per_minute": 1})
    limiter.admit(ACME)
    clock.now -= 3_600
    refused(limiter)
