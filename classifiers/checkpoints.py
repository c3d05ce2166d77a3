"""A trainer's state on disk, so that one that was killed goes on where it was."""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "checkpoint.pt"
EVERY = 50


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The file in `folder` (None: nothing is kept) in which a trainer leaves its state every `every` steps.

    `purpose` says what is trained on what: a state that was left for anything else is not taken.
    """

    folder: Path | None = None
    every: int = EVERY
    purpose: str = ""

    @property
    def path(self) -> Path | None:
        return self.folder / NAME if self.folder is not None else None

    def due(self, step: int) -> bool:
        """Whether `save` is wanted after `step` whole steps."""
        return self.path is not None and step > 0 and step % self.every == 0

    def save(self, state: dict[str, Any]) -> None:
        """Keep `state` (tensors and plain values) and torch's random numbers in place of what was kept before.
        The file is whole at every moment."""
        import torch

        assert self.path is not None
        part = self.path.with_suffix(".part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            torch.save({"purpose": self.purpose, "random": torch.get_rng_state(), "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path)

    def load(self) -> dict[str, Any] | None:
        """The state that was kept, with torch's random numbers as they were then; None: there is none to go on
        from."""
        import torch

        if self.path is None or not self.path.exists():
            return None
        try:
            kept = torch.load(self.path, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            return None
        if kept["purpose"] != self.purpose:
            return None
        torch.set_rng_state(kept["random"])
        state: dict[str, Any] = kept["state"]
        return state

    def clear(self) -> None:
        """Forget what was kept."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
