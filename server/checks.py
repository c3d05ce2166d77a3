"""`check`: the verdict that a generation would get, without generating anything; `score`: how likely the model, as it
would then be edited, is to give a certain answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from guard.context import RequestContext
from guard.errors import BadRequest
from guard.pipeline import Guard
from guard.types import Admission, Decision, Match, Message, Prompt
from server import bodies, tools

Render = Callable[[dict[str, Any], tuple[Message, ...]], Awaitable[Prompt]]


@dataclass(frozen=True, slots=True)
class Judged:
    """What was judged, the verdict, and the request's tools without those that were taken out."""

    prompt: Prompt
    admission: Admission
    tools: tuple[Any, ...]


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
        context = self.context(body, "/admin/v1/check")
        judged = await self.judged(body, context)
        return describe(judged.admission.decision, context.withheld)

    def context(self, body: Mapping[str, Any], route: str) -> RequestContext:
        """That of a request to `route` for the tenant and the model that `body` names."""
        return RequestContext(
            uuid.uuid4().hex,
            route,
            time.time(),
            tenant=body.get("tenant"),
            model=body.get("model") or self.model,
        )

    async def judged(
        self, body: Mapping[str, Any], context: RequestContext, asides: Sequence[str] = ()
    ) -> Judged:
        """The verdict on `body` as on that of a generation, `asides` being judged beside it; `context` then tells what
        was taken out of its tools.

        Raises:
            BadRequest: the body cannot be rendered.
        """
        request = {key: value for key, value in body.items() if key != "tenant" and value is not None}
        request.setdefault("model", self.model)
        request = await tools.withhold(request, context, self.guard.tools)
        facts = bodies.facts(request, max_n=self.max_n)
        rendered = await self.render(request, facts.messages)
        prompt = replace(rendered, asides=(*facts.asides, *asides))
        return Judged(prompt, await self.guard.admit(prompt, context), tuple(request.get("tools") or ()))


class Engine(Protocol):
    """What scores an answer: see `guard.engine.client.GuardedAsyncLLM.score`."""

    async def score(
        self, read_prompt: Prompt, admission: Admission, continuation: Sequence[int]
    ) -> tuple[float, ...] | None: ...


@dataclass(frozen=True)
class Scorer:
    """Judges as `checker` does and asks `engine` for likelihoods; `encode` gives the token ids of a text."""

    checker: Checker
    engine: Engine
    encode: Callable[[str], list[int]]

    async def __call__(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`body` as for the check, and the `continuation` whose likelihood is asked for. Its `logprobs` are natural
        logarithms, one for each of `token_ids`; null where the answer would not come from the model.

        Raises:
            BadRequest: the body cannot be rendered, or is too long for the model.
        """
        said = {key: value for key, value in body.items() if key != "continuation"}
        context = self.checker.context(said, "/admin/v1/score")
        judged = await self.checker.judged(said, context)
        ids = self.tokens(body["continuation"])
        found = await self.engine.score(judged.prompt, judged.admission, ids)
        scores = None if found is None else [round(score, 6) for score in found]
        verdict = describe(judged.admission.decision, context.withheld)
        return {**verdict, "token_ids": ids, "logprobs": scores}

    def tokens(self, continuation: str) -> list[int]:
        """
        Raises:
            BadRequest: there are none.
        """
        ids = self.encode(continuation)
        if not ids:
            raise BadRequest("continuation holds no token.", param="continuation")
        return ids


def describe(decision: Decision, withheld: Sequence[Match] = ()) -> dict[str, Any]:
    """A decision as the check answers it, with the matches of tools that were withheld."""
    targets = []
    known = {match.target_id for match in decision.matches}
    for match in (
        *decision.matches,
        *{m.target_id: m for m in withheld if m.target_id not in known}.values(),
    ):
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
    action = "intervene" if withheld and decision.action == "allow" else decision.action
    return {
        "decision": {
            "action": action,
            "targets": targets,
            "interventions": methods,
            "unread": [asdict(place) for place in decision.unread],
        },
        "snapshot": decision.snapshot,
        "timings_ms": {name: round(ms, 3) for name, ms in decision.timings_ms.items()},
    }
