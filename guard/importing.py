"""What an import would write: each line read and checked on its own, before anything is compiled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from guard import specs
from guard.errors import BadRequest, LetheError
from guard.targets import StoredTarget, TargetSpec, slug_of


@dataclass(slots=True)
class ImportPlan:
    """Targets to write by id, the line that each stands in, and the lines that are refused."""

    wanted: dict[str, TargetSpec] = field(default_factory=dict)
    forced: set[str] = field(default_factory=set)
    lines: dict[str, int] = field(default_factory=dict)
    rejected: dict[int, LetheError] = field(default_factory=dict)

    def report(self) -> list[dict[str, Any]]:
        return [{"line": line, "error": error.message} for line, error in sorted(self.rejected.items())]


@dataclass(frozen=True, slots=True)
class Row:
    """One target as it was sent, and the line that it stands in; `error`: it cannot be read."""

    number: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    error: LetheError | None = None


def json_rows(lines: Iterable[str | bytes]) -> Iterator[Row]:
    """All lines but empty ones, each a JSON object."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield Row(number, specs.parse_json(line))
            except BadRequest as error:
                yield Row(number, error=error)


def plan_import(
    rows: Iterable[Row],
    existing: Mapping[str, StoredTarget],
    defaults: Mapping[str, Any],
    tenant: str | None,
) -> ImportPlan:
    """Read all rows. One without an id is about the target that its name stands for."""
    plan = ImportPlan()
    for row in rows:
        try:
            if row.error is not None:
                raise row.error
            target_id, spec, forced = _read(row.fields, existing, defaults, tenant)
            if target_id in plan.lines:
                raise BadRequest(f"This line repeats the id of line {plan.lines[target_id]}.", param="id")
        except LetheError as error:
            plan.rejected[row.number] = error
            continue
        plan.wanted[target_id], plan.lines[target_id] = spec, row.number
        if forced:
            plan.forced.add(target_id)
    return plan


def _read(
    fields: Mapping[str, Any],
    existing: Mapping[str, StoredTarget],
    defaults: Mapping[str, Any],
    tenant: str | None,
) -> tuple[str, TargetSpec, bool]:
    raw, forced = specs.take_force(fields)
    spec = specs.read_spec(raw, None, defaults)
    if spec.id is None:
        spec = specs.read_spec(raw, slug_of(spec.name), defaults)
    assert spec.id is not None
    specs.demand_tenant(spec, tenant)
    known = existing.get(spec.id)
    if known is not None:
        specs.demand_tenant(known.spec, tenant)
    return spec.id, spec, forced
