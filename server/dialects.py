"""What gateways ask and want to be told, in their own words. `DIALECTS` is the table: one row for each route.

A dialect is the model of a request's body. `question` says what is to be judged, `tell` says the verdict: whether, and
never of what, how surely or by which word. Gateways send more than is judged here, so unknown fields are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

from guard.errors import BadRequest, content_filter
from server import errors
from server.bodies import strings

Json = dict[str, Any]

FILTERED = content_filter()
INPUT, OUTPUT = "lethe input", "lethe output"


@dataclass(frozen=True, slots=True)
class Question:
    """A request's `messages` with its `tools` and what else its model reads (`asides`), or `answers` that a model has
    given to them, or both."""

    messages: tuple[Json, ...] = ()
    tools: tuple[Json, ...] = ()
    asides: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the request was `matched`, what may be said `instead` of each answer (None: it may be said), and the
    tools that are left where some were taken out (None: none was)."""

    matched: bool = False
    instead: tuple[str | None, ...] = ()
    tools: tuple[Json, ...] | None = None

    @property
    def said(self) -> bool:
        """Whether an answer says what is forbidden."""
        return any(text is not None for text in self.instead)

    @property
    def blocked(self) -> bool:
        """Whether a gateway that can only let pass or block must block."""
        return self.matched or self.said or self.tools is not None


class Dialect(BaseModel):
    """The body of a check."""

    def question(self) -> Question:
        """What is to be judged.

        Raises:
            BadRequest: there is something that cannot be.
        """
        raise NotImplementedError

    def tell(self, verdict: Verdict) -> Json:
        raise NotImplementedError


class NemoOptions(BaseModel):
    """Names of configurations are taken and mean nothing here: what is enforced are the targets."""

    config: Any = None

    @field_validator("config")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            raise ValueError("rails of a request's own cannot be run here; targets are registered instead")
        return value


class NemoChecks(Dialect):
    """NeMo Guardrails' microservice, and TrustyAI's server. The last message is an answer if the assistant says it; all
    others are the request."""

    messages: list[Json] = Field(min_length=1)
    model: str | None = None
    tools: list[Json] | None = None
    guardrails: NemoOptions | None = None

    def question(self) -> Question:
        *before, last = self.messages
        answered = last.get("role") == "assistant"
        return Question(
            messages=tuple(before if answered else self.messages),
            tools=tuple(self.tools or ()),
            answers=tuple(_spoken(last)) if answered else (),
            model=self.model,
        )

    def tell(self, verdict: Verdict) -> Json:
        rails = self._rails(verdict)
        activated = [
            {"type": name.split()[1], "name": name, "decisions": [], "executed_actions": [], "stop": stop}
            for name, stop in rails.items()
        ]
        return {
            "status": _status(verdict.blocked),
            "rails_status": {name: {"status": _status(stop)} for name, stop in rails.items()},
            "guardrails_data": {"log": {"activated_rails": activated, "stats": {}}},
        }

    def _rails(self, verdict: Verdict) -> dict[str, bool]:
        """The rails that were run, and whether each blocks."""
        asked = self.question()
        withheld = verdict.matched or verdict.tools is not None
        ran = {INPUT: withheld} if asked.messages else {}
        return ran | ({OUTPUT: verdict.said} if self.messages[-1].get("role") == "assistant" else {})


class NemoLibrary(NemoChecks):
    """The server of NeMo Guardrails' library."""

    def tell(self, verdict: Verdict) -> Json:
        if not verdict.blocked:
            return {"status": "passed", "content": " ".join(strings(self.messages[-1].get("content")))}
        rail = next(name for name, stop in self._rails(verdict).items() if stop)
        return {"status": "blocked", "content": FILTERED.message, "rail": rail}


class Said(BaseModel):
    """A message as a webhook is shown it: of what is not text it sees nothing."""

    role: str
    content: str


class Messages(BaseModel):
    messages: list[Said]


class Choice(BaseModel):
    message: Said


class Choices(BaseModel):
    choices: list[Choice]


class WebhookRequest(Dialect):
    """agentgateway's webhook for requests."""

    body: Messages

    def question(self) -> Question:
        said = [(m.role.lower(), m.content) for m in self.body.messages if m.content.strip()]
        # Results of tools come without the call that they belong to, which chat templates ask for.
        roles = ("system", "developer", "user", "assistant")
        return Question(tuple({"role": r if r in roles else "user", "content": c} for r, c in said))

    def tell(self, verdict: Verdict) -> Json:
        return _rejected() if verdict.blocked else _passed()


class WebhookResponse(Dialect):
    """agentgateway's webhook for answers. It rejects: on streams the gateway drops what a webhook masks, and gives
    the answer as it came."""

    body: Choices

    def question(self) -> Question:
        return Question(answers=tuple(choice.message.content for choice in self.body.choices))

    def tell(self, verdict: Verdict) -> Json:
        return _rejected() if verdict.blocked else _passed()


class WebhookMask(WebhookResponse):
    """The same, for routes without streams: an answer ends in front of what must not be said."""

    def tell(self, verdict: Verdict) -> Json:
        if not verdict.blocked:
            return _passed()
        choices = [
            {"message": {"role": c.message.role, "content": c.message.content if text is None else text}}
            for c, text in zip(self.body.choices, verdict.instead, strict=True)
        ]
        return {"action": {"body": {"choices": choices}, "reason": FILTERED.code}}


class LiteLlm(Dialect):
    """LiteLLM's generic guardrail. Answers are blocked and never rewritten: on streams it drops what was rewritten
    unless it is set up otherwise, and gives the answer as it came. Requests lose tools that are to be forgotten."""

    input_type: Literal["request", "response"]
    texts: list[str] | None = None
    structured_messages: list[Json] | None = None
    images: list[Any] | None = None
    tools: list[Json] | None = None
    tool_calls: list[Any] | None = None
    model: str | None = None

    def question(self) -> Question:
        if self.images:
            raise BadRequest("Images cannot be judged; send text only.", param="images")
        texts, calls = self.texts or [], [" ".join(strings(call)) for call in self.tool_calls or ()]
        if self.input_type == "response":
            return Question(answers=(*texts, *calls), model=self.model)
        asked = self.structured_messages or [{"role": "user", "content": text} for text in texts if text]
        known = {message.get("content") for message in asked if isinstance(message.get("content"), str)}
        beside = [text for text in (*texts, *calls) if text not in known]
        return Question(tuple(asked), tuple(self.tools or ()), tuple(beside), model=self.model)

    def tell(self, verdict: Verdict) -> Json:
        # An empty list of tools would leave the request as it was.
        if verdict.matched or verdict.said or verdict.tools == ():
            return {"action": "BLOCKED", "blocked_reason": FILTERED.message}
        if verdict.tools is not None:
            return {"action": "GUARDRAIL_INTERVENED", "tools": list(verdict.tools)}
        return {"action": "NONE"}


DIALECTS: Mapping[str, type[Dialect]] = {
    "/v1/guardrail/checks": NemoChecks,
    "/v1/checks": NemoLibrary,
    "/request": WebhookRequest,
    "/response": WebhookResponse,
    "/response/mask": WebhookMask,
    "/beta/litellm_basic_guardrail_api": LiteLlm,
}


def _status(blocked: bool) -> str:
    return "blocked" if blocked else "success"


def _spoken(message: Json) -> Sequence[str]:
    """What an answer says, and each of the calls that it makes."""
    calls = message.get("tool_calls")
    texts = [message.get("content"), *(calls if isinstance(calls, list) else ())]
    return [" ".join(strings(text)) for text in texts]


def _passed() -> Json:
    return {"action": {"reason": "pass"}}


def _rejected() -> Json:
    body = errors.body(FILTERED.message, FILTERED.kind, FILTERED.code)
    return {"action": {"body": json.dumps(body), "status_code": FILTERED.status, "reason": FILTERED.code}}
