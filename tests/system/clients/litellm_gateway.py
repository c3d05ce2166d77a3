"""LiteLLM's proxy: in front of Lethe, and in front of models elsewhere with Lethe's checks as its guardrail."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
from common import BASE, GIVEN, KEY, TOKENS, Report

CONFIG = Path(__file__).with_name("litellm.yaml")


@contextmanager
def proxy() -> Iterator[openai.OpenAI]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = {
        "LETHE_BASE": BASE,
        "LETHE_KEY": KEY,
        "LETHE_URL": GIVEN["url"],
        "LETHE_GATEWAY_KEY": GIVEN["gateway"],
    }
    command = [
        Path(sys.executable).with_name("litellm"),
        "--config",
        CONFIG,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with Path("proxy.log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        ends = time.monotonic() + 150
        while not _alive(url):
            assert process.poll() is None and time.monotonic() < ends, Path("proxy.log").read_text()[-3000:]
            time.sleep(0.5)
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="sk-of-this-test", max_retries=0, timeout=60)
    finally:
        process.terminate()
        process.wait(30)


def _alive(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/liveliness", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def main() -> None:
    report = Report()
    with proxy() as client:

        def asked(question: str, model: str, guardrail: str | None = None, **options: Any) -> Any:
            messages = [{"role": "user", "content": question}]
            extra = {"guardrails": [guardrail]} if guardrail else {}
            return client.chat.completions.create(
                model=model, messages=messages, temperature=0, max_tokens=TOKENS, extra_body=extra, **options
            )

        def chat(question: str, model: str = "behind", guardrail: str | None = None) -> str:
            return asked(question, model, guardrail).choices[0].message.content or ""

        def streamed(question: str, model: str = "behind", guardrail: str | None = None) -> str:
            said = ""
            try:
                for chunk in asked(question, model, guardrail, stream=True):
                    said += chunk.choices[0].delta.content or "" if chunk.choices else ""
            except openai.APIError as error:
                said += f" [{type(error).__name__}]"
            return said

        report.ask("in front", chat)
        report.ask("in front stream", streamed)
        clean, forgotten = GIVEN["clean"], GIVEN["forgotten"]
        report.fail("refused", lambda: chat(GIVEN["refused"]))
        report.fail("prompt blocked", lambda: chat(forgotten, "elsewhere", "lethe"))
        report.fail("answer blocked", lambda: chat(clean, "leaks", "lethe"))
        report.fail("guard away", lambda: chat(clean, "elsewhere", "away"))
        report.facts = {
            "passed": chat(clean, "elsewhere", "lethe"),
            "passed stream": streamed(clean, "elsewhere", "lethe"),
            "unguarded": chat(clean, "leaks"),
            "blocked stream": streamed(clean, "leaks", "lethe"),
        }
    report.tell()


main()
