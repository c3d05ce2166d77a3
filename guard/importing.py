"""What an import would write: each line read and checked on its own, before anything is compiled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def plan_import(
    lines: Iterable[str | bytes],
    existing: Mapping[str, StoredTarget],
    defaults: Mapping[str, Any],
    tenant: str | None,
) -> ImportPlan:
    """Read all lines but empty ones. A line without an id is about the target that its name stands for."""
    plan = ImportPlan()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            target_id, spec, forced = _read(line, existing, defaults, tenant)
            if target_id in plan.lines:
                raise BadRequest(f"This line repeats the id of line {plan.lines[target_id]}.", param="id")
        except LetheError as error:
            plan.rejected[number] = error
            continue
        plan.wanted[target_id], plan.lines[target_id] = spec, number
        if forced:
            plan.forced.add(target_id)
    return plan


def _read(
    line: str | bytes, existing: Mapping[str, StoredTarget], defaults: Mapping[str, Any], tenant: str | None
) -> tuple[str, TargetSpec, bool]:
    raw, forced = specs.take_force(specs.parse_json(line))
    spec = specs.read_spec(raw, None, defaults)
    if spec.id is None:
        spec = specs.read_spec(raw, slug_of(spec.name), defaults)
    assert spec.id is not None
    specs.demand_tenant(spec, tenant)
    known = existing.get(spec.id)
    if known is not None:
        specs.demand_tenant(known.spec, tenant)
    return spec.id, spec, forced
