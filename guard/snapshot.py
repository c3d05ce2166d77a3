"""What is enforced at one moment: frozen, so that a request is judged by one state from beginning to end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

from guard import interventions
from guard.detection.literals import Literals
from guard.library import Held, Standing
from guard.targets import StoredTarget, TargetSpec
from guard.types import Detection, Prompt, Rung, Scope, Span, Watch

AUTO: tuple[Rung, ...] = (Rung("embedding_corruption"),)
"""The ladder of `intervention: auto`. Where no rung can act on a request, the decision is a refusal."""


class Compiled(Protocol):
    """What detection made of one target; `calibration` is what reads of the target show, `spoken` how answers are
    judged by their meaning, None where they are not."""

    @property
    def calibration(self) -> Mapping[str, Any]: ...

    @property
    def spoken(self) -> Any: ...

    def with_heads(self, heads: Sequence[Any]) -> Compiled:
        """The same target, found by these trained heads too."""
        ...


class Gate(Protocol):
    """All compiled targets together, asked once per prompt, and with `literals` at each chunk of an answer. `spoken`
    is the gate of answers' meaning, None where nothing is forbidden by its meaning."""

    @property
    def literals(self) -> Literals: ...

    @property
    def spoken(self) -> Gate | None: ...

    def detect(
        self, prompt: Prompt, *, tenant: str | None, model: str | None, until: float | None
    ) -> tuple[tuple[Detection, ...], dict[str, float], tuple[Span, ...]]:
        """What was found, milliseconds spent, and where the prompt could not be read."""
        ...


class Compile(Protocol):
    """Make one target detectable; `others` are the results for the other targets. With `pooled` at once, by what was
    measured for others; its `calibration` then holds `pooled`, and compiling it again without calibrates it.

    Raises:
        TargetRefused: it would fire on too many of the background prompts, and `force` is false.
    """

    def __call__(
        self,
        target_id: str,
        version: int,
        spec: TargetSpec,
        others: Sequence[Any],
        *,
        force: bool,
        pooled: bool = False,
    ) -> Compiled: ...


BuildGate = Callable[[Sequence[Compiled]], Gate]


@dataclass(frozen=True, slots=True)
class Enforced:
    """A stored target with what enforcing it needs: its compiled detection, how its rungs stand, and the trained
    detectors that it names."""

    stored: StoredTarget
    compiled: Compiled
    standings: tuple[Standing, ...]
    held: tuple[Held, ...] = ()

    @property
    def ladder(self) -> tuple[Rung, ...]:
        """The rungs that can be applied, weakest first; with none of them, a match is refused."""
        return tuple(standing.ready for standing in self.standings if standing.ready is not None)

    @property
    def waits(self) -> bool:
        """Whether a rung cannot be applied, or a trained detector not be asked, yet."""
        return any(s.ready is None for s in self.standings) or any(h.head is None for h in self.held)

    @property
    def pooled(self) -> bool:
        """Whether its thresholds are those of others, until it is calibrated itself."""
        return bool(self.compiled.calibration.get("pooled"))

    @property
    def spec(self) -> TargetSpec:
        return self.stored.spec

    @property
    def version(self) -> int:
        return self.stored.version

    def in_force(self, now: datetime) -> bool:
        """Whether requests are judged by it now; shadow targets are."""
        return self.spec.mode != "off" and not self.stored.expired(now)


@dataclass(frozen=True)
class Snapshot:
    """`targets` holds exactly those that `gate` detects, by id; `version` names this state and no other.

    `watches` are the activation gates that their rungs ask for; `made_at` is when it was put in force, in seconds since
    the epoch.
    """

    version: int
    gate: Gate
    targets: Mapping[str, Enforced] = field(default_factory=lambda: MappingProxyType({}))
    watches: tuple[Watch, ...] = ()
    made_at: float = 0.0

    @property
    def armed(self) -> bool:
        """Whether there is anything to detect."""
        return bool(self.targets)

    def binding(self, tenant: str | None, model: str | None) -> Iterator[Enforced]:
        """The targets that bind a request of this tenant to this model, but for those that only watch."""
        for target in self.targets.values():
            if target.spec.mode == "enforce" and target.spec.scope.frozen().covers(tenant, model):
                yield target

    def listens(self, tenant: str | None, model: str | None) -> bool:
        """Whether a target that binds such a request forbids by their meaning what answers say."""
        return any(scope.covers(tenant, model) for scope in self._listening)

    @cached_property
    def _listening(self) -> frozenset[Scope]:
        """Scopes of the enforced targets that judge answers by their meaning, which are few beside the targets."""
        return frozenset(
            target.spec.scope.frozen()
            for target in self.targets.values()
            if target.spec.mode == "enforce" and target.compiled.spoken is not None
        )

    def holds(self, tenant: str | None, model: str | None) -> bool:
        """Whether every target that binds such a request says that it waits where the verdict is late."""
        patient = [held for scope, held in self._patience.items() if scope.covers(tenant, model)]
        return bool(patient) and all(patient)

    @cached_property
    def _patience(self) -> Mapping[Scope, bool]:
        """For each scope of enforced targets, which are few beside the targets, whether all of them hold."""
        found: dict[Scope, bool] = {}
        for target in self.targets.values():
            if target.spec.mode == "enforce":
                scope = target.spec.scope.frozen()
                found[scope] = found.get(scope, True) and target.spec.policy.oversize == "hold"
        return found


def watches_of(targets: Iterable[Enforced]) -> tuple[Watch, ...]:
    """The activation gates of enforced targets whose rungs ask for them, each gate once for each target."""
    found: dict[Watch, None] = {}
    for target in targets:
        for rung in target.ladder if target.spec.mode == "enforce" else ():
            layer = interventions.load(rung.method).watched(rung.params, rung.facts)
            if layer is not None:
                found[Watch(target.stored.id, rung.method, layer, rung.params["artifact"])] = None
    return tuple(found)


def ladder_of(spec: TargetSpec) -> tuple[Rung, ...]:
    """The target's rungs with all parameters filled in, weakest first.

    Raises:
        BadRequest: an unknown method, or parameters that the method refuses.
    """
    rungs = spec.ladder()
    if rungs is None:
        chosen = AUTO
    else:
        chosen = tuple(
            Rung(r.method, r.params, r.min_score) for r in sorted(rungs, key=lambda r: r.min_score)
        )
    return tuple(
        Rung(r.method, interventions.check_params(r.method, r.params).model_dump(), r.min_score)
        for r in chosen
    )
