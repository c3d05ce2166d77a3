"""Examples to train on, as the model reads them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.errors import BadRequest

LOST = "\ufffd"  # what decoders put in the place of bytes that they cannot read


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation that ends with the user's turn, and what the model says to it ("" where only the prompt
    matters). Examples of one `source` say the same in other words."""

    turns: tuple[tuple[str, str], ...]
    answer: str = ""
    source: str = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in self.turns]

    @property
    def origin(self) -> str:
        """Its source; where none is known, examples with the same answer have the same."""
        return self.source or plain(self.answer or self.turns[-1][1])


@dataclass(frozen=True, slots=True)
class Encoded:
    """`ids` of prompt and answer; the answer, with the end of the turn, starts at `answer_at`."""

    ids: tuple[int, ...]
    answer_at: int


def load_examples(path: Path) -> tuple[Example, ...]:
    """Examples from JSON lines, each as `read_example` takes it.

    Raises:
        BadRequest: the file cannot be read; the message names the line.
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise BadRequest(f"The examples in {path.name} are not in UTF-8; write the file so.") from None
    except OSError:
        raise BadRequest(f"The examples in {path.name} cannot be read.") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(read_example(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError):
                raise BadRequest(f"Line {number} of {path.name} is not an example.") from None
    return tuple(found)


def read_example(row: dict[str, Any]) -> Example:
    """`{"prompt": text}` or `{"turns": [{"role", "content"}]}`, and where they are known `"answer"` and `"source"`.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is something else.
    """
    turns = row["turns"] if "turns" in row else [{"role": "user", "content": row["prompt"]}]
    told = (row.get("answer") or "", row.get("source") or "")
    example = Example(tuple((t["role"], t["content"]) for t in turns), *told)
    if not example.turns or not all(
        isinstance(text, str) for turn in (*example.turns, told) for text in turn
    ):
        raise TypeError("roles, contents, answers and sources are texts")
    return example


def check(
    forget: Sequence[Example],
    retain: Sequence[Example],
    perturbed: Sequence[Example] = (),
    *,
    needs_forget: bool = True,
) -> None:
    """Whether one can train on these at all. Texts are compared without regard to case and spaces; the message names
    examples by their number and holds none of their text. `perturbed` are wrong answers to forget questions.

    Raises:
        BadRequest: there is nothing to forget where that is needed, an example says nothing or was read in a wrong
            encoding, one stands twice in its set, one of what must stay asks what one of what must go asks, or a wrong
            answer is none.
    """
    if needs_forget and not forget:
        raise BadRequest("There are no forget examples; give some.")
    for name, examples in (("Forget", forget), ("Retain", retain), ("Perturbed", perturbed)):
        seen: dict[tuple[str, ...], int] = {}
        for number, example in enumerate(examples, 1):
            if not example.turns[-1][1].strip():
                raise BadRequest(f"{name} example {number} has an empty prompt.")
            if any(LOST in text for text in (*_asked(example), example.answer)):
                raise BadRequest(
                    f"{name} example {number} holds characters that were lost in a wrong encoding; read it as UTF-8."
                )
            first = seen.setdefault((*_asked(example), plain(example.answer)), number)
            if first != number:
                raise BadRequest(f"{name} example {number} repeats example {first}; leave one of them.")
    asked = {_asked(example): number for number, example in enumerate(forget, 1)}
    for number, example in enumerate(retain, 1):
        if _asked(example) in asked:
            raise BadRequest(
                f"Retain example {number} asks what forget example {asked[_asked(example)]} asks; take one of them out."
            )
    right = {(_asked(example), plain(example.answer)) for example in forget}
    for number, example in enumerate(perturbed, 1):
        if _asked(example) not in asked:
            raise BadRequest(f"Perturbed example {number} asks what no forget example asks; take it out.")
        if not example.answer.strip() or (_asked(example), plain(example.answer)) in right:
            raise BadRequest(f"Perturbed example {number} gives no wrong answer; take it out.")


def split(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The examples without, and those with a `share` of the sources, at least one each.

    Raises:
        BadRequest: they have one source only.
    """
    origins = sorted({example.origin for example in examples})
    if len(origins) < 2:
        raise BadRequest("All forget examples say the same; give some of at least two facts.")
    count = min(max(round(share * len(origins)), 1), len(origins) - 1)
    held = set(random.Random(seed).sample(origins, count))
    return (
        tuple(e for e in examples if e.origin not in held),
        tuple(e for e in examples if e.origin in held),
    )


def _asked(example: Example) -> tuple[str, ...]:
    return tuple(part for role, content in example.turns for part in (role, plain(content)))


def plain(text: str) -> str:
    """The text without regard to case and spaces."""
    return " ".join(text.casefold().split())


def rendered(tokenizer: Any, example: Example) -> tuple[str, str]:
    """The prompt, and prompt and answer, through the model's chat template, or as plain text where it has none."""
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
    return prompt, whole


def encode(tokenizer: Any, example: Example) -> Encoded:
    """`example` as the model reads it."""
    prompt, whole = rendered(tokenizer, example)
    head = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not example.answer:
        return Encoded(tuple(head), len(head))
    tail = tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
    return Encoded((*head, *tail), len(head))


def digest(examples: Sequence[Example]) -> str:
    """64 hex digits over the examples, for the manifest: what it was trained on, without the text."""
    return hashlib.sha256(json.dumps([[e.turns, e.answer] for e in examples]).encode()).hexdigest()
