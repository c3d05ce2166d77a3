"""Tools that a model is offered, as texts that the gate can judge."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from guard.types import Detection, Message, Prompt, Span

_WORD_ENDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[\W_]+")


@dataclass(frozen=True)
class Tool:
    """A tool by its `name` as a program writes it, and all that its definition says in words."""

    name: str
    description: str

    @cached_property
    def _named(self) -> str:
        return f"{self.name} {_WORD_ENDS.sub(' ', self.name)}."

    @property
    def prompt(self) -> Prompt:
        """The tool as a text: its name, also as separate words, and its description."""
        text = f"{self._named}\n{self.description}"
        return Prompt(text, messages=(Message("tool", text),))

    def matched(self, found: Sequence[Detection]) -> tuple[Detection, ...]:
        """Those detections in its prompt that are about the tool itself. A name counts where the tool has it; where
        the description has it, it speaks of another tool, and so does the sentence around it."""
        return tuple(d for d in found if any(self._own(d, span, found) for span in d.spans))

    def _own(self, detection: Detection, span: Span, found: Sequence[Detection]) -> bool:
        if detection.detector == "lexical":
            return span.start < len(self._named)
        names = [
            s
            for d in found
            if d.detector == "lexical" and d.target_id == detection.target_id
            for s in d.spans
        ]
        return not any(span.start < name.end and name.start < span.end for name in names)
