"""Methods that need artifacts, and workers that take them: what readiness of a ladder is tested with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from guard import artifacts, interventions
from guard.artifacts import Artifact, Digest
from guard.errors import ArtifactError, BadRequest
from guard.interventions import Intervention, Params, Prepared
from guard.types import Edit, Plan

MODEL = "ab" * 32


class TrainedParams(Params):
    artifact: Digest | None = None
    layer: int = 0


class Trained(Intervention):
    """Acts behind one layer with what was trained."""

    params_type = TrainedParams
    artifact = True

    def plan(self, chosen, prompt, seeds) -> Plan:
        params = TrainedParams.model_validate(dict(chosen.params))
        layer = chosen.facts.get("layer", params.layer)
        edit = Edit("residual", "tuned", (0,), seeds("t"), params.model_dump(), layer, table=params.artifact)
        return Plan(edits=(edit,))


class OtherTrained(Trained):
    pass


class OwnParams(Params):
    artifact: Digest | None = None
    hard: bool = False


class Own(Intervention):
    """Makes its artifact of the target's answers."""

    params_type = OwnParams
    artifact = True

    def prepare(self, spec, params) -> Prepared:
        if not spec.answers:
            raise BadRequest("own needs answers; give some.", param="answers")
        facts = {"answers": list(spec.answers), "hard": params.hard}
        return Prepared(facts, files={"answers.txt": "\n".join(spec.answers).encode()})

    def plan(self, chosen, prompt, seeds) -> Plan:
        edit = Edit("logits", "own", (0,), seeds("t"), dict(chosen.params), table=chosen.params["artifact"])
        return Plan(edits=(edit,))


@pytest.fixture
def methods(monkeypatch):
    """The methods above beside those of the table."""
    own = {"tuned": "Trained", "other": "OtherTrained", "own": "Own"}
    for name, cls in own.items():
        monkeypatch.setitem(interventions.TABLE, name, f"{__name__}:{cls}")
    yield
    interventions.load.cache_clear()


@dataclass
class FakeWorkers:
    """`refusals` by digest say why an artifact is not taken; `log` is what was asked, in order."""

    base_model: str | None = MODEL
    places: frozenset[tuple[str, int | None]] = frozenset({("embedding", None), ("residual", 0)})
    refusals: dict[str, str] = field(default_factory=dict)
    held: dict[str, bool] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    log: list[tuple[str, str]] = field(default_factory=list)

    def load(self, artifact: Artifact, *, canary: bool) -> None:
        self.log.append(("load", artifact.digest))
        if reason := self.refusals.get(artifact.digest):
            raise ArtifactError(reason)
        self.held[artifact.digest] = canary
        self.folders.append(artifact.folder)
        self.files |= {name: (artifact.folder / name).read_bytes() for name in artifact.manifest.files}

    def unload(self, digest: str) -> None:
        self.log.append(("unload", digest))
        self.held.pop(digest, None)


def make_artifact(folder: Path, method: str = "tuned", **facts: Any) -> str:
    """An artifact in `folder`; its digest."""
    folder.mkdir(parents=True)
    (folder / "data.bin").write_bytes(b"weights of " + method.encode())
    return artifacts.write(folder, method, MODEL, facts=facts).digest


def standing(view: Mapping[str, Any]) -> list[tuple[str, str | None, str]]:
    """What a read of a target says of its artifacts."""
    return [(one["method"], one["artifact"], one["state"]) for one in view["artifacts"]]
