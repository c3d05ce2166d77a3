"""The encoder that detectors are trained for: that of the server that will use them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from guard.errors import BadRequest

if TYPE_CHECKING:
    from guard.detection import Encoder


@dataclass(frozen=True, slots=True)
class Encoding:
    """An encoder as `guard.detection.load_encoder` takes it; `name` None is the packaged one. `digest` is the wanted
    one, None: any. Graphs and the background's vectors are kept in `folder`."""

    name: str | None = None
    backend: str = "auto"
    folder: Path = Path("data/cache")
    digest: str | None = None

    def load(self) -> Encoder:
        """The encoder, once for each process.

        Raises:
            BadRequest: it is not the wanted one.
            StartupError: it cannot be loaded.
        """
        encoder = _load(self.name, self.backend, self.folder)
        if self.digest not in (None, encoder.digest):
            raise BadRequest(
                f"The artifact is wanted for the encoder {str(self.digest)[:16]}, and the one to train on is "
                f"{encoder.digest[:16]}."
            )
        return encoder


@cache
def _load(name: str | None, backend: str, folder: Path) -> Encoder:
    from guard.detection import load_encoder
    from guard.detection.encoder import PACKAGED

    return load_encoder(name or PACKAGED, threads=1, backend=backend, cache_dir=folder)
