"""Names and aliases: one automaton over every way of writing every target's names, run over folded text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import ahocorasick

from guard.detection.base import CompiledTarget, Exemption, Reading
from guard.detection.exemption import exempt
from guard.detection.text import bounded
from guard.types import Detection, Span

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

    def __init__(self, compiled: Sequence[CompiledTarget]) -> None:
        self._targets = {target.target_id: target for target in compiled}
        owners: dict[str, list[tuple[str, float]]] = {}
        for target in compiled:
            for form in target.forms:
                if form.score >= target.lexical_threshold:
                    owners.setdefault(form.text, []).append((target.target_id, form.score))
        self._finder = ahocorasick.Automaton()
        for text, found in owners.items():
            self._finder.add_word(text, (len(text), tuple(found)))
        if owners:
            self._finder.make_automaton()

    def detect(self, reading: Reading) -> Iterable[Detection]:
        if not len(self._finder):
            return
        for target_id, hits in self._hits(reading).items():
            target = self._targets[target_id]
            if target.exemption:
                hits = _not_exempt(hits, reading, target.exemption)
            if hits:
                shown = {
                    span
                    for hit in hits
                    for span in reading.pieces[hit.piece].spans(hit.span.start, hit.span.end)
                }
                spans = tuple(sorted(shown, key=lambda span: (span.start, span.end)))
                score = max(hit.score for hit in hits)
                yield Detection(target_id, "lexical", score, target.lexical_threshold, spans)

    def _hits(self, reading: Reading) -> dict[str, list[_Hit]]:
        """The hits of each target in scope."""
        hits: dict[str, list[_Hit]] = {}
        for at, piece in enumerate(reading.pieces):
            folded = piece.folded
            for last, (length, owners) in self._finder.iter(folded.text):
                start, end = last + 1 - length, last + 1
                loose = piece.form == "letters" and length >= _LOOSE
                if not loose and not bounded(folded.text, start, end):
                    continue
                span = folded.span(start, end)
                for target_id, score in owners:
                    if target_id in reading.active:
                        hits.setdefault(target_id, []).append(_Hit(at, span, score))
        return hits


def _not_exempt(hits: Sequence[_Hit], reading: Reading, exemption: Exemption) -> list[_Hit]:
    """The hits with a window around them that does not ask for what must stay answerable."""
    kept = []
    for hit in hits:
        around = [
            i
            for i, (at, window) in enumerate(reading.windows)
            if at == hit.piece and window.span.start <= hit.span.start and hit.span.end <= window.span.end
        ]
        if not around or not exempt(reading.vectors[around], exemption).all():
            kept.append(hit)
    return kept
