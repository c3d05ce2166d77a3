"""openai-python, synchronous and not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import openai
from common import BASE, FLAKY, GIVEN, KEY, MODEL, TOKENS, TOOL, WEATHER, Report

client = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0)


def asked(question: str, **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": TOKENS, **options}


def chat(question: str, of: openai.OpenAI = client) -> str:
    return of.chat.completions.create(**asked(question)).choices[0].message.content or ""


def streamed(question: str) -> str:
    chunks = client.chat.completions.create(
        **asked(question), stream=True, stream_options={"include_usage": True}
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def helped(question: str) -> str:
    with client.chat.completions.stream(**asked(question)) as stream:
        return stream.get_final_completion().choices[0].message.content or ""


def completed(question: str) -> str:
    prompt = f"<|user|>{question}<|end|><|assistant|>"
    return (
        client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=TOKENS)
        .choices[0]
        .text
    )


def responded(question: str) -> str:
    made = client.responses.create(model=MODEL, input=question, temperature=0, max_output_tokens=TOKENS)
    return made.output_text


def responded_in_events(question: str) -> str:
    options: dict[str, Any] = {
        "model": MODEL,
        "input": question,
        "temperature": 0,
        "max_output_tokens": TOKENS,
    }
    with client.responses.stream(**options) as stream:
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert said == stream.get_final_response().output_text
    return said


def run(use: Callable[[openai.AsyncOpenAI], Awaitable[str]]) -> str:
    async def used() -> str:
        async with openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0) as made:
            return await use(made)

    return asyncio.run(used())


def awaited(question: str) -> str:
    async def use(of: openai.AsyncOpenAI) -> str:
        return (await of.chat.completions.create(**asked(question))).choices[0].message.content or ""

    return run(use)


def awaited_stream(question: str) -> str:
    async def use(of: openai.AsyncOpenAI) -> str:
        chunks = await of.chat.completions.create(**asked(question), stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices])

    return run(use)


def main() -> None:
    report = Report()
    report.ask("chat", chat)
    report.ask("chat stream", streamed)
    report.ask("stream helper", helped)
    report.ask("completions", completed)
    report.ask("responses", responded)
    report.ask("responses stream", responded_in_events)
    report.ask("async", awaited)
    report.ask("async stream", awaited_stream)
    patient = openai.OpenAI(base_url=FLAKY, api_key=KEY, max_retries=2)
    report.ask("retried 503", lambda question: chat(question, patient))

    stranger = openai.OpenAI(base_url=BASE, api_key="lk_unknown", max_retries=0)
    hasty = openai.OpenAI(base_url=FLAKY, api_key=KEY, max_retries=0)
    report.fail("refused", lambda: chat(GIVEN["refused"]))
    report.fail("refused stream", lambda: streamed(GIVEN["refused"]))
    report.fail("refused responses", lambda: responded(GIVEN["refused"]))
    report.fail("bad key", lambda: chat(GIVEN["clean"], stranger))
    report.fail("no such model", lambda: client.chat.completions.create(**asked("Hello", model="none")))
    report.fail("503", lambda: chat(GIVEN["clean"], hasty))
    chat(GIVEN["clean"], hasty)

    call = client.chat.completions.create(**asked(WEATHER, tools=[TOOL])).choices[0].message.tool_calls
    raw = client.chat.completions.with_raw_response.create(**asked(GIVEN["forgotten"]))
    report.facts = {
        "tool": [[c.function.name, c.function.arguments] for c in call or ()],
        "models": [model.id for model in client.models.list()],
        "headers": {name: raw.headers.get(name) for name in ("x-lethe-decision-id", "cache-control")},
        "raw": raw.parse().choices[0].message.content,
    }
    report.tell()


main()
