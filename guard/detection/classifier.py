"""A naive Bayes classifier of windows: how near a window is to the target's texts, which of their words it holds, and
whether it names somebody else, summed in nats."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import ahocorasick
import numpy as np

from guard.detection.base import CompiledTarget, Finding, Near, Reading, Terms
from guard.detection.evidence import NEAR, against, named, nats_of, probability, shared, unknown
from guard.detection.layers import Layers
from guard.detection.semantic import fired
from guard.detection.text import bounded

_PREPARED = 4_096  # heads; of more, only those of targets near the prompt are judged
_RARE = 64  # owners of a term in one layer; a term of more says too little to judge all of their heads
_ROUNDING = 1e-6  # nats; the same terms summed in another order may differ by less
_NEAREST = 1.05 * NEAR  # nats of a text that equals an example, and what half precision may add


@dataclass(frozen=True, eq=False)
class _Finder:
    """Finds the terms of some targets in one pass; `owners` are the targets of each."""

    automaton: ahocorasick.Automaton
    owners: Mapping[str, tuple[CompiledTarget, ...]]

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Where terms lie in folded `text`."""
        if self.owners:
            for last, length in self.automaton.iter(text):
                yield last + 1 - length, last + 1


def _finder(targets: Sequence[CompiledTarget]) -> _Finder:
    owners: dict[str, list[CompiledTarget]] = {}
    for target in targets:
        for term in target.terms.weights:
            owners.setdefault(term, []).append(target)
    automaton = ahocorasick.Automaton()
    for term in owners:
        automaton.add_word(term, len(term))
    if owners:
        automaton.make_automaton()
    return _Finder(automaton, {term: tuple(of) for term, of in owners.items()})


@dataclass(frozen=True, eq=False)
class _Found:
    """Terms in the windows of one prompt: `windows` of each term, terms of each target's number in `own`, and
    the `common` ones, whose targets are too many to be listed. `at_most` are nats of terms that many targets have
    come to share since they were registered."""

    windows: Mapping[str, frozenset[int]]
    own: Mapping[int, frozenset[str]]
    common: frozenset[str]
    at_most: Mapping[str, float]

    def common_nats(self, windows: int) -> np.ndarray:
        """[windows] nats that at most come from terms that too many targets own to look at each."""
        nats = np.zeros(windows)
        for term in self.common:
            nats[list(self.windows[term])] += self.at_most[term]
        return nats

    def of(self, column: int, terms: Terms) -> dict[int, set[str]]:
        """Window -> what it holds of one target's `terms`."""
        held: dict[int, set[str]] = defaultdict(set)
        own = self.own.get(column, frozenset())
        if self.common:
            own = own | self.common & terms.weights.keys()
        for term in own:
            for window in self.windows[term]:
                held[window].add(term)
        return held


class Classifier:
    """Fires where the evidence in a window reaches the target's calibrated threshold.

    First the words are weighed. A window with which no target could reach its threshold even if an example equalled it
    is not compared with examples: of clean text that are nearly all. What speaks against the target (another name in
    the window) can only lower the evidence; that is looked up where the threshold would be reached without. Judged are
    all targets where the index compares with all of them; else those that are near a window or share a rare term with
    it.
    """

    def __init__(self, compiled: Sequence[CompiledTarget], before: Classifier | None = None) -> None:
        self._targets = [target for target in compiled if len(target.vectors)]
        self._column = {target.target_id: i for i, target in enumerate(self._targets)}
        least = [target.evidence_threshold for target in self._targets]
        self._thresholds = np.array([np.inf if t is None else t for t in least], np.float64)
        self._scope: tuple[frozenset[str], np.ndarray] = frozenset(), np.zeros(len(self._targets), bool)
        self._few = len(self._targets) <= _PREPARED
        self._terms: Layers[_Finder] = (before._terms if before else Layers(_finder)).renewed(self._targets)

    def detect(self, reading: Reading) -> Iterable[Finding]:
        if not any(target.target_id in reading.active for target in self._targets) or not reading.windows:
            return
        found = self._found(reading)
        asked = self._asked(reading, found)
        if not len(asked):
            return
        near = reading.near(asked, found.own)
        thresholds = self._thresholds[near.columns]
        evidence = self._for(near, found, asked, found.common_nats(len(reading.windows))[asked])
        for at in np.flatnonzero((evidence >= thresholds).any(axis=0)):
            column = int(near.columns[at])
            target, of = self._targets[column], evidence[:, at].copy()
            if target.target_id not in reading.active:
                continue
            self._against(reading, asked, column, of)
            least = float(thresholds[at])
            for unit, best, spans in fired(reading, asked, of, least):
                score, shown = (float(probability(np.array(nats))) for nats in (best, least))
                yield Finding(unit, target.target_id, score, shown, spans)

    def _asked(self, reading: Reading, found: _Found) -> list[int]:
        """The windows in which some target's evidence could reach its threshold."""
        active = self._active(reading)
        anyone = float(self._thresholds[active].min()) - _NEAREST
        if anyone <= 0:
            return list(range(len(reading.windows)))
        common = found.common_nats(len(reading.windows))
        asked = common >= anyone
        for column in found.own:
            if active[column]:
                terms, missing = self._targets[column].terms, self._thresholds[column] - _NEAREST
                for window, held in found.of(column, terms).items():
                    told = terms.nats(held, found.at_most) + common[window]
                    if told >= missing and not asked[window]:
                        names = named(reading.windows[window][1].text)
                        asked[window] = told + against(unknown(terms, names)) >= missing
        return np.flatnonzero(asked).tolist()

    def _active(self, reading: Reading) -> np.ndarray:
        """Which targets are in scope. Prompts of one scope mostly follow each other, and to look up a million ids takes
        longer than to judge one; kept as one tuple, for prompts are judged by several threads."""
        ids, mask = self._scope
        if ids is not reading.active:
            mask = np.array([target.target_id in reading.active for target in self._targets])
            self._scope = reading.active, mask
        return mask

    def _for(self, near: Near, found: _Found, asked: Sequence[int], common: np.ndarray) -> np.ndarray:
        """[asked, near.columns] nats for the target, with what speaks against it left out. Words are weighed only where
        the threshold could be reached with all of them: near a prompt are thousands of targets, and few of those."""
        evidence: np.ndarray = NEAR * near.scores.astype(np.float64)
        row = {window: at for at, window in enumerate(asked)}
        could = (evidence + common[:, None] + _ROUNDING >= self._thresholds[near.columns]).any(axis=0)
        for at in np.flatnonzero(could | np.isin(near.columns, list(found.own))):
            column = near.columns[at]
            terms = self._targets[column].terms
            for window, held in found.of(int(column), terms).items():
                if window in row:
                    evidence[row[window], at] += terms.nats(held, found.at_most)
        return evidence

    def _found(self, reading: Reading) -> _Found:
        """The terms that the windows hold, and the targets for which they are looked up."""
        windows: dict[str, set[int]] = {}
        piece_of = np.array([piece for piece, _ in reading.windows])
        starts = np.array([window.span.start for _, window in reading.windows])
        ends = np.array([window.span.end for _, window in reading.windows])
        for at, piece in enumerate(reading.pieces):
            if piece.form != "text":
                continue
            text = piece.folded.text
            for begin, end in {found for finder in self._terms for found in finder.find(text)}:
                if bounded(text, begin, end):
                    span = piece.folded.span(begin, end)
                    inside = (piece_of == at) & (starts <= span.start) & (ends >= span.end)
                    windows.setdefault(text[begin:end], set()).update(np.flatnonzero(inside).tolist())
        own: dict[int, set[str]] = {}
        common: set[str] = set()
        at_most: dict[str, float] = {}
        for term in windows:
            listed = [finder.owners.get(term, ()) for finder in self._terms]
            count = sum(map(len, listed))
            if self._few or count <= _RARE:
                owners = [owner for of in listed for owner in of if self._terms.holds(owner)]
                count = len(owners)
                for owner in owners:
                    own.setdefault(self._column[owner.target_id], set()).add(term)
            else:
                common.add(term)  # the few of its targets that are gone count with the many
            at_most[term] = nats_of(shared(count - 1, len(self._targets) - 1))
        return _Found(
            {term: frozenset(of) for term, of in windows.items()},
            {column: frozenset(of) for column, of in own.items()},
            frozenset(common),
            at_most,
        )

    def _against(self, reading: Reading, asked: Sequence[int], column: int, evidence: np.ndarray) -> None:
        """Lower `evidence` [asked] of one target where a window names somebody else."""
        for at in np.flatnonzero(evidence >= self._thresholds[column]):
            names = named(reading.windows[asked[at]][1].text)
            evidence[at] += against(unknown(self._targets[column].terms, names))
