"""Which tokens of a prompt a method edits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from guard.turns import located
from guard.types import Match, Prompt, Span


def planned(matches: Iterable[Match], prompt: Prompt, tokens: str, whole: Iterable[int]) -> tuple[int, ...]:
    """Sorted positions for all `matches` together.

    `spans` are the tokens of the matched spans, `entities` those and the tokens of all names in the messages that hold
    one of them, `window` all from the first to the last of the spans. A match that shows nowhere in the prompt, and
    whatever else `tokens` says, takes the `whole`.
    """
    found: set[int] = set()
    for match in matches:
        touched = prompt.tokens_in(match.spans) if tokens in ("spans", "entities", "window") else ()
        if not touched:
            found.update(whole)
        elif tokens == "window":
            found.update(range(touched[0], touched[-1] + 1))
        elif tokens == "entities":
            found.update(prompt.tokens_in((*match.spans, *_names_beside(match.spans, prompt))))
        else:
            found.update(touched)
    return tuple(sorted(found))


def _names_beside(spans: Sequence[Span], prompt: Prompt) -> Iterator[Span]:
    """The names in the messages that hold one of `spans`. Where nobody knows the messages, a message is what stands
    between the markers of the chat template."""
    from guard.detection.evidence import entities
    from guard.detection.text import MARKERS

    text = prompt.text
    edges = [edge for start, end, _ in located(text, prompt.messages) for edge in (start, end)]
    if not edges:
        edges = [0, *(edge for mark in MARKERS.finditer(text) for edge in mark.span()), len(text)]
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if any(span.start < end and start < span.end for span in spans):
            for name in entities(text[start:end]):
                yield Span(start + name.start, start + name.end)
