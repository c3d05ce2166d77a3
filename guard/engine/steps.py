"""The worker's book of edited requests: what each step must change, and what has been changed.

Only edited requests are kept, so a step without any costs one test of an empty dict. Everything follows from
absolute token positions, never from phases: a one-token chunk looks like decoding, a preempted request is
computed again from its start, and positions served from the prefix cache are never computed at all.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from guard.engine.edits import KEY, EditError, Order, fingerprint, from_wire
from guard.engine.records import Record, Ring
from guard.engine.sites import Share, Site
from guard.types import AppliedEdit, Edit

log = logging.getLogger("lethe.engine")

_LINEAGES = 4_096


class Batch(Protocol):
    """What the book reads of vLLM's `InputBatch`."""

    req_id_to_index: Mapping[str, int]
    num_computed_tokens_cpu: NDArray[np.int32]


@dataclass
class Progress:
    """One edit of one request. The masks run over `positions`.

    `applied` were computed with the edit, `cached` taken from the cache; `known` is shared by all requests
    with the same edits and cache salt: what any of them has edited, and what a cache hit is credited with.
    """

    edit: Edit
    positions: NDArray[np.int64]
    applied: NDArray[np.bool_]
    cached: NDArray[np.bool_]
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, edit: Edit, known: NDArray[np.bool_]) -> Progress:
        positions = np.asarray(edit.positions, dtype=np.int64)
        return cls(edit, positions, np.zeros_like(known), np.zeros_like(known), known)

    def mark(self, part: slice) -> None:
        """The positions of `part` have been computed with the edit."""
        self.applied[part] = True
        self.known[part] = True

    def counts(self) -> AppliedEdit:
        credited = self.cached & self.known & ~self.applied
        applied, from_cache = int(self.applied.sum()), int(credited.sum())
        return AppliedEdit(self.edit.site, self.edit.layer, len(self.positions), applied, from_cache)

    def between(self, start: int, end: int) -> slice:
        """The planned positions in [start, end), as indices."""
        first, last = np.searchsorted(self.positions, (start, end))
        return slice(int(first), int(last))


@dataclass
class Held:
    """An edited request: `seen` tokens were computed or skipped, `end` is behind its last edited position."""

    ticket: str
    edits: list[Progress]
    end: int
    seen: int = 0
    reported: bool = False
    error: str | None = None


@dataclass
class Step:
    """What one step does: the requests it touches and each share with the progress that it belongs to."""

    touched: list[tuple[str, Held]] = field(default_factory=list)
    shares: list[tuple[Share, Held, Progress | None, slice]] = field(default_factory=list)


class EditBook:
    """Plans and settles the steps of one worker.

    `sites` are those installed in the model; an edit for any other place fails its request. Records go to
    `ring`.
    """

    def __init__(self, ring: Ring) -> None:
        self.sites: list[Site] = []
        self._ring = ring
        self._held: dict[str, Held] = {}
        self._step: Step | None = None
        # The masks that requests with the same cache salt and edits share, one per edit.
        self._lineages: OrderedDict[str, list[NDArray[np.bool_]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def observe(self, finished: Iterable[str], new: Iterable[Any]) -> None:
        """Take note of requests that ended and of `NewRequestData` that came; never raises."""
        if self._held:
            for request_id in finished:
                self._held.pop(request_id, None)
        for request in new:
            extra = request.sampling_params.extra_args if request.sampling_params else None
            if extra and KEY in extra:
                self._held[request.req_id] = self._accept(request, extra[KEY])

    def begin(self, batch: Batch, query_starts: NDArray[np.int32]) -> None:
        """Hand each site what it has to do in the coming forward pass.

        Args:
            query_starts: first row of each request of the batch in the flattened step, then the end.
        """
        if not self._held:
            return
        step = Step()
        for request_id, held in self._held.items():
            index = batch.req_id_to_index.get(request_id)
            if index is None:
                continue  # preempted, or not scheduled in this step
            start = int(batch.num_computed_tokens_cpu[index])
            if held.reported and start >= held.end and held.error is None:
                continue
            first, last = int(query_starts[index]), int(query_starts[index + 1])
            self._plan(step, request_id, held, start, first, last)
        for share, *_ in step.shares:
            self._site_of(share.edit).shares.append(share)
        self._step = step

    def end(self) -> None:
        """Take back what was handed out, and write the records of requests that passed their last edit."""
        step, self._step = self._step, None
        if step is None:
            return
        for site in self.sites:
            site.shares = []
        for share, held, progress, part in step.shares:
            held.error = held.error or share.error
            if progress is not None and share.done:
                progress.mark(part)
        for request_id, held in step.touched:
            if not held.reported and (held.error is not None or held.seen >= held.end):
                self._report(request_id, held)

    def _accept(self, request: Any, wire: Any) -> Held:
        try:
            order = from_wire(wire, len(request.prompt_token_ids or ()))
            places = {(site.name, site.layer) for site in self.sites}
            if any((e.site, e.layer) not in places for e in order.edits):
                raise EditError("the wire form's edits name a site that is not installed")
        except Exception as error:
            log.exception("an edited request cannot be served")
            # Whatever is known of the request must not reach the model: all of its rows are erased.
            ticket = wire.get("ticket") if isinstance(wire, dict) else None
            return Held(ticket if isinstance(ticket, str) else "", [], 0, error=type(error).__name__)
        known = self._known(order)
        edits = [Progress.of(edit, mask) for edit, mask in zip(order.edits, known, strict=True)]
        return Held(order.ticket, edits, max(int(e.positions[-1]) for e in edits) + 1)

    def _plan(self, step: Step, request_id: str, held: Held, start: int, first: int, last: int) -> None:
        end = start + last - first
        step.touched.append((request_id, held))
        if held.error is not None:
            rows = torch.arange(first, last)
            step.shares.append((Share(None, rows, rows), held, None, slice(0)))
            return
        for progress in held.edits:
            if start > held.seen:
                progress.cached[progress.between(held.seen, start)] = True
            part = progress.between(start, end)
            if part.start < part.stop:
                positions = torch.from_numpy(progress.positions[part])
                step.shares.append(
                    (Share(progress.edit, positions - start + first, positions), held, progress, part)
                )
        held.seen = max(held.seen, end)

    def _site_of(self, edit: Edit | None) -> Site:
        """The site of an edit; rows without one are erased where they enter the model."""
        name, layer = (edit.site, edit.layer) if edit else ("embedding", None)
        return next(s for s in self.sites if (s.name, s.layer) == (name, layer))

    def _report(self, request_id: str, held: Held) -> None:
        held.reported = True
        done = () if held.error is not None else tuple(progress.counts() for progress in held.edits)
        self._ring.write(Record(held.ticket, request_id, done, held.error))

    def _known(self, order: Order) -> list[NDArray[np.bool_]]:
        """The masks of these edits under this cache salt; bounded in number, the longest unused go first."""
        key = f"{order.lineage}:{fingerprint(order.edits)}"
        known = self._lineages.setdefault(key, [np.zeros(len(edit.positions), bool) for edit in order.edits])
        self._lineages.move_to_end(key)
        while len(self._lineages) > _LINEAGES:
            self._lineages.popitem(last=False)
        return known
