"""One answer on its way out: what may be part of a forbidden text waits until it is known not to be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from guard.detection.literals import CONTEXT, Found, Hit
from guard.errors import GuardUnavailable

log = logging.getLogger("lethe.guard")

Look = Callable[[str, int, bool], Found]
"""(text, characters of it that have left, whether nothing comes behind it) -> what may leave."""


@dataclass
class Speech:
    """Text goes in by `say`, and comes out when it is safe. After a hit nothing comes out any more.

    `left` counts the characters that came out.
    """

    look: Look
    hit: Hit | None = None
    left: int = 0
    _before: str = ""
    _held: str = field(default="", repr=False)

    @property
    def held(self) -> int:
        """Characters that wait."""
        return len(self._held)

    def say(self, text: str, *, ended: bool = False) -> str:
        """What can leave now that `text` was added; `ended` tells that it was the last.

        Raises:
            GuardUnavailable: the text could not be judged.
        """
        if self.hit is not None:
            return ""
        self._held += text
        if not self._held:
            return ""
        begun = len(self._before)
        try:
            found = self.look(self._before + self._held, begun, ended)
        except Exception as error:
            log.exception("an answer could not be judged")
            raise GuardUnavailable("The answer could not be checked; try again.") from error
        safe = found.safe - begun
        out, self._held = self._held[:safe], self._held[safe:]
        self._before = (self._before + out)[-CONTEXT:]
        self.left += len(out)
        if found.hit is not None:
            self.hit, self._held = found.hit, ""
        return out
