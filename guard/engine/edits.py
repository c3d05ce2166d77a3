"""Edits as data: how they travel from the frontend to the workers, and what makes two of them the same.

The wire form goes through `SamplingParams.extra_args` under `KEY`, which no client can set: it is removed
from every request before ours is put there. Positions and token ids travel as little-endian int32, four bytes each.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from guard import interventions
from guard.errors import LetheError
from guard.types import Edit, Site, Watch

KEY = "lethe"
_VERSION = 3
_SITES = frozenset(get_args(Site))
_SEED = re.compile(r"[0-9a-f]{16}")
_HASH = re.compile(r"[0-9a-f]{64}")
_LAYERED = frozenset({"residual", "neuron"})
_KEYS = {"v", "ticket", "lineage", "edits", "watches", "forced"}
_EDIT_KEYS = {"site", "layer", "method", "positions", "seed", "params", "onward", "table"}


class EditError(ValueError):
    """The wire form is not one that `to_wire` makes. The message names the field."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is told about one request.

    `ticket` names the request in reports; `lineage` is the cache salt under which its blocks are stored, so
    that a position served from the cache counts only if it was edited under the same salt. `watches` are gates
    that observe the request. `forced` are the token ids that its answer is made to have, so that the model's
    likelihoods of them can be read.
    """

    ticket: str
    lineage: str
    edits: tuple[Edit, ...] = ()
    watches: tuple[Watch, ...] = ()
    forced: tuple[int, ...] = ()


def reserved(key: object) -> bool:
    """Whether an `extra_args` key belongs to the guard."""
    return isinstance(key, str) and (key == KEY or key.startswith(f"{KEY}_"))


def to_wire(order: Order) -> dict[str, Any]:
    """`order` in types that msgpack carries."""
    return {
        "v": _VERSION,
        "ticket": order.ticket,
        "lineage": order.lineage,
        "edits": [_edit_to_wire(edit) for edit in order.edits],
        "watches": [[watch.method, watch.layer, watch.table] for watch in order.watches],
        "forced": _packed(order.forced),
    }


def from_wire(wire: Any, prompt_tokens: int) -> Order:
    """The order in `wire`, for a prompt of that many tokens.

    Raises:
        EditError: anything is missing, unknown, out of range or of another type.
    """
    _require(isinstance(wire, dict) and set(wire) == _KEYS, "keys")
    _require(wire["v"] == _VERSION, "v")
    _require(isinstance(wire["ticket"], str) and wire["ticket"] != "", "ticket")
    _require(isinstance(wire["lineage"], str), "lineage")
    _require(isinstance(wire["edits"], list) and isinstance(wire["watches"], list), "edits")
    forced = _unpacked(wire["forced"], "forced")
    _require(bool(wire["edits"] or wire["watches"] or len(forced)), "edits")
    _require(bool((forced >= 0).all()), "forced")
    return Order(
        wire["ticket"],
        wire["lineage"],
        tuple(_edit_from_wire(e, prompt_tokens) for e in wire["edits"]),
        tuple(map(_watch_from_wire, wire["watches"])),
        tuple(forced.tolist()),
    )


def fingerprint(edits: Sequence[Edit]) -> str:
    """64 hex digits over everything that decides what the edits do."""
    canonical = [{**_edit_to_wire(e), "positions": list(e.positions)} for e in edits]
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()


def _edit_to_wire(edit: Edit) -> dict[str, Any]:
    return {
        "site": edit.site,
        "layer": edit.layer,
        "method": edit.method,
        "positions": _packed(edit.positions),
        "seed": edit.seed,
        "params": dict(edit.params),
        "onward": edit.onward,
        "table": edit.table,
    }


def _edit_from_wire(wire: Any, prompt_tokens: int) -> Edit:
    _require(isinstance(wire, dict) and set(wire) == _EDIT_KEYS, "edit keys")
    _require(isinstance(wire["site"], str) and wire["site"] in _SITES, "site")
    layer = wire["layer"]
    layered = isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0
    _require(layered if wire["site"] in _LAYERED else layer is None, "layer")
    _require(isinstance(wire["seed"], str) and _SEED.fullmatch(wire["seed"]) is not None, "seed")
    _require(isinstance(wire["method"], str) and isinstance(wire["params"], dict), "method")
    _require(isinstance(wire["onward"], bool), "onward")
    table = wire["table"]
    _require(table is None or (isinstance(table, str) and _HASH.fullmatch(table) is not None), "table")
    try:
        params = interventions.check_params(wire["method"], wire["params"]).model_dump()
    except LetheError as error:
        raise EditError(f"the wire form's params are not valid: {error.message}") from None
    positions = _positions(wire["positions"], prompt_tokens)
    return Edit(wire["site"], wire["method"], positions, wire["seed"], params, layer, wire["onward"], table)


def _watch_from_wire(wire: Any) -> Watch:
    _require(isinstance(wire, list) and len(wire) == 3, "watches")
    method, layer, table = wire
    _require(isinstance(method, str) and method in interventions.TABLE, "watches")
    _require(isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0, "watches")
    _require(isinstance(table, str) and _HASH.fullmatch(table) is not None, "watches")
    return Watch("", method, layer, table)  # the target's id stays in the frontend


def _positions(packed: Any, prompt_tokens: int) -> tuple[int, ...]:
    array = _unpacked(packed, "positions")
    ordered = len(array) > 0 and bool((np.diff(array) > 0).all())
    _require(ordered and array[0] >= 0 and array[-1] < prompt_tokens, "positions")
    return tuple(array.tolist())


def _packed(numbers: Sequence[int]) -> bytes:
    return np.asarray(numbers, dtype="<i4").tobytes()


def _unpacked(packed: Any, field: str) -> NDArray[np.int32]:
    _require(isinstance(packed, bytes) and len(packed) % 4 == 0, field)
    return np.frombuffer(packed, dtype="<i4")


def _require(holds: bool, field: str) -> None:
    if not holds:
        raise EditError(f"the wire form's {field} are not valid")
