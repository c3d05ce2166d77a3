"""What stands ready: which artifacts every worker holds, and so which rungs of a target's ladder can be applied; and
which trained detectors are at hand.

An artifact comes from the installation's store, or a method makes it of the target itself (`prepare`). It is ready
only once every worker has its table and, for a trained one, a canary has shown its effect. A rung whose artifact
is not ready waits; it is never applied without it. An artifact of a detector is read when a target names it, and stays
in this process: no worker gets it.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from guard import artifacts, interventions
from guard.artifacts import Artifact, ArtifactStore, Manifest
from guard.detection import DETECTORS, Head
from guard.errors import ArtifactError, LetheError, NotFound
from guard.interventions import Prepared
from guard.targets import TargetSpec
from guard.types import Chosen, Match, Prompt, Rung, Span

logger = logging.getLogger(__name__)

Place = tuple[str, int | None]
_EVERYWHERE = frozenset({"logits", "adapter"})  # sites that are no modules of the model
_PROBE = Prompt("what is it", (0, 1, 2), (Span(0, 4), Span(4, 7), Span(7, 10)))
_PROBE_MATCH = Match("probe", 1, 1.0, 0.5, "lexical", (Span(0, 10),))


class Workers(Protocol):
    """The engine's workers, as the register's own thread calls them; the calls block.

    `base_model` is the digest of the served weights where it is known, `places` are the (site, layer) at which
    edits can act.
    """

    base_model: str | None
    places: frozenset[Place]

    def load(self, artifact: Artifact, *, canary: bool) -> None:
        """Put the artifact into every worker; `canary` demands that it changes what the model says.

        Raises:
            ArtifactError: it is not whole, does not fit or has no effect. No worker holds it then.
        """
        ...

    def unload(self, digest: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Standing:
    """A rung as it was written, and as it can be applied now: with its artifact and facts, or why not yet.

    `misplaced`: the server has no site where the rung would act, and waiting does not help.
    """

    written: Rung
    ready: Rung | None = None
    reason: str | None = None
    misplaced: bool = False

    @property
    def artifact(self) -> str | None:
        """Digest of the artifact that the rung uses or waits for."""
        return (self.ready or self.written).params.get("artifact")


@dataclass(frozen=True, slots=True)
class Held:
    """A trained detector that a target names: its head, or why there is none yet. `method` is None where that is not
    known."""

    digest: str
    method: str | None
    head: Head | None = None
    reason: str | None = None


ReadHead = Callable[[Artifact], Head]


def _no_head(artifact: Artifact) -> Head:
    raise ArtifactError(f"The artifact {artifact.digest[:16]} is for a detector, and there is no encoder.")


class Library:
    """The artifacts in `store` and what became of each. Written by the register's thread alone.

    No rung is ready before `attach`, when the engine runs. `read_head` makes the head of a detector's artifact, or
    raises ArtifactError.
    """

    def __init__(self, store: ArtifactStore, read_head: ReadHead = _no_head) -> None:
        self.store = store
        self._read_head = read_head
        self._heads: dict[str, Head] = {}
        self._workers: Workers | None = None
        self._loaded: dict[str, Manifest] = {}
        self._refused: dict[str, str] = {}
        self._leaving: set[str] = set()
        self._prepared: dict[str, Manifest] = {}

    def attach(self, workers: Workers) -> None:
        """The engine runs: load all that the store holds for it. What cannot be loaded is reported and stays out."""
        self._workers = workers
        for digest in self.store.digests():
            self._try(digest)

    def detach(self) -> None:
        """The engine is about to end: no call may wait for it any more."""
        self._workers = None

    def arrive(self) -> None:
        """Load what another process has put into the store since. What cannot be loaded is reported and stays out."""
        if self._workers is None:
            return
        for digest in self.store.digests():
            if digest not in self._refused and digest not in self._leaving:
                self._try(digest)

    def _try(self, digest: str) -> None:
        try:
            self._load(digest, for_targets=False)
        except ArtifactError as error:
            logger.error("an artifact is not used: %s", error.message)

    def load(self, digest: str) -> None:
        """Take an artifact of the store into every worker, or read it where it is a detector's.

        Raises:
            NotFound: the store does not hold it.
            ArtifactError: it is refused; why is also told by `rows`.
        """
        if digest in self._loaded:
            return
        if digest in self._leaving or digest not in self.store.digests():
            raise NotFound(f"There is no artifact {digest[:16]} here; `lethe artifacts add` brings one.")
        self._load(digest)

    def _load(self, digest: str, *, for_targets: bool = True) -> None:
        """`for_targets`: a detector's artifact is wanted too."""
        if digest in self._loaded:
            return
        try:
            artifact = self.store.get(digest)
            if artifact.manifest.method not in DETECTORS:
                self._into_workers(artifact, canary=True)
            elif for_targets:
                self._heads[digest] = self._read_head(artifact)
            else:
                return
        except ArtifactError as error:
            self._refused[digest] = error.message
            raise
        self._refused.pop(digest, None)
        self._loaded[digest] = artifact.manifest

    def held(self, digest: str) -> Held:
        """The trained detector of that digest, read now if it was not yet."""
        manifest = self._loaded.get(digest) or self._manifest(digest)
        method = manifest.method if manifest else None
        if method is not None and method not in DETECTORS:
            return Held(
                digest,
                method,
                reason=f"The artifact {digest[:16]} was made for {method}, which is no detector.",
            )
        try:
            self.load(digest)
        except LetheError as error:
            return Held(digest, method, reason=error.message)
        return Held(digest, method, self._heads[digest])

    def withdraw(self, digest: str) -> bool:
        """Let no target use the artifact any more; whether it was here. The workers still hold it."""
        known = digest in self._loaded or digest in self.store.digests()
        if known:
            self._leaving.add(digest)
        self._heads.pop(digest, None)
        self._loaded.pop(digest, None)
        self._refused.pop(digest, None)
        return known

    def erase(self, digest: str) -> None:
        """Erase an artifact that no target uses from the workers and from the store."""
        manifest = self._manifest(digest)
        if manifest is None or manifest.method not in DETECTORS:
            self._unload(digest)
        self.store.remove(digest)
        self._leaving.discard(digest)

    def stand(self, rung: Rung, spec: TargetSpec) -> Standing:
        """Whether `rung`, with all its parameters, can be applied for `spec`."""
        try:
            ready = self._ready(rung, spec)
            missing = self._missing(ready)
        except LetheError as error:
            return Standing(rung, reason=error.message)
        if missing is not None:
            return Standing(rung, reason=missing, misplaced=True)
        return Standing(rung, ready)

    def renew(self, standing: Standing, spec: TargetSpec) -> Standing:
        """The same rung again, after artifacts came or went. What was prepared for it is not made twice."""
        if standing.ready is not None and standing.artifact in self._prepared:
            return standing
        return self.stand(standing.written, spec)

    def sweep(self, used: Set[str | None]) -> None:
        """Unload what was prepared for targets and is in no ladder any more."""
        for digest in [digest for digest in self._prepared if digest not in used]:
            del self._prepared[digest]
            self._unload(digest)

    def loaded(self) -> set[str]:
        """Digests that every worker must hold."""
        return {*self._loaded, *self._prepared} - self._heads.keys()

    def counts(self) -> dict[str, int]:
        """How many artifacts are loaded, made of the targets themselves, or refused."""
        return {
            "loaded": len(self._loaded),
            "prepared": len(self._prepared),
            "refused": len(self._refused),
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """The store's artifacts as reads show them. What methods prepared holds targets' texts and is not shown."""
        for digest in self.store.digests():
            manifest = self._loaded.get(digest) or self._manifest(digest)
            about = manifest.model_dump(exclude={"format", "files"}) if manifest else {"method": None}
            state = "loaded" if digest in self._loaded else "refused" if digest in self._refused else "stored"
            yield {"digest": digest, "state": state, "error": self._refused.get(digest), **about}

    def _ready(self, rung: Rung, spec: TargetSpec) -> Rung:
        """Raises LetheError: it is not, and why."""
        method = interventions.load(rung.method)
        params = interventions.check_params(rung.method, rung.params)
        digest = rung.params.get("artifact")
        if digest is not None:
            facts = self._facts(rung.method, digest)
            method.watched(rung.params, facts)  # refuses what the artifact cannot do
            return replace(rung, facts=facts)
        prepared = method.prepare(spec, params)
        if not method.artifact:
            return replace(rung, facts=prepared.facts) if prepared else rung
        if prepared is None:
            raise ArtifactError(f"{rung.method} needs an artifact, and its parameters name none.")
        return self._take(rung, prepared)

    def _facts(self, method: str, digest: str) -> Mapping[str, Any]:
        manifest = self._loaded.get(digest)
        if manifest is None:
            raise ArtifactError(self._refused.get(digest, f"The artifact {digest[:16]} is not loaded here."))
        if manifest.method != method:
            raise ArtifactError(
                f"The artifact {digest[:16]} was made for {manifest.method}, not for {method}."
            )
        return manifest.facts

    def _take(self, rung: Rung, prepared: Prepared) -> Rung:
        """Bring what a method prepared into the workers; it lies on disk only meanwhile."""
        if self._workers is None or self._workers.base_model is None:
            raise ArtifactError("The engine is not running yet, or its weights are in no safetensors files.")
        with tempfile.TemporaryDirectory(prefix="lethe-") as name:
            folder = Path(name)
            for file, content in prepared.files.items():
                (folder / file).write_bytes(content)
            artifact = artifacts.write(
                folder,
                rung.method,
                self._workers.base_model,
                tensors=prepared.tensors or None,
                facts=prepared.facts,
            )
            if artifact.digest not in self._prepared:
                self._into_workers(artifact, canary=False)
                self._prepared[artifact.digest] = artifact.manifest
        return replace(
            rung, params={**rung.params, "artifact": artifact.digest}, facts=artifact.manifest.facts
        )

    def _missing(self, rung: Rung) -> str | None:
        """Which site the rung needs and the model does not have; None before the engine runs."""
        if self._workers is None:
            return None
        chosen = Chosen(rung.method, rung.params, (_PROBE_MATCH,), rung.facts)
        plan = interventions.load(rung.method).plan(chosen, _PROBE, lambda _: "0" * 16)
        for edit in plan.edits:
            if edit.site not in _EVERYWHERE and (edit.site, edit.layer) not in self._workers.places:
                where = edit.site if edit.layer is None else f"{edit.site} at layer {edit.layer}"
                return (
                    f"{rung.method} acts at the site {where}, which is not installed here; see engine.layers."
                )
        return None

    def _into_workers(self, artifact: Artifact, *, canary: bool) -> None:
        if self._workers is None:
            raise ArtifactError("The engine is not running yet.")
        self._workers.load(artifact, canary=canary)

    def _unload(self, digest: str) -> None:
        if self._workers is not None:
            self._workers.unload(digest)

    def _manifest(self, digest: str) -> Manifest | None:
        try:
            return self.store.get(digest).manifest
        except ArtifactError:
            return None
