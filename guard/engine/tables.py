"""The worker's static tables: what edits need besides their own data, by the content hash of its artifact."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from guard import artifacts, interventions
from guard.errors import ArtifactError, LetheError

log = logging.getLogger("lethe.engine")


class Tables:
    """Tables that are loaded, each for the frontends that need it. `model` is the folder of the served weights, for
    methods that run a part of them."""

    def __init__(self, model: Path | None = None) -> None:
        self._model = model
        self._held: dict[str, tuple[str, Any]] = {}
        self._needed: dict[str, set[str]] = {}

    def __contains__(self, digest: object) -> bool:
        return digest in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def load(self, digest: str, folder: str, device: torch.device, origin: str = "") -> None:
        """Read the artifact in `folder` and keep what its method makes of it, until `origin` unloads it and all others
        that have loaded it.

        Raises:
            ArtifactError: it is not the artifact of that digest, or does not fit the method or the model.
        """
        if self._needed.get(digest, {origin}) != {origin}:  # another frontend has brought the same content
            self._needed[digest].add(origin)
            return
        artifact = artifacts.read(Path(folder))
        if artifact.digest != digest:
            raise ArtifactError(f"The folder does not hold the artifact {digest[:16]}.")
        if self._model is not None and artifact.manifest.base_model != artifacts.weights_digest(self._model):
            raise ArtifactError(f"The artifact {digest[:16]} was made for another model.")
        tensors = {name: tensor.to(device) for name, tensor in artifact.tensors().items()}
        facts = {
            **artifact.manifest.facts,
            "digest": digest,
            "model": self._model,
            "folder": artifact.folder,
        }
        method = artifact.manifest.method
        try:
            self._held[digest] = (method, interventions.load(method).load(tensors, facts))
        except LetheError:
            raise
        except Exception as error:
            log.exception("an artifact could not be loaded")
            raise ArtifactError(
                f"The artifact {digest[:16]} does not fit: {type(error).__name__}."
            ) from error
        self._needed[digest] = {origin}

    def unload(self, digest: str, origin: str = "") -> None:
        needed = self._needed.get(digest, set())
        needed.discard(origin)
        if not needed:
            self._needed.pop(digest, None)
            self._held.pop(digest, None)

    def get(self, method: str, digest: str | None) -> Any:
        """The table of that digest for `method`; None where it needs none.

        Raises:
            ArtifactError: the table belongs to another method.
        """
        if digest is None:
            return None
        made_for, table = self._held[digest]
        if made_for != method:
            raise ArtifactError(f"The artifact {digest[:16]} was made for {made_for}.")
        return table

    def forget(self, request_id: str) -> None:
        """A request has ended: drop what tables keep of it."""
        for _, table in self._held.values():
            if (forget := getattr(table, "forget", None)) is not None:
                forget(request_id)

    def kept(self) -> int:
        """How many requests tables keep something of, over all tables."""
        return sum(len(table) for _, table in self._held.values() if hasattr(table, "forget"))
