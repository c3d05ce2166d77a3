"""Checks for gateways: may this be asked, may this be said. The prompt is judged as a generation's is, an answer as the
guard of answers does; nothing is generated, and nothing is told but whether.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Header
from fastapi.responses import JSONResponse

from guard.context import RequestContext
from guard.detection.literals import Ending
from guard.errors import BadRequest, GuardUnavailable, LetheError
from guard.speech import note_hits
from guard.types import Admission, Prompt
from server.admin.route import AdminRoute, answers, json_body, takes, validated
from server.admin.schemas import OpenObject
from server.auth import Permission, Principal
from server.checks import Checker
from server.dialects import DIALECTS, Dialect, Question, Verdict

log = logging.getLogger("lethe.guard")

Json = dict[str, Any]
Record = Callable[[RequestContext, int, float], None]
Require = Callable[[str | None, Permission], Principal]


@dataclass(frozen=True)
class Guardrail:
    """Judges what gateways ask, and gives each check that was made to `record`, as a generation is."""

    check: Checker
    record: Record
    clock: Callable[[], float] = time.time

    async def __call__(self, asked: Question, context: RequestContext) -> Verdict:
        """Raises:
        BadRequest: there is nothing to judge, or it cannot be rendered.
        GuardUnavailable: it could not be judged, and a target forbids to pass it.
        """
        if not asked.messages and not asked.answers:
            raise BadRequest("There is no text to check.")
        try:
            verdict = await self._judged(asked, context)
        except LetheError as error:
            context.failure = error
            raise
        except Exception as error:
            log.exception("a check failed")
            context.failure = GuardUnavailable(
                "The request could not be checked; try again.", reason="detection"
            )
            raise context.failure from error
        finally:
            failure = context.failure
            if failure is None or failure.status >= 500:
                self.record(context, failure.status if failure else 200, self.clock())
        return verdict

    async def _judged(self, asked: Question, context: RequestContext) -> Verdict:
        prompt, admission, tools = Prompt(""), None, None
        if asked.messages:
            # Rendered for the model of this server; the gateway's may be another, and is what scopes name.
            body: Json = {"messages": list(asked.messages)} | (
                {"tools": list(asked.tools)} if asked.tools else {}
            )
            judged = await self.check.judged(body, context, asked.asides)
            prompt, admission = judged.prompt, judged.admission
            context.admissions[prompt.token_ids] = admission
            tools = judged.tools if context.withheld else None
        instead = tuple([await self._instead(text, prompt, context, admission) for text in asked.answers])
        verdict = Verdict(admission is not None and admission.matched, instead, tools)
        context.events.append({"event": "check", "blocked": verdict.blocked})
        return verdict

    async def _instead(
        self, text: str, prompt: Prompt, context: RequestContext, admission: Admission | None
    ) -> str | None:
        """What may be said in the place of an answer; None where it may be said. It may have been cut where somebody
        wanted it to end."""
        speech = self.check.guard.speech(prompt, context, admission)
        await speech.say(text, ended=Ending.CHOSEN)
        if speech.hit is None:
            return None
        note_hits(context, [(speech.hit, "cut")])
        return speech.text.strip() or self.check.guard.reply_after(speech.hit).text


def guardrail_router(guardrail: Guardrail, require: Require) -> APIRouter:
    """A route for each dialect; like those of the admin API they ask for the key and answer errors themselves."""
    router = APIRouter(route_class=AdminRoute, tags=["guardrail"])

    async def caller(
        authorization: str | None = Header(None, include_in_schema=False),
        x_api_key: str | None = Header(None, include_in_schema=False),
    ) -> Principal:
        key = authorization or (f"Bearer {x_api_key}" if x_api_key else None)
        return require(key, Permission.GUARDRAIL)

    for path, dialect in DIALECTS.items():
        router.add_api_route(
            path,
            _handler(path, dialect, guardrail, caller),
            methods=["POST"],
            summary="May this be asked, or said",
            operation_id=path.strip("/").replace("/", "_"),
            responses=answers(_200=OpenObject),
            openapi_extra=takes(dialect),
        )
    return router


def _handler(
    path: str, dialect: type[Dialect], guardrail: Guardrail, caller: Callable[..., Awaitable[Principal]]
) -> Callable[..., Awaitable[JSONResponse]]:
    async def handle(who: Principal = Depends(caller), body: Json = Depends(json_body)) -> JSONResponse:
        spoken = validated(dialect, body)
        asked = spoken.question()
        context = guardrail.check.context({"tenant": who.tenant, "model": asked.model}, path)
        verdict = await guardrail(asked, context)
        return JSONResponse(spoken.tell(verdict), headers={"x-lethe-decision-id": context.decision_id})

    return handle
