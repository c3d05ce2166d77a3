"""LangChain's ChatOpenAI."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

from common import BASE, FLAKY, GIVEN, KEY, MODEL, TOKENS, TOOL, WEATHER, Report
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Place(BaseModel):
    """Where somebody was born."""

    name: Literal["Breton Wickley", "Teric Pennby"]
    birthplace: Literal["Marrowgate", "Kestrel Bay", "Ashmere"]


def model(base: str = BASE, **options: Any) -> ChatOpenAI:
    key = options.pop("key", KEY)
    retries = options.pop("retries", 0)
    return ChatOpenAI(
        base_url=base,
        api_key=key,
        model=MODEL,
        temperature=0,
        max_tokens=TOKENS,
        max_retries=retries,
        **options,
    )


def invoked(question: str) -> str:
    return model().invoke([SystemMessage("You are helpful."), HumanMessage(question)]).text


def streamed(question: str) -> str:
    return "".join(chunk.text for chunk in model().stream(question))


def awaited(question: str) -> str:
    async def used() -> str:
        return "".join([chunk.text async for chunk in model().astream(question)])

    return asyncio.run(used())


def responded(question: str) -> str:
    return model(use_responses_api=True).invoke(question).text


def structured(name: str) -> list[str]:
    asked = f'Give me JSON with "name" and "birthplace" of {name}.'
    place = model().with_structured_output(Place, method="json_schema").invoke(asked)
    return [place.name, place.birthplace]


def with_tools_beside(question: str) -> str:
    answer = model().bind_tools([TOOL]).invoke(question)
    return answer.text or json.dumps(answer.tool_calls)


def main() -> None:
    report = Report()
    report.ask("invoke", invoked)
    report.ask("stream", streamed)
    report.ask("async stream", awaited)
    report.ask("responses", responded)
    report.ask("tools beside", with_tools_beside)
    report.ask("retried 503", lambda question: model(FLAKY, retries=2).invoke(question).text)
    report.fail("refused", lambda: invoked(GIVEN["refused"]))
    report.fail("refused stream", lambda: streamed(GIVEN["refused"]))
    report.fail("bad key", lambda: model(key="lk_unknown").invoke("Hello"))

    bound = model().bind_tools([TOOL])
    called = bound.invoke(WEATHER)
    (call,) = called.tool_calls
    turns = [HumanMessage(WEATHER), called, ToolMessage("rainy", tool_call_id=call["id"])]
    report.facts = {
        "tool": [call["name"], call["args"]],
        "told": bound.invoke(turns).text,
        "usage": called.usage_metadata["total_tokens"],
        "structured": structured("Breton Wickley"),
    }
    report.tell()


main()
