"""LiteLLM as a library."""

from __future__ import annotations

from typing import Any

import litellm
from common import BASE, FLAKY, GIVEN, KEY, MODEL, TOKENS, TOOL, WEATHER, Report

litellm.suppress_debug_info = True


def asked(question: str, **options: Any) -> Any:
    options = {"api_base": BASE, "api_key": KEY, "num_retries": 0, "max_retries": 0, **options}
    messages = [{"role": "user", "content": question}]
    options.setdefault("model", f"openai/{MODEL}")
    return litellm.completion(messages=messages, temperature=0, max_tokens=TOKENS, **options)


def chat(question: str, **options: Any) -> str:
    return asked(question, **options).choices[0].message.content or ""


def streamed(question: str) -> str:
    chunks = asked(question, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def hosted(question: str) -> str:
    messages = [{"role": "user", "content": question}]
    made = litellm.completion(
        f"hosted_vllm/{MODEL}", messages, api_base=BASE, api_key=KEY, temperature=0, max_tokens=TOKENS
    )
    return made.choices[0].message.content or ""


def main() -> None:
    report = Report()
    report.ask("completion", chat)
    report.ask("stream", streamed)
    report.ask("hosted_vllm", hosted)
    report.ask("retried 503", lambda question: chat(question, api_base=FLAKY, num_retries=2))
    report.fail("refused", lambda: chat(GIVEN["refused"]))
    report.fail("bad key", lambda: chat("Hello", api_key="lk_unknown"))
    report.fail("no such model", lambda: chat("Hello", model="openai/none"))
    report.fail("503", lambda: chat(GIVEN["clean"], api_base=FLAKY))
    chat(GIVEN["clean"], api_base=FLAKY)
    calls = asked(WEATHER, tools=[TOOL]).choices[0].message.tool_calls or ()
    report.facts = {"tool": [[call.function.name, call.function.arguments] for call in calls]}
    report.tell()


main()
