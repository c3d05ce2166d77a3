"""Keys: stored as digests, found without a query, gone when revoked."""

from __future__ import annotations

import pytest

from guard.errors import Forbidden, NotFound, Unauthorized
from server.auth import Authenticator, Permission, ensure_admin_key
from tests.guard.register_fakes import Clock, open_store


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def keys(tmp_path):
    store = open_store(tmp_path)
    yield store.keys
    store.close()


def bearer(token: str) -> str:
    return f"Bearer {token}"


def test_a_key_is_random_and_stored_as_a_digest(keys, clock, tmp_path):
    tokens = [keys.create("admin", None, None, now=1.0)[1] for _ in range(2)]
    assert tokens[0] != tokens[1]
    assert all(token.startswith("lk_") and len(token) >= 3 + 43 for token in tokens)  # 256 bits in base64
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert not any(token.encode() in files or token[3:].encode() in files for token in tokens)


def test_a_key_is_known_after_a_restart(keys, clock):
    _, token = Authenticator(keys, None, clock).create("inference", "acme", None)
    principal = Authenticator(keys, None, clock).identify(bearer(token))
    assert (principal.role, principal.tenant) == ("inference", "acme")


def test_identifying_asks_the_store_nothing(keys, clock, monkeypatch):
    authenticator = Authenticator(keys, None, clock)
    _, token = authenticator.create("auditor", None, None)
    monkeypatch.setattr(keys, "_database", None)
    assert authenticator.identify(bearer(token)).role == "auditor"
    with pytest.raises(Unauthorized):
        authenticator.identify(bearer("lk_unknown"))


def test_a_revoked_key_is_unknown_at_once(keys, clock):
    authenticator = Authenticator(keys, None, clock)
    key, token = authenticator.create("auditor", None, None)
    authenticator.revoke(key.id)
    with pytest.raises(Unauthorized):
        authenticator.identify(bearer(token))
    with pytest.raises(NotFound):
        authenticator.revoke(key.id)


def test_a_key_expires(keys, clock):
    authenticator = Authenticator(keys, None, clock)
    _, token = authenticator.create("auditor", None, clock.now + 10)
    assert authenticator.identify(f"bearer  {token} ").role == "auditor"
    clock.now += 10
    with pytest.raises(Unauthorized):
        authenticator.identify(bearer(token))


def test_the_admin_key_of_the_environment_is_always_admin(keys, clock):
    authenticator = Authenticator(keys, "from the environment", clock)
    assert authenticator.identify("Bearer from the environment").may(Permission.KEYS)
    with pytest.raises(Unauthorized):
        Authenticator(keys, None, clock).identify("Bearer from the environment")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Token x", "Bearer \udcff", "Bearer é"])
def test_a_header_without_a_known_key_is_unauthorised(keys, clock, header):
    with pytest.raises(Unauthorized):
        Authenticator(keys, "x", clock).identify(header)


def test_a_role_that_may_not_is_forbidden(keys, clock):
    authenticator = Authenticator(keys, None, clock)
    _, token = authenticator.create("inference", None, None)
    assert authenticator.require(bearer(token), Permission.INFER).role == "inference"
    with pytest.raises(Forbidden):
        authenticator.require(bearer(token), Permission.READ_TARGETS)


def test_an_admin_key_is_made_only_when_there_is_none(keys, clock):
    assert ensure_admin_key(keys, "given", clock) is None
    token = ensure_admin_key(keys, None, clock)
    assert token is not None
    assert Authenticator(keys, None, clock).identify(bearer(token)).role == "admin"
    assert ensure_admin_key(keys, None, clock) is None


def test_an_expired_or_confined_admin_key_does_not_count(keys, clock):
    keys.create("admin", None, clock.now - 1, now=1.0)
    keys.create("admin", "acme", None, now=1.0)
    assert ensure_admin_key(keys, None, clock) is not None
