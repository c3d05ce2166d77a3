"""Keys and the tokens of a day at rest, in both databases."""

from __future__ import annotations

import threading

import pytest

from guard.errors import BadRequest, NotFound
from guard.store.audit import Filter


@pytest.fixture
def store(place):
    return place.open()


def test_a_rotation_is_one_write_with_its_row(store, place):
    old, token = store.keys.create("operator", "acme", 50.0, now=10.0)
    new, fresh = store.keys.rotate(old.id, 5.0, None, now=20.0)
    there = place.open()
    found = {key.id: key for key in there.keys.all()}
    assert (found[old.id].expires_at, found[old.id].successor) == (25.0, new.id)
    assert found[new.id] == new and (new.expires_at, new.digest) == (60.0, store.keys.digest(fresh))
    row = there.audit.page(Filter(action="keys.rotate"), limit=1).data[0]
    assert (row["subject"], row["detail"]) == (old.id, {"successor": new.id})
    assert token not in str(row) and fresh not in str(row)
    with pytest.raises(BadRequest):
        store.keys.rotate(old.id, 5.0, None, now=21.0)
    with pytest.raises(BadRequest):
        store.keys.rotate(new.id, 5.0, None, now=70.0)
    with pytest.raises(NotFound):
        store.keys.rotate("key_none", 5.0, None, now=21.0)


def test_the_latest_use_is_kept(store):
    key, _ = store.keys.create("operator", None, None, now=10.0)
    number = store.keys.number
    for moment in (30.0, 20.0):
        store.keys.note_uses({key.id: moment, "key_gone": moment})
    assert store.keys.all()[0].used_at == 30.0
    assert store.keys.number == number


def test_tokens_of_several_servers_add_up(place):
    stores = [place.open() for _ in range(3)]

    def count(store):
        for _ in range(10):
            store.usage.exchange(7, {"tenant:a": 2, "tenant:b": 1})

    threads = [threading.Thread(target=count, args=[store]) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].usage.exchange(7, {}) == {"tenant:a": 60, "tenant:b": 30}
    assert stores[0].usage.exchange(8, {"tenant:a": 1}) == {"tenant:a": 1}
