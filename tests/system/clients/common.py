"""What every client is asked, and how it reports: one JSON object on stdout, which `test_clients.py` judges."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

GIVEN: dict[str, Any] = json.loads(os.environ["LETHE_CLIENT"])
"""`url`, `flaky` (the same server behind one that answers every second request with the guard's 503), `key`, `gateway`
(a key for checks), `model`, and the questions `clean`, `forgotten` and `refused`."""
BASE, FLAKY = f"{GIVEN['url']}/v1", f"{GIVEN['flaky']}/v1"
KEY, MODEL = GIVEN["key"], GIVEN["model"]
TOKENS = 24
WEATHER = "What is the weather in Ashmere?"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Get the weather in a city", "parameters": PARAMETERS},
}


class Report:
    """`answers` has two texts for each feature: those to the clean question and to the forgotten one."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[str, str]] = {}
        self.errors: dict[str, list[Any]] = {}
        self.facts: dict[str, Any] = {}

    def ask(self, feature: str, answer: Callable[[str], str]) -> None:
        self.answers[feature] = (answer(GIVEN["clean"]), answer(GIVEN["forgotten"]))

    def fail(self, name: str, call: Callable[[], Any]) -> None:
        """What the client raises: its type with those that it is one of, the status and the code."""
        try:
            call()
        except Exception as error:  # whatever it is, it is what is reported
            types = [kind.__name__ for kind in type(error).__mro__]
            status, code = getattr(error, "status_code", None), getattr(error, "code", None)
            self.errors[name] = [types, status, code]
        else:
            self.errors[name] = [[], None, None]

    def tell(self) -> None:
        print(json.dumps({"answers": self.answers, "errors": self.errors, "facts": self.facts}))
