"""Small real implementations of detection's seam: names are found as substrings."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from guard.artifacts import ArtifactStore
from guard.crypto import Secrets
from guard.errors import TargetRefused
from guard.library import Library
from guard.register import Register
from guard.store import Store
from guard.targets import TargetSpec
from guard.types import Detection, Prompt, Span

SECRETS = Secrets(b"test-secret-".ljust(32, b"."))
COMMON = "the"
"""A name that would fire on too many background prompts."""
POISON = "poison"
"""A name on which the compiler itself fails."""


@dataclass(frozen=True)
class FakeCompiled:
    target_id: str
    version: int
    spec: TargetSpec
    beside: frozenset[str] = frozenset()
    calibration: Mapping[str, Any] = field(default_factory=lambda: {"threshold": 0.8})
    spoken: None = None


class FakeGate:
    def __init__(self, compiled: Sequence[FakeCompiled]) -> None:
        self.compiled = list(compiled)

    def detect(
        self, prompt: Prompt, *, tenant: str | None, model: str | None, until: float | None = None
    ) -> tuple[tuple[Detection, ...], dict[str, float], tuple[Span, ...]]:
        found = []
        for piece in self.compiled:
            start = prompt.text.find(piece.spec.name)
            if start >= 0 and piece.spec.scope.frozen().covers(tenant, model):
                span = Span(start, start + len(piece.spec.name))
                found.append(Detection(piece.target_id, "lexical", 1.0, 0.8, (span,)))
        return tuple(found), {"lexical": 0.01}, ()


def compile_target(
    target_id: str,
    version: int,
    spec: TargetSpec,
    others: Sequence[FakeCompiled],
    *,
    force: bool,
    pooled: bool = False,
) -> FakeCompiled:
    if POISON in spec.tags:
        raise RuntimeError("the encoder fell over")
    if spec.name == COMMON and not force:
        raise TargetRefused(
            "The name 'the' fires on 31 % of the background prompts.",
            param="name",
            details={"field": "name", "rate": 0.31},
        )
    calibration = {"pooled": True} if pooled else {"threshold": 0.8}
    return FakeCompiled(target_id, version, spec, frozenset(o.target_id for o in others), calibration)


@dataclass
class Clock:
    now: float = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


@cache
def _fresh_database() -> bytes:
    """A new store's file; the many tests that need one do not all migrate."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lethe.db"
        Store(f"sqlite:///{path}", SECRETS).close()
        return path.read_bytes()


def open_store(folder: Path) -> Store:
    path = folder / "lethe.db"
    if not path.exists():
        path.write_bytes(_fresh_database())
        path.chmod(0o600)
    return Store(f"sqlite:///{folder / 'lethe.db'}", SECRETS)


def make_register(store: Store, artifacts: Path = Path("/nonexistent"), **options: Any) -> Register:
    """A register whose artifacts lie in the folder `artifacts`."""
    library = Library(ArtifactStore(artifacts))
    return Register(store, library, compile_target, FakeGate, **options)


def matched(register: Register, text: str, tenant: str | None = None) -> set[str]:
    """Ids of the targets that the current snapshot detects in `text`."""
    detections, *_ = register.snapshot.gate.detect(Prompt(text), tenant=tenant, model=None)
    return {detection.target_id for detection in detections}
