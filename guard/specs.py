"""From what clients write to a `TargetSpec`, and from a stored target to what clients read."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from guard.errors import BadRequest, Forbidden
from guard.targets import SLUG, StoredTarget, TargetSpec

READ_ONLY = ("state", "version", "created_at", "updated_at", "calibration", "artifacts", "error")
RESERVED_IDS = frozenset({"validate", "import", "export"})
"""Their paths are routes of the admin API."""
_ALTERNATIVES = ("threshold", "intervention")
_DETECTED_BY = ("name", "aliases", "description", "examples", "answers", "retain", "kind", "threshold")
_UNKNOWN = "extra_forbidden"
_FIELD = re.compile(r"[a-z_]+")


def parse_json(raw: str | bytes) -> dict[str, Any]:
    """A JSON object that can be stored and given back: no NaN, no infinity, no lone surrogates.

    Raises:
        BadRequest: it is anything else.
    """
    try:
        value = json.loads(raw)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise BadRequest("This is not valid JSON.") from None
    if not isinstance(value, dict):
        raise BadRequest("This must be a JSON object.")
    return value


def take_force(raw: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The object without its `force` flag, and the flag."""
    rest = dict(raw)
    force = rest.pop("force", False)
    if not isinstance(force, bool):
        raise BadRequest("force must be true or false.", param="force")
    return rest, force


def read_spec(raw: Mapping[str, Any], target_id: str | None, defaults: Mapping[str, Any]) -> TargetSpec:
    """A valid specification for `target_id`. What only reads show is ignored, so a read can be written back.

    Raises:
        BadRequest: a field is missing, unknown or refused; `param` names it.
    """
    written = {key: value for key, value in raw.items() if key not in READ_ONLY}
    if target_id is not None and written.setdefault("id", target_id) != target_id:
        raise BadRequest(f"The body's id must be '{target_id}', as in the path, or be left out.", param="id")
    try:
        spec = TargetSpec.model_validate({**defaults, **written})
    except ValidationError as error:
        field, message = next(problems(error))
        raise BadRequest(message, param=field) from None
    if spec.id in RESERVED_IDS:
        raise BadRequest(f"'{spec.id}' cannot be the id of a target; choose another.", param="id")
    return spec


def faults(raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(field, one plain sentence) for every field that makes `read_spec` refuse a target by itself."""
    written = {key: value for key, value in raw.items() if key not in READ_ONLY}
    try:
        TargetSpec.model_validate({**defaults, **written})
    except ValidationError as error:
        return list(problems(error))
    return []


def problems(error: ValidationError, model: type[BaseModel] = TargetSpec) -> Iterator[tuple[str, str]]:
    """(field, one plain sentence) for each wrong field, misspelt ones first: they explain the others."""
    clearest: dict[Any, Any] = {}
    for item in error.errors():
        top = item["loc"][:1]
        if top not in clearest or _clarity(item) > _clarity(clearest[top]):
            clearest[top] = item
    for item in sorted(clearest.values(), key=lambda item: item["type"] != _UNKNOWN):
        where = ".".join(str(p) for p in item["loc"] if isinstance(p, int) or _FIELD.fullmatch(p))
        if item["type"] == _UNKNOWN:
            name = str(item["loc"][-1])
            near = difflib.get_close_matches(name, model.model_fields, 1, 0.6)
            yield (
                ".".join((*where.split(".")[:-1], name)),
                f"There is no field '{name}'" + (f"; did you mean '{near[0]}'?" if near else "."),
            )
        elif item["type"] == "missing":
            yield where, f"{where} is required."
        else:
            message = item["msg"].removeprefix("Value error, ").rstrip(".")
            yield where, f"{where}: {message[:1].lower()}{message[1:]}."


def _clarity(item: Any) -> tuple[int, bool]:
    """Of a union's branches, the one that came furthest is the one that was meant."""
    return len(item["loc"]), item["type"] == _UNKNOWN


def merge(stored: TargetSpec, changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` laid over a target (RFC 7396): null resets a field, objects merge, the rest is replaced."""
    return _merge(
        written_form(stored), {k: v for k, v in changes.items() if k not in READ_ONLY}, _ALTERNATIVES
    )


def _merge(
    base: Mapping[str, Any], changes: Mapping[str, Any], whole: tuple[str, ...] = ()
) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key not in whole:
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def same_detection(one: TargetSpec, other: TargetSpec) -> bool:
    """Whether a change leaves alone everything that decides which prompts match."""
    return all(getattr(one, name) == getattr(other, name) for name in _DETECTED_BY)


def belongs(spec: TargetSpec, tenant: str | None) -> bool:
    """Whether a caller confined to `tenant` may see and change the target; None is confined to nothing."""
    return tenant is None or spec.scope.tenants == (tenant,)


def mentions(stored: StoredTarget, text: str) -> bool:
    """Whether `text` stands in the target's id, a name or the reference, in upper or lower case."""
    wanted = text.casefold()
    told = (stored.id, *stored.spec.names(), stored.spec.reference or "")
    return any(wanted in one.casefold() for one in told)


def demand_tenant(spec: TargetSpec, tenant: str | None) -> None:
    if not belongs(spec, tenant):
        raise Forbidden(
            f'This key only writes targets with "scope": {{"tenants": ["{tenant}"]}}.', param="scope"
        )


def valid_id(target_id: str) -> bool:
    return SLUG.match(target_id) is not None


def written_form(spec: TargetSpec) -> dict[str, Any]:
    """The specification as a client would write it: what `PUT` and import take."""
    written = spec.model_dump(mode="json")
    written["threshold"] = {k: v for k, v in written["threshold"].items() if v is not None}
    return written


def read_form(
    stored: StoredTarget, state: str, calibration: Mapping[str, Any], artifacts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What reads show of a target."""
    return {
        **written_form(stored.spec),
        "id": stored.id,
        "state": state,
        "version": stored.version,
        "created_at": stored.created_at.isoformat(),
        "updated_at": stored.updated_at.isoformat(),
        "calibration": dict(calibration),
        "artifacts": [dict(one) for one in artifacts],
    }
