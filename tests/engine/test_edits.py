"""What travels to the workers is what was meant, and nothing else is taken."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from guard.engine.edits import KEY, EditError, Order, fingerprint, from_wire, reserved, to_wire
from guard.types import Edit, Watch

EDIT = Edit("embedding", "embedding_corruption", (1, 5, 9), "0123456789abcdef", {"strength": 3.0})
ORDER = Order("ticket", "salt", (EDIT,))


def test_an_order_survives_the_wire():
    wire = msgspec.msgpack.decode(msgspec.msgpack.encode(to_wire(ORDER)))
    back = from_wire(wire, 10)
    assert (back.ticket, back.lineage) == ("ticket", "salt")
    (edit,) = back.edits
    full = {"strength": 3.0, "dims": "all", "noise": "gaussian", "tokens": "spans", "artifact": None}
    assert edit == replace(EDIT, params=full)


def changed(**fields):
    wire = to_wire(ORDER)
    wire["edits"][0] |= fields
    return wire


def test_an_order_may_observe_or_force_without_editing():
    order = Order("ticket", "", (), (Watch("", "sae_clamp", 1, "ab" * 32),), (3, 0, 300_000))
    assert from_wire(to_wire(order), 10) == order


@pytest.mark.parametrize(
    "wire",
    [
        None,
        "text",
        [],
        {},
        {**to_wire(ORDER), "extra": 1},
        {**to_wire(ORDER), "v": 1},
        {**to_wire(ORDER), "ticket": ""},
        {**to_wire(ORDER), "lineage": 3},
        {**to_wire(ORDER), "edits": []},
        {**to_wire(ORDER), "edits": ["x"]},
        {**to_wire(ORDER), "watches": "x"},
        {**to_wire(ORDER), "watches": [["sae_clamp", 0]]},
        {**to_wire(ORDER), "watches": [["nothing", 0, "ab" * 32]]},
        {**to_wire(ORDER), "watches": [["sae_clamp", -1, "ab" * 32]]},
        {**to_wire(ORDER), "watches": [["sae_clamp", 0, "ab"]]},
        {**to_wire(ORDER), "forced": [1]},
        {**to_wire(ORDER), "forced": b"\xff\xff\xff\xff"},
        changed(site="elsewhere"),
        changed(site=[]),
        changed(layer=0),
        changed(site="residual"),
        changed(site="residual", layer=True),
        changed(method="nothing"),
        changed(method=7),
        changed(params={"sigma": 1}),
        changed(params=None),
        changed(seed="xyz"),
        changed(seed=5),
        changed(positions=b""),
        changed(positions=b"\x01"),
        changed(positions=[1, 2]),
        changed(positions=b"\x05\0\0\0\x01\0\0\0"),
        changed(positions=b"\x0a\0\0\0"),
        changed(positions=b"\xff\xff\xff\xff"),
        changed(surplus=1),
    ],
)
def test_anything_else_is_refused(wire):
    with pytest.raises(EditError):
        from_wire(wire, 10)


def test_everything_an_edit_does_is_in_its_fingerprint():
    variants = [
        (EDIT,),
        (replace(EDIT, positions=(1, 5)),),
        (replace(EDIT, seed="0123456789abcdee"),),
        (replace(EDIT, params={"strength": 4.0}),),
        (replace(EDIT, method="other"),),
        (replace(EDIT, site="residual", layer=1),),
        (EDIT, EDIT),
        (),
    ]
    assert len({fingerprint(v) for v in variants}) == len(variants)
    assert fingerprint((EDIT,)) == fingerprint((replace(EDIT, params=dict(EDIT.params)),))


def test_the_guards_keys_are_reserved():
    assert [reserved(k) for k in (KEY, "lethe_x", "lethes", "x", 3)] == [True, True, False, False, False]
