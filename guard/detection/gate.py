"""The gate: all detectors over all compiled targets, asked once per prompt."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from guard.detection.base import CompiledTarget, Detector, Reading
from guard.detection.encoder import Encoder
from guard.detection.index import Index
from guard.detection.literals import Literals
from guard.types import Detection, Prompt, Span


def load_detector(path: str) -> type[Detector]:
    """The detector class at "module:Class"."""
    module, name = path.split(":")
    loaded: type[Detector] = getattr(import_module(module), name)
    return loaded


class Gate:
    """Immutable; `detect` is called from many threads. Building it embeds nothing.

    `before` is the gate of the targets before a change: what the change leaves alone is shared with it.
    """

    def __init__(
        self, encoder: Encoder, compiled: Sequence[CompiledTarget], before: Gate | None = None
    ) -> None:
        from guard.detection import DETECTORS  # the table names the detectors; this module must not

        self._encoder = encoder
        narrow = [target for target in compiled if target.scope.tenants or target.scope.models]
        self._scopes = tuple((target.target_id, target.scope) for target in narrow)
        self._everywhere = frozenset(t.target_id for t in compiled) - {t.target_id for t in narrow}
        earlier: dict[str, Detector] = before._detectors if before else {}
        self._detectors: dict[str, Detector] = {
            name: load_detector(path)(compiled, earlier.get(name)) for name, path in DETECTORS.items()
        }
        self.index: Index = Index(compiled, before.index if before else None)
        self.literals: Literals = Literals(compiled, before.literals if before else None)

    def detect(
        self,
        prompt: Prompt,
        *,
        tenant: str | None = None,
        model: str | None = None,
        until: float | None = None,
    ) -> tuple[tuple[Detection, ...], dict[str, float], tuple[Span, ...]]:
        """What reached its threshold among the targets that bind this tenant and model, milliseconds spent by
        each detector and in total, and where the prompt looks like code that could not be read. Of shared work
        (vectors), the detector that asks first pays.

        Raises:
            TimeoutError: the prompt is not judged at `until`, on the monotonic clock.
        """
        started = time.perf_counter()
        bound = [i for i, scope in self._scopes if scope.covers(tenant, model)]
        active = self._everywhere.union(bound) if bound else self._everywhere
        if not active:
            return (), {"total": (time.perf_counter() - started) * 1000}, ()
        reading = Reading(prompt, active, self._encoder, self.index, until)
        found: list[Detection] = []
        timings: dict[str, float] = {}
        for name, detector in self._detectors.items():
            begun = time.perf_counter()
            if until is not None and time.monotonic() >= until:
                raise TimeoutError
            found.extend(detector.detect(reading))
            timings[name] = (time.perf_counter() - begun) * 1000
        timings["total"] = (time.perf_counter() - started) * 1000
        return tuple(found), timings, reading.unread


class Gates:
    """Makes one gate after the other, each from what the one before it can share. For one thread."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._latest: Gate | None = None

    def __call__(self, compiled: Sequence[Any]) -> Gate:
        self._latest = Gate(self._encoder, compiled, self._latest)
        return self._latest
