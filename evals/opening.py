"""Subjects as a command line names them: by an address, or by a model's folder."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.client import Client
from evals.subjects import Endpoint, Guarded, Kept, Subject
from guard.artifacts import weights_digest

TOLD = "told.jsonl"


@dataclass(frozen=True, slots=True)
class Opening:
    """How subjects are asked: `journal` is the folder in which what they told is kept, None for none; `rate` the
    requests per second to each endpoint, at most."""

    stack: AsyncExitStack
    concurrency: int = 8
    journal: Path | None = None
    rate: float | None = None

    async def endpoint(
        self, url: str, key: str | None = None, kind: type[Endpoint] = Endpoint, *, lenient: bool = False
    ) -> Subject:
        client = await self.stack.enter_async_context(Client(url, key, rate=self.rate))
        found = kind(client, await client.model(), concurrency=self.concurrency, lenient=lenient)
        return keep(found, self.journal, url, found.name, kind.__name__)

    def local(self, model: Path, adapter: Path | None = None) -> Subject:
        from evals.local import Local

        found = Local.load(model, adapter)
        if self.journal is None:
            return found  # without reading all weights for their digest
        return keep(found, self.journal, *(weights_digest(folder) for folder in (model, adapter) if folder))

    async def either(
        self,
        url: str | None,
        key: str | None,
        model: Path | None,
        adapter: Path | None = None,
        kind: type[Endpoint] = Endpoint,
        *,
        lenient: bool = False,
    ) -> Subject | None:
        """By whichever is given; None where neither is."""
        if model is not None:
            return self.local(model, adapter)
        return None if url is None else await self.endpoint(url, key, kind, lenient=lenient)


def keep(subject: Subject, journal: Path | None, *about: Any) -> Subject:
    """The same subject, whose answers are kept in the folder `journal` as those of what `about` says."""
    return subject if journal is None else Kept(subject, journal / TOLD, json.dumps(about))


def measured_by(admin_key: str | None) -> type[Endpoint]:
    """With an admin key likelihoods are told by the admin API."""
    return Guarded if admin_key else Endpoint
