"""Names and aliases: one automaton over every way of writing every target's names, run over folded text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import ahocorasick

from guard.detection.base import CompiledTarget, Exemption, Finding, Reading
from guard.detection.exemption import exempt
from guard.detection.layers import Layers
from guard.detection.text import bounded
from guard.types import Span

_Named = tuple[int, tuple[tuple[CompiledTarget, float], ...]]
"""Letters of a name, and the targets that go by it with the score of doing so."""

_LOOSE = 5  # letters; shorter names are not looked for inside words that were written letter by letter


@dataclass(frozen=True, slots=True)
class _Hit:
    """A name found at `span` of the piece with number `piece`."""

    piece: int
    span: Span
    score: float


class Lexical:
    """Fires at word boundaries. Asks for window vectors only when a hit belongs to a target with an
    exemption."""

    def __init__(self, compiled: Sequence[CompiledTarget], before: Lexical | None = None) -> None:
        self._targets = {target.target_id: target for target in compiled}
        self._finders: Layers[ahocorasick.Automaton] = (
            before._finders if before else Layers(_finder)
        ).renewed(compiled)

    def detect(self, reading: Reading) -> Iterable[Finding]:
        for (target_id, unit), hits in self._hits(reading).items():
            target = self._targets[target_id]
            if target.exemption:
                hits = _not_exempt(hits, reading, target.exemption)
            if hits:
                best = sorted(hits, key=lambda hit: -hit.score)
                spans = dict.fromkeys(reading.pieces[hit.piece].span(hit.span) for hit in best)
                yield Finding(unit, target_id, best[0].score, target.lexical_threshold, tuple(spans))

    def _hits(self, reading: Reading) -> dict[tuple[str, int], list[_Hit]]:
        """The hits of each target in scope in each unit."""
        hits: dict[tuple[str, int], list[_Hit]] = {}
        for at, piece in enumerate(reading.pieces):
            folded, joined = piece.folded, piece.unit.joined
            for last, (length, owners) in self._found(folded.text):
                start, end = last + 1 - length, last + 1
                loose = piece.form == "letters" and length >= _LOOSE
                if not loose and not bounded(folded.text, start, end):
                    continue
                if piece.form == "name" and (start, last + 1) != (0, len(folded.text)):
                    continue
                span = folded.span(start, end)
                if joined and piece.form == "text" and len(joined.spans(span.start, span.end)) < 2:
                    continue  # found where it stands in the prompt
                for target, score in owners:
                    if target.target_id in reading.active and self._finders.holds(target):
                        hits.setdefault((target.target_id, piece.number), []).append(_Hit(at, span, score))
        return hits

    def _found(self, text: str) -> Iterator[tuple[int, _Named]]:
        """Index of the last character of each name in folded `text`."""
        for finder in self._finders:
            if len(finder):
                yield from finder.iter(text)


def _finder(targets: Sequence[CompiledTarget]) -> ahocorasick.Automaton:
    owners: dict[str, list[tuple[CompiledTarget, float]]] = {}
    for target in targets:
        for form in target.forms:
            if form.score >= target.lexical_threshold:
                owners.setdefault(form.text, []).append((target, form.score))
    made = ahocorasick.Automaton()
    for text, found in owners.items():
        made.add_word(text, (len(text), tuple(found)))
    if owners:
        made.make_automaton()
    return made


def _not_exempt(hits: Sequence[_Hit], reading: Reading, exemption: Exemption) -> list[_Hit]:
    """The hits with a window around them that does not ask for what must stay answerable."""
    kept = []
    for hit in hits:
        around = [
            i
            for i, (at, window) in enumerate(reading.windows)
            if at == hit.piece and window.span.start <= hit.span.start and hit.span.end <= window.span.end
        ]
        if not around or not exempt(reading.vectors(around), exemption).all():
            kept.append(hit)
    return kept
