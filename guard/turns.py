"""Where the turns of a conversation stand in the rendered prompt."""

from __future__ import annotations

from collections.abc import Sequence

from guard.types import Message


def located(text: str, messages: Sequence[Message]) -> list[tuple[int, int, int]]:
    """(start, end, message index) of every message that stands in the rendered text, in order. Templates strip
    messages, so the surrounding blanks of one may lie outside its place."""
    found, cursor = [], 0
    for i, message in enumerate(messages):
        content = message.text.strip()
        start = text.find(content, cursor) if content else -1
        if start >= 0:
            cursor = start + len(content)
            found.append((start, cursor, i))
    return found
