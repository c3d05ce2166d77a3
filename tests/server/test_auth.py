"""Keys: stored as digests, found without a query, gone when revoked."""

from __future__ import annotations

import pytest

from guard.errors import BadRequest, Forbidden, NotFound, Unauthorized
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


def test_a_rotated_key_is_good_for_its_grace_and_the_new_one_at_once(keys, clock):
    authenticator = Authenticator(keys, clock=clock)
    old, token = authenticator.create("operator", "acme", clock.now + 1_000)
    clock.now += 400
    new, fresh = authenticator.rotate(old.id, 100, None)
    assert (new.role, new.tenant, new.expires_at) == ("operator", "acme", clock.now + 1_000)
    assert {authenticator.identify(bearer(t)).key_id for t in (token, fresh)} == {old.id, new.id}
    assert [(key.id, key.successor) for key in authenticator.all()] == [(old.id, new.id), (new.id, None)]
    with pytest.raises(BadRequest):
        authenticator.rotate(old.id, 100, None)
    clock.now += 100
    with pytest.raises(Unauthorized):
        authenticator.identify(bearer(token))
    assert authenticator.identify(bearer(fresh)).key_id == new.id
    with pytest.raises(NotFound):
        authenticator.rotate("key_none", 100, None)


def test_a_grace_does_not_lengthen_a_life(keys, clock):
    authenticator = Authenticator(keys, clock=clock)
    old, token = authenticator.create("inference", None, clock.now + 10, speaks=True)
    new, _ = authenticator.rotate(old.id, 1_000, clock.now + 50)
    assert (new.expires_at, new.speaks) == (clock.now + 50, True)
    clock.now += 10
    with pytest.raises(Unauthorized):
        authenticator.identify(bearer(token))
    ends = {key.id: key.expires_at for key in Authenticator(keys, clock=clock).all()}
    assert ends[old.id] == old.expires_at


def test_uses_are_written_down_later_and_never_backwards(keys, clock):
    authenticator, other = Authenticator(keys, clock=clock), Authenticator(keys, clock=clock)
    _, token = authenticator.create("auditor", None, None)
    other.follow()
    authenticator.identify(bearer(token))
    assert keys.all()[0].used_at is None
    clock.now += 50
    other.identify(bearer(token))
    other.note_uses()
    authenticator.note_uses()
    assert keys.all()[0].used_at == clock.now
    assert authenticator.all()[0].used_at == clock.now
    number = keys.number
    authenticator.note_uses()
    assert keys.number == number == authenticator.number


def test_keys_that_end_soon_are_told_but_for_those_with_a_successor(keys, clock):
    authenticator = Authenticator(keys, clock=clock)
    day = 86_400
    soon, _ = authenticator.create("operator", None, clock.now + 6 * day)
    sooner, _ = authenticator.create("operator", None, clock.now + 2 * day)
    authenticator.create("operator", None, clock.now + 8 * day)
    authenticator.create("operator", None, None)
    assert [key.id for key in authenticator.expiring()] == [sooner.id, soon.id]
    authenticator.rotate(sooner.id, day, clock.now + 30 * day)
    assert [key.id for key in authenticator.expiring()] == [soon.id]
    clock.now += 6 * day
    assert soon.id not in {key.id for key in authenticator.expiring()}
