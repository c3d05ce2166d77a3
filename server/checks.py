"""`check`: the verdict that a generation would get, without generating anything."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from guard.context import RequestContext
from guard.pipeline import Guard
from guard.types import Decision, Message, Prompt
from server import bodies

Render = Callable[[dict[str, Any], tuple[Message, ...]], Awaitable[Prompt]]


@dataclass(frozen=True)
class Checker:
    """Renders with the application's own handlers and judges with the guard that serves."""

    guard: Guard
    render: Render
    model: str
    max_n: int

    async def __call__(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`body` holds `messages` or `prompt`, and may hold `tenant`, `model`, `tools`, `response_format`.

        Raises:
            BadRequest: the body cannot be rendered.
        """
        request = {key: value for key, value in body.items() if key != "tenant" and value is not None}
        request.setdefault("model", self.model)
        facts = bodies.facts(request, max_n=self.max_n)
        prompt = replace(await self.render(request, facts.messages), asides=facts.asides)
        context = RequestContext(
            uuid.uuid4().hex,
            "/admin/v1/check",
            time.time(),
            tenant=body.get("tenant"),
            model=request["model"],
        )
        return describe((await self.guard.admit(prompt, context)).decision)


def describe(decision: Decision) -> dict[str, Any]:
    """A decision as the check answers it."""
    targets = []
    for match in decision.matches:
        row: dict[str, Any] = {
            "id": match.target_id,
            "score": round(match.score, 4),
            "threshold": round(match.threshold, 4),
            "detector": match.detector,
            "evidence": [asdict(e) for e in match.evidence],
        }
        targets.append(row | ({"shadow": True} if match.shadow else {}))
    methods = [{"method": c.method, "params": dict(c.params)} for c in decision.chosen]
    if decision.action == "refuse":
        methods = [{"method": "refusal", "params": {}}]
    return {
        "decision": {"action": decision.action, "targets": targets, "interventions": methods},
        "snapshot": decision.snapshot,
        "timings_ms": {name: round(ms, 3) for name, ms in decision.timings_ms.items()},
    }
