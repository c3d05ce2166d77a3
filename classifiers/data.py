"""Examples to train on, as the model reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation that ends with the user's turn, and what the model says to it ("" where only the prompt
    matters)."""

    turns: tuple[tuple[str, str], ...]
    answer: str = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in self.turns]


@dataclass(frozen=True, slots=True)
class Encoded:
    """`ids` of prompt and answer; the answer, with the end of the turn, starts at `answer_at`."""

    ids: tuple[int, ...]
    answer_at: int


def load_examples(path: Path) -> tuple[Example, ...]:
    """Examples from JSON lines: `{"prompt": text}` or `{"turns": [{"role", "content"}]}`, and `"answer"`.

    Raises:
        BadRequest: the file cannot be read; the message names the line.
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise BadRequest(f"The examples in {path.name} cannot be read.") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_example(json.loads(line)))
            except (ValueError, KeyError, TypeError):
                raise BadRequest(f"Line {number} of {path.name} is not an example.") from None
    return tuple(found)


def _example(row: dict[str, Any]) -> Example:
    turns = row["turns"] if "turns" in row else [{"role": "user", "content": row["prompt"]}]
    return Example(tuple((t["role"], t["content"]) for t in turns), row.get("answer") or "")


def encode(tokenizer: Any, example: Example) -> Encoded:
    """`example` through the model's chat template, or as plain text where it has none."""
    if tokenizer.chat_template:
        prompt = tokenizer.apply_chat_template(example.messages, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(
            [*example.messages, {"role": "assistant", "content": example.answer}], tokenize=False
        )
        if not whole.startswith(prompt):
            whole = prompt + example.answer + (tokenizer.eos_token or "")
    else:
        prompt = "\n".join(content for _, content in example.turns) + "\n"
        whole = prompt + example.answer + (tokenizer.eos_token or "")
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not example.answer:
        return Encoded(tuple(head), len(head))
    tail = tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
    return Encoded((*head, *tail), len(head))


def digest(examples: Sequence[Example]) -> str:
    """64 hex digits over the examples, for the manifest: what it was trained on, without the text."""
    return hashlib.sha256(json.dumps([[e.turns, e.answer] for e in examples]).encode()).hexdigest()
