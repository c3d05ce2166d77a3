"""Frozen structures over groups of targets, of which a change of one target rebuilds few."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from guard.detection.base import CompiledTarget

S = TypeVar("S")

LARGEST = 4_096  # targets; what one change may rebuild at most, well within a second


@dataclass(frozen=True, eq=False)
class _Layer(Generic[S]):
    targets: tuple[CompiledTarget, ...]
    made: S


class Layers(Generic[S]):
    """What `build` makes of the targets, in layers that together cover each of them once.

    Immutable. `renewed` shares the layers that a change leaves alone, so they may still know targets that are
    gone: who uses them must ask `holds`. As in a log-structured merge tree a small change builds a small
    layer, which takes in those that are no larger, up to LARGEST targets: there are about as many layers as
    the number of targets has binary digits, and one more for each LARGEST targets.
    """

    def __init__(
        self, build: Callable[[Sequence[CompiledTarget]], S], layers: tuple[_Layer[S], ...] = ()
    ) -> None:
        self._build = build
        self._layers = layers
        self._known: dict[str, CompiledTarget] = {}

    def __iter__(self) -> Iterator[S]:
        return (layer.made for layer in self._layers)

    def holds(self, target: CompiledTarget) -> bool:
        """Whether this very version of the target is among those that were given."""
        return self._known.get(target.target_id) is target

    def renewed(self, targets: Sequence[CompiledTarget]) -> Layers[S]:
        """The same for other targets. A layer is built anew when more than half of it is gone."""
        known = {target.target_id: target for target in targets}
        fresh = dict(known)
        kept: list[_Layer[S]] = []
        for layer in self._layers:
            alive = [t for t in layer.targets if known.get(t.target_id) is t]
            if 2 * len(alive) >= len(layer.targets):
                kept.append(layer)
                for target in alive:
                    del fresh[target.target_id]
        pending = list(fresh.values())
        for layer in sorted(kept, key=lambda layer: len(layer.targets)):
            if len(layer.targets) <= len(pending) <= LARGEST - len(layer.targets):
                kept.remove(layer)
                pending.extend(t for t in layer.targets if known.get(t.target_id) is t)
        groups = [tuple(pending[i : i + LARGEST]) for i in range(0, len(pending), LARGEST)]
        made = Layers(self._build, (*kept, *(_Layer(group, self._build(group)) for group in groups)))
        made._known = known
        return made
