"""What `lethe serve` was asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The command line of `lethe serve`. None means: what the configuration says."""

    model: str | None = None
    demo: bool = False
    config: Path | None = None
    host: str | None = None
    port: int | None = None
    admin_port: int | None = None
    no_auth: bool = False
    vllm_args: tuple[str, ...] = ()
