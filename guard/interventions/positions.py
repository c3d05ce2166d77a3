"""Which tokens of a prompt a method edits."""

from __future__ import annotations

from collections.abc import Iterable

from guard.types import Match, Prompt


def planned(matches: Iterable[Match], prompt: Prompt, tokens: str, whole: Iterable[int]) -> tuple[int, ...]:
    """Sorted positions for all `matches` together.

    `spans` are the tokens of the matched spans, `window` all from the first to the last of them. A match that
    shows nowhere in the prompt, and whatever else `tokens` says, takes the `whole`.
    """
    found: set[int] = set()
    for match in matches:
        touched = prompt.tokens_in(match.spans) if tokens in ("spans", "window") else ()
        if not touched:
            found.update(whole)
        elif tokens == "window":
            found.update(range(touched[0], touched[-1] + 1))
        else:
            found.update(touched)
    return tuple(sorted(found))
