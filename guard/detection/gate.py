"""The gate: all detectors over all compiled targets, asked once per prompt."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from guard.detection.base import CompiledTarget, Detector, Finding, Reading, window_chars
from guard.detection.encoder import Encoder
from guard.detection.heard import Heard, Once
from guard.detection.index import Index
from guard.detection.literals import Literals
from guard.detection.units import Unit
from guard.types import Detection, Prompt, Span

_REMEMBERED = 16_384  # judgements on units


def load_detector(path: str) -> type[Detector]:
    """The detector class at "module:Class"."""
    module, name = path.split(":")
    loaded: type[Detector] = getattr(import_module(module), name)
    return loaded


class Gate:
    """Immutable; `detect` is called from many threads. Building it embeds nothing. `spoken` judges what is said by
    what the targets state, None where none of them states anything.

    `before` is the gate of the targets before a change: what the change leaves alone is shared with it. A gate of what
    is `stated` looks for no names, and judges by meaning alone.
    """

    def __init__(
        self,
        encoder: Encoder,
        compiled: Sequence[CompiledTarget],
        before: Gate | None = None,
        *,
        stated: bool = False,
    ) -> None:
        from guard.detection import (
            BY_MEANING,
            DETECTORS,
        )  # the tables name the detectors; this module must not

        self._encoder = encoder
        narrow = [target for target in compiled if target.scope.tenants or target.scope.models]
        self._scopes = tuple((target.target_id, target.scope) for target in narrow)
        self._everywhere = frozenset(t.target_id for t in compiled) - {t.target_id for t in narrow}
        earlier: dict[str, Detector] = before._detectors if before else {}
        self._detectors: dict[str, Detector] = {
            name: load_detector(DETECTORS[name])(compiled, earlier.get(name))
            for name in (BY_MEANING if stated else DETECTORS)
        }
        self._judged = _Remembered()
        self._heard: Heard | Once = (Once if stated else Heard)(window_chars(encoder))
        self.index: Index = Index(compiled, before.index if before else None)
        self.literals: Literals = Literals(compiled, before.literals if before else None)
        spoken = [target.spoken for target in compiled if target.spoken is not None]
        self.spoken: Gate | None = (
            Gate(encoder, spoken, before.spoken if before else None, stated=True) if spoken else None
        )

    def detect(
        self,
        prompt: Prompt,
        *,
        tenant: str | None = None,
        model: str | None = None,
        until: float | None = None,
    ) -> tuple[tuple[Detection, ...], dict[str, float], tuple[Span, ...]]:
        """What reached its threshold among the targets that bind this tenant and model, milliseconds spent on
        reading (decoding), by each detector and in total, and where the prompt looks like code that could not be
        read. Of shared work (vectors), the detector that asks first pays; units that were judged before cost nothing.

        Raises:
            TimeoutError: the prompt is not judged at `until`, on the monotonic clock.
        """
        started = time.perf_counter()
        bound = [i for i, scope in self._scopes if scope.covers(tenant, model)]
        scopes = frozenset(bound)
        active = self._everywhere | scopes if scopes else self._everywhere
        if not active:
            return (), {"total": (time.perf_counter() - started) * 1000}, ()
        heard = self._heard.read(prompt, scopes)
        read = heard.units
        keys = [(unit.key, scopes) for unit in read]
        known = self._judged.get(keys)
        fresh = {key: unit for key, unit in zip(keys, read, strict=True) if key not in known}
        timings: dict[str, float] = {}
        if fresh:
            begun = time.perf_counter()
            reading = Reading(tuple(fresh.values()), active, self._encoder, self.index, until)
            timings["read"] = (time.perf_counter() - begun) * 1000
            made = self._judge(reading, until, timings)
            known.update(zip(fresh, made, strict=True))
            self._judged.put({key: known[key] for key in fresh})
        self._heard.keep(heard, lambda unit: known[unit.key, scopes].found)
        found = tuple(_placed(read, [known[key] for key in keys]))
        unread = [
            place
            for unit, key in zip(read, keys, strict=True)
            for span in known[key].unread
            for place in unit.places(span)
        ]
        timings["total"] = (time.perf_counter() - started) * 1000
        return found, timings, tuple(sorted(unread, key=lambda span: (span.start, span.end)))

    def _judge(self, reading: Reading, until: float | None, timings: dict[str, float]) -> list[_Judged]:
        """The judgement on each unit of the reading."""
        findings: list[list[tuple[str, Finding]]] = [[] for _ in range(reading.count)]
        for name, detector in self._detectors.items():
            begun = time.perf_counter()
            if until is not None and time.monotonic() >= until:
                raise TimeoutError
            for finding in detector.detect(reading):
                findings[finding.unit].append((name, finding))
            timings[name] = (time.perf_counter() - begun) * 1000
        unread: list[list[Span]] = [[] for _ in findings]
        for unit, span in reading.unread:
            unread[unit].append(span)
        return [_Judged(tuple(f), tuple(u)) for f, u in zip(findings, unread, strict=True)]


@dataclass(frozen=True, slots=True)
class _Judged:
    """What the detectors, by name, found in one unit, and which characters of it could not be read."""

    findings: tuple[tuple[str, Finding], ...]
    unread: tuple[Span, ...]

    @property
    def found(self) -> bool:
        return bool(self.findings or self.unread)


class _Remembered:
    """Judgements by the content of their units, the latest `_REMEMBERED`; thread-safe. They hold no text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._judged: OrderedDict[Hashable, _Judged] = OrderedDict()

    def get(self, keys: Iterable[Hashable]) -> dict[Hashable, _Judged]:
        found = {}
        with self._lock:
            for key in keys:
                if key in self._judged:
                    self._judged.move_to_end(key)
                    found[key] = self._judged[key]
        return found

    def put(self, judged: Mapping[Hashable, _Judged]) -> None:
        with self._lock:
            self._judged.update(judged)
            while len(self._judged) > _REMEMBERED:
                self._judged.popitem(last=False)


def _placed(read: Sequence[Unit], judged: Sequence[_Judged]) -> Iterator[Detection]:
    """One detection of each target by each detector: its best score anywhere, and all its places in the prompt."""
    grouped: dict[tuple[str, str], list[tuple[Unit, Finding]]] = {}
    for unit, one in zip(read, judged, strict=True):
        for name, finding in one.findings:
            grouped.setdefault((finding.target_id, name), []).append((unit, finding))
    for (target_id, name), group in grouped.items():
        best = max((finding for _, finding in group), key=lambda finding: finding.score)
        places = {unit.places(span) for unit, finding in group for span in finding.spans}
        spans = _kept(places - {()}, whole=name == "lexical")
        yield Detection(target_id, name, best.score, best.threshold, spans)


def _kept(places: Collection[tuple[Span, ...]], whole: bool) -> tuple[Span, ...]:
    """In order. A smaller window stands for those around it; a `whole` name stands for the aliases in it, since what is
    left of a name that is edited in part names it still. A window over several turns lies in several places."""

    def loses(one: Sequence[Span], other: Sequence[Span]) -> bool:
        return _less(one, other) if whole else _less(other, one)

    kept = {span for one in places for span in one if not any(loses(one, other) for other in places)}
    return tuple(sorted(kept, key=lambda span: (span.start, span.end)))


def _less(one: Sequence[Span], other: Sequence[Span]) -> bool:
    """Whether all of `one` lies in `other`, and something of `other` outside of `one`."""
    return _inside(one, other) and not _inside(other, one)


def _inside(inner: Sequence[Span], outer: Sequence[Span]) -> bool:
    return all(any(o.start <= i.start and i.end <= o.end for o in outer) for i in inner)


class Gates:
    """Makes one gate after the other, each from what the one before it can share. For one thread."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._latest: Gate | None = None

    def __call__(self, compiled: Sequence[Any]) -> Gate:
        self._latest = Gate(self._encoder, compiled, self._latest)
        return self._latest
