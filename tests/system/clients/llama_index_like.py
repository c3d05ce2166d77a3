"""LlamaIndex's OpenAILike."""

from __future__ import annotations

from typing import Any

from common import BASE, FLAKY, GIVEN, KEY, MODEL, TOKENS, WEATHER, Report
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike


def get_weather(city: str) -> str:
    """Get the weather in a city"""
    return city


def model(base: str = BASE, key: str = KEY, retries: int = 0, **options: Any) -> OpenAILike:
    options = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 1024, **options}
    return OpenAILike(
        model=MODEL,
        api_base=base,
        api_key=key,
        temperature=0,
        max_tokens=TOKENS,
        max_retries=retries,
        **options,
    )


def chat(question: str) -> str:
    return model().chat([ChatMessage(role="user", content=question)]).message.content or ""


def streamed(question: str) -> str:
    parts = model().stream_chat([ChatMessage(role="user", content=question)])
    return "".join(part.delta or "" for part in parts)


def completed(question: str) -> str:
    return model(is_chat_model=False).complete(f"<|user|>{question}<|end|><|assistant|>").text


def main() -> None:
    report = Report()
    report.ask("chat", chat)
    report.ask("chat stream", streamed)
    report.ask("complete as chat", lambda question: model().complete(question).text)
    report.ask("complete", completed)
    report.ask("retried 503", lambda question: model(FLAKY, retries=2).complete(question).text)
    report.fail("refused", lambda: chat(GIVEN["refused"]))
    report.fail("bad key", lambda: model(key="lk_unknown").complete("Hello"))
    tool = FunctionTool.from_defaults(get_weather, description="Get the weather in a city")
    answer = model().chat_with_tools([tool], user_msg=WEATHER, tool_required=True)
    calls = model().get_tool_calls_from_response(answer, error_on_no_tool_call=False)
    report.facts = {"tool": [[call.tool_name, call.tool_kwargs] for call in calls]}
    report.tell()


main()
