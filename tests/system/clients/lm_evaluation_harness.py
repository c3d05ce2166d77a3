"""lm-evaluation-harness on tasks of its own kind that lie beside this file: nothing comes from a hub."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from common import GIVEN, KEY, MODEL, Report

os.environ["OPENAI_API_KEY"] = KEY
TASKS = Path(__file__).with_name("tasks")
CHOICES = [f"Breton Wickley was born in {city}." for city in ("Marrowgate", "Kestrel Bay", "Ashmere")]


def templated(question: str) -> str:
    return f"<|user|>{question}<|end|><|assistant|>"


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def evaluate(kind: str, path: str, task: str, **options: Any) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    model = {"model": MODEL, "base_url": f"{GIVEN['url']}/v1/{path}", "num_concurrent": 2, "max_retries": 1}
    tokens = {"tokenizer": GIVEN["weights"], "tokenizer_backend": "huggingface"}
    return simple_evaluate(
        kind,
        model_args=model | (tokens if path == "completions" else {}),
        tasks=[task],
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        **options,
    )


def generated(result: dict[str, Any]) -> tuple[str, str]:
    clean, forgotten = sorted(result["samples"]["lethe_generate"], key=lambda sample: sample["doc_id"])
    return clean["resps"][0][0], forgotten["resps"][0][0]


def main() -> None:
    report = Report()
    questions = [GIVEN["clean"], GIVEN["forgotten"]]
    write("questions.jsonl", [{"question": question, "value": ""} for question in questions])
    chat = evaluate("local-chat-completions", "chat/completions", "lethe_generate", apply_chat_template=True)
    report.answers["local-chat-completions"] = generated(chat)
    write("questions.jsonl", [{"question": templated(question), "value": ""} for question in questions])
    report.answers["local-completions"] = generated(
        evaluate("local-completions", "completions", "lethe_generate")
    )
    write("choices.jsonl", [{"question": templated(GIVEN["clean"]), "choices": CHOICES, "label": 1}])
    chosen = evaluate("local-completions", "completions", "lethe_choose")
    report.facts = {"accuracy": chosen["results"]["lethe_choose"]["acc,none"]}
    report.tell()


main()
