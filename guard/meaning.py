"""Judges what one answer says by its meaning: whether it states what targets state, in whatever words.

Names of targets are taken out before; those that the prompt does not say are cut by the automaton anyway. Where the
request has matched a target, what is said is taken to be about it. Elsewhere an answer that speaks of somebody else by
name, or answers a question about somebody else, does not state anything about a person or a work that it leaves
unnamed: "She was born in Vintry" is said of many.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from guard.context import RequestContext
from guard.detection.evidence import named, proper, words
from guard.detection.literals import Hit
from guard.detection.statements import without_pronouns
from guard.snapshot import Gate, Snapshot
from guard.types import Detection, Prompt, Span

_NAMES = 12  # of others, the last ones
_CONTEXT = 2_000  # characters of the question that names are looked for in
_MARGIN = 200  # characters in front of a window, so that a name which it cuts in two is still found

Detect = Callable[
    [Snapshot, Gate, Sequence[Prompt], RequestContext | None], Awaitable[list[tuple[Detection, ...]]]
]
"""What reaches its threshold in each text by this gate; raises GuardUnavailable."""


@dataclass
class Meaning:
    """`about` are the targets that the request has matched."""

    snapshot: Callable[[], Snapshot]
    detect: Detect
    prompt: Prompt
    context: RequestContext | None
    about: frozenset[str] = frozenset()

    @property
    def listens(self) -> bool:
        tenant, model = (self.context.tenant, self.context.model) if self.context else (None, None)
        return self.snapshot().listens(tenant, model)

    async def __call__(self, text: str, windows: Sequence[Span]) -> list[Hit | None]:
        snapshot = self.snapshot()
        gate = snapshot.gate.spoken
        if gate is None:
            return [None] * len(windows)
        said = [_said(snapshot, text, window) for window in windows]
        found = await self.detect(snapshot, gate, [Prompt(one) for one in said], self.context)
        return [
            await self._hit(snapshot, gate, text, window, one, of)
            for window, one, of in zip(windows, said, found, strict=True)
        ]

    async def _hit(
        self, snapshot: Snapshot, gate: Gate, text: str, window: Span, said: str, found: Sequence[Detection]
    ) -> Hit | None:
        """The first of the targets found in a window that forbids it."""
        of_others: frozenset[str] | None = None
        for target_id in dict.fromkeys(d.target_id for d in found):
            target = snapshot.targets.get(target_id)
            if target is None or target.spec.mode != "enforce":
                continue
            if target.spec.policy.context == "answer" and self._supplied(said):
                continue
            if target_id not in self.about and target.spec.kind in ("entity", "work"):
                if of_others is None:
                    of_others = await self._of_others(snapshot, gate, text, window, said)
                if target_id in of_others:
                    continue
            return Hit(target_id, window.start, window.end, named=False, meant=True)
        return None

    def _supplied(self, said: str) -> bool:
        """Whether the client's own text holds all names and facts of what is said."""
        return named(said) <= words(self.prompt.text)

    async def _of_others(
        self, snapshot: Snapshot, gate: Gate, text: str, window: Span, said: str
    ) -> frozenset[str]:
        """The targets that nothing is said of once it is known who the talk is of."""
        asked = next((m.text for m in reversed(self.prompt.messages) if m.role == "user"), self.prompt.text)
        names = proper(snapshot.gate.literals.without_names(f"{asked[-_CONTEXT:]}\n{text[: window.start]}"))
        if not names:
            return frozenset()
        prompt = Prompt(f"{', '.join(dict.fromkeys(names[-_NAMES:]))}: {said}")
        (found,) = await self.detect(snapshot, gate, [prompt], self.context)
        return frozenset(snapshot.targets) - {d.target_id for d in found}


def _said(snapshot: Snapshot, text: str, window: Span) -> str:
    """The text of a window without names of targets and what can stand for them."""
    start = max(window.start - _MARGIN, 0)
    said = snapshot.gate.literals.without_names(text[start : window.end])[window.start - start :]
    return without_pronouns(said)
