"""The worker's book of edited requests: what each step must change, and what has been changed.

Only edited requests are kept, so a step without any costs one test of an empty dict. Everything follows from
absolute token positions, never from phases: a one-token chunk looks like decoding, a preempted request is
computed again from its start, and positions served from the prefix cache are never computed at all.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from guard import interventions
from guard.engine.edits import KEY, EditError, Order, fingerprint, from_wire
from guard.engine.records import Record, Ring
from guard.engine.sites import Share, Site
from guard.engine.tables import Tables
from guard.interventions import Row
from guard.interventions.gates import Gate
from guard.interventions.noise import seed_of
from guard.types import AppliedEdit, Edit, Sighting, Watch

log = logging.getLogger("lethe.engine")

_LINEAGES = 4_096
_HOT = 4_096
_NONE = np.zeros(0, np.int64)


class Batch(Protocol):
    """What the book reads of vLLM's `InputBatch`."""

    req_id_to_index: Mapping[str, int]
    num_computed_tokens_cpu: NDArray[np.int32]


class AdapterSite(Protocol):
    """Where the scales of adapters are set, in a worker that runs adapters."""

    def clear(self) -> None:
        """A new step: nobody's adapter is scaled."""
        ...

    def apply(self, share: Share) -> None:
        """Scale the adapters of the requests whose places in the batch are `share.rows`; sets `share.sound`."""
        ...

    def scoring_prompts(self) -> AbstractContextManager[None]:
        """While likelihoods of prompts are computed, whose rows are not those of the batch."""
        ...


@dataclass
class Progress:
    """One edit of one request. The masks run over `positions`.

    `applied` were computed with the edit, `cached` taken from the cache; `known` is shared by all requests
    with the same edits and cache salt: what any of them has edited, and what a cache hit is credited with.
    `table` is kept for as long as the request runs, also when the worker forgets it for new ones.
    """

    edit: Edit
    table: Any
    positions: NDArray[np.int64]
    applied: NDArray[np.bool_]
    cached: NDArray[np.bool_]
    known: NDArray[np.bool_]

    @classmethod
    def of(cls, edit: Edit, table: Any, known: NDArray[np.bool_]) -> Progress:
        positions = np.asarray(edit.positions, dtype=np.int64)
        return cls(edit, table, positions, np.zeros_like(known), np.zeros_like(known), known)

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
class Lookout:
    """One gate over one request; `hot` are the positions that showed its target, a bounded number."""

    watch: Watch
    table: Any
    gate: Gate
    hot: set[int] = field(default_factory=set)
    told: bool = False

    def observe(self, start: int, hot: NDArray[np.bool_]) -> None:
        """Take in what the tokens from position `start` on show."""
        if start == 0:  # attention rests on the first token, whatever it is
            hot = np.concatenate([[False], hot[1:]])
        self.gate.observe(start, hot)
        self.hot.update((start + np.flatnonzero(hot))[: _HOT - len(self.hot)].tolist())

    def sighting(self) -> Sighting:
        return Sighting(self.watch.table, self.gate.excess, tuple(sorted(self.hot)))


@dataclass
class Held:
    """A request of `prompt` tokens that is edited, observed or scored: `seen` were computed or skipped, `end` is
    behind its last planned position, and `onward` tells whether there is something to do behind the prompt. `scores`
    are the likelihoods of `forced` tokens, by their place."""

    ticket: str
    prompt: int
    edits: list[Progress]
    end: int
    onward: bool = False
    lookouts: list[Lookout] = field(default_factory=list)
    forced: tuple[int, ...] = ()
    scores: dict[int, float] = field(default_factory=dict)
    seen: int = 0
    reported: bool = False
    failed: bool = False
    error: str | None = None


@dataclass
class Part:
    """The rows of one request in a share: from `first`, for the planned positions `part` of `progress`, or for the
    tokens from position `start` on that a `lookout` observes.

    With neither they are the rows of a request that has failed.
    """

    held: Held
    progress: Progress | None = None
    part: slice = field(default_factory=lambda: slice(0))
    lookout: Lookout | None = None
    start: int = 0
    first: int = 0
    rows: int = 0


@dataclass
class Work:
    """One share of a step under construction, for one site: of an edit, or of the method that `observes`."""

    edit: Edit | None
    table: Any = None
    observes: str | None = None
    rows: list[NDArray[np.int64]] = field(default_factory=list)
    positions: list[NDArray[np.int64]] = field(default_factory=list)
    seeds: list[NDArray[np.int64]] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    size: int = 0
    share: Share | None = None

    def add(
        self, request_id: str, part: Part, rows: NDArray[np.int64], positions: NDArray[np.int64], seed: int
    ) -> None:
        part.first, part.rows = self.size, len(rows)
        self.size += len(rows)
        self.rows.append(rows)
        self.positions.append(positions)
        self.seeds.append(np.full(len(rows), seed, np.int64))
        self.parts.append(part)
        self.requests.append(request_id)

    def finish(self) -> Share:
        """The share, its rows in tensors."""
        rows, positions, seeds = (
            torch.from_numpy(np.concatenate(part)) for part in (self.rows, self.positions, self.seeds)
        )
        method, params = (self.edit.method, self.edit.params) if self.edit else (self.observes, {})
        observes = self.observes is not None
        self.share = Share(method, rows, positions, seeds, params, self.table, observes)
        return self.share


@dataclass
class Step:
    """What one step does: the requests it touches, and the work by place, method, parameters and table. `forced`
    are the rows of logits that are decided already: (request, place in its forced tokens, row)."""

    touched: list[tuple[str, Held]] = field(default_factory=list)
    work: dict[tuple[Any, ...], Work] = field(default_factory=dict)
    forced: list[tuple[Held, int, int]] = field(default_factory=list)
    scores: torch.Tensor | None = None


class EditBook:
    """Plans and settles the steps of one worker.

    `sites` are those installed in the model; an edit for any other place fails its request, and so does one that
    needs a table which is not in `tables`. Records go to `ring`.
    """

    def __init__(self, ring: Ring, tables: Tables | None = None) -> None:
        self.sites: list[Site] = []
        self.tables = tables or Tables()
        self.adapters: AdapterSite | None = None
        self.end_tokens: tuple[int, ...] = ()
        self._ring = ring
        self._held: dict[str, Held] = {}
        self._step: Step | None = None
        # The masks that requests with the same cache salt and edits share, one per edit.
        self._lineages: OrderedDict[str, list[NDArray[np.bool_]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def observe(self, finished: Iterable[str], new: Iterable[Any]) -> None:
        """Take note of requests that ended and of `NewRequestData` that came; never raises."""
        self.settle()
        if self._held:
            for request_id in finished:
                if self._held.pop(request_id, None):
                    self.tables.forget(request_id)
        for request in new:
            extra = request.sampling_params.extra_args if request.sampling_params else None
            if extra and KEY in extra:
                self._held[request.req_id] = self._accept(request, extra[KEY])

    def begin(self, batch: Batch, query_starts: NDArray[np.int32]) -> None:
        """Hand each site what it has to do in the coming forward pass.

        Args:
            query_starts: first row of each request of the batch in the flattened step, then the end.
        """
        self.settle()
        if self.adapters is not None:
            self.adapters.clear()
        if not self._held:
            return
        step = Step()
        for request_id, held in self._held.items():
            index = batch.req_id_to_index.get(request_id)
            if index is None:
                continue  # preempted, or not scheduled in this step
            start = int(batch.num_computed_tokens_cpu[index])
            if held.reported and start >= held.end and held.error is None and not held.onward:
                continue
            first, last = int(query_starts[index]), int(query_starts[index + 1])
            self._plan(step, request_id, held, start, first, last, index)
        self._step = step
        for (site, layer, *_), work in step.work.items():
            share = work.finish()
            if site == "adapter" and self.adapters is not None:
                self.adapters.apply(share)
            elif site != "logits":
                self._site(site, layer).shares.append(share)

    def end(self) -> None:
        """The forward pass is over: what else runs the model is not a step."""
        if self._step is not None:
            for site in self.sites:
                site.shares.clear()

    def rescore(self, logits: torch.Tensor, requests: Mapping[str, Any]) -> None:
        """Change the rows of `logits` [requests in batch order, vocab] that edits decide, in place.

        Args:
            requests: vLLM's cached state of each request, with its token ids.
        """
        for (site, *_), work in self._step.work.items() if self._step else ():
            if site != "logits" or work.edit is None or work.share is None:
                continue
            share, rows = work.share, work.share.rows.to(logits.device)
            try:
                about = [
                    Row(
                        request_id,
                        requests[request_id].prompt_token_ids,
                        requests[request_id].output_token_ids,
                    )
                    for request_id in work.requests
                ]
                method = interventions.load(work.edit.method)
                new = method.rescore(logits[rows].float(), about, share.params, share.table)
                share.sound = (new.amax(dim=1) > -torch.inf) & ~torch.isnan(new).any(dim=1)
                logits.index_copy_(0, rows, new.to(logits.dtype))
            except Exception as error:
                log.exception("an edit of the logits could not be applied; its answers end here")
                share.error = type(error).__name__
                self._end_answers(logits, rows)
        if self._step and self._step.forced:
            self._force(logits, self._step)

    def settle(self) -> None:
        """Count what the last step did, and write the records of requests that passed their last planned
        position. Called when the step's results are on this side anyway, so that no forward pass waits."""
        step, self._step = self._step, None
        if step is None:
            return
        for work in step.work.values():
            self._settle(work)
        if step.scores is not None:
            for (held, place, _), score in zip(step.forced, step.scores.tolist(), strict=True):
                held.scores[place] = score
        for request_id, held in step.touched:
            if (held.error is not None and not held.failed) or (not held.reported and held.seen >= held.end):
                self._report(request_id, held)
            for lookout in held.lookouts:
                if lookout.gate.fired_at is not None and not lookout.told:
                    lookout.told = True
                    self._ring.write(Record(held.ticket, request_id, sighting=lookout.sighting()))
            if held.forced and len(held.scores) == len(held.forced):
                scores = tuple(held.scores[place] for place in range(len(held.forced)))
                held.forced = ()
                self._ring.write(Record(held.ticket, request_id, scores=scores))

    def _settle(self, work: Work) -> None:
        """Count what one share did, for each request that it had rows of."""
        share = work.share
        if share is None:
            return
        sound, hot = (t.cpu().numpy() if t is not None else None for t in (share.sound, share.hot))
        for part in work.parts:
            held, rows = part.held, slice(part.first, part.first + part.rows)
            held.error = held.error or share.error
            if part.lookout is not None and hot is not None:
                part.lookout.observe(part.start, hot[rows])
            if part.progress is None or sound is None:
                continue
            if bool(sound[rows].all()):
                part.progress.mark(part.part)
            else:
                held.error = held.error or "NotFinite"

    def _accept(self, request: Any, wire: Any) -> Held:
        length = len(request.prompt_token_ids or ())
        try:
            order = from_wire(wire, length)
            tables = [self._table(edit) for edit in order.edits]
            lookouts = [self._lookout(watch) for watch in order.watches]
        except Exception as error:
            log.exception("an edited request cannot be served")
            # Whatever is known of the request must not reach the model: all of its rows are erased.
            ticket = wire.get("ticket") if isinstance(wire, dict) else None
            return Held(ticket if isinstance(ticket, str) else "", length, [], 0, error=type(error).__name__)
        known = self._known(order)
        edits = list(map(Progress.of, order.edits, tables, known))
        end = max((int(e.positions[-1]) + 1 for e in edits), default=0)
        onward = bool(lookouts or order.forced) or any(edit.onward for edit in order.edits)
        return Held(order.ticket, length, edits, end, onward, lookouts, order.forced)

    def _table(self, edit: Edit) -> Any:
        """The table of an edit that this worker can carry out; None for a method that has none.

        Raises:
            EditError: it has no such site, or does not hold the table.
            ArtifactError: the table belongs to another method.
        """
        if edit.site == "adapter":
            there = self.adapters is not None
        else:
            there = edit.site == "logits" or self._installed(edit.site, edit.layer)
        if not there:
            raise EditError("the wire form's edits name a site that is not installed")
        if edit.table is not None and edit.table not in self.tables:
            raise EditError("the wire form's edits name a table that is not loaded")
        return self.tables.get(edit.method, edit.table)

    def _lookout(self, watch: Watch) -> Lookout:
        """Raises EditError: this worker has no such site, or no such gate; ArtifactError: it is another method's."""
        if not self._installed("residual", watch.layer) or watch.table not in self.tables:
            raise EditError("the wire form's watches name a site or a table that is not there")
        table = self.tables.get(watch.method, watch.table)
        if getattr(table, "limits", None) is None:
            raise EditError("the wire form's watches name a table that has no gate")
        return Lookout(watch, table, Gate(table.limits))

    def _installed(self, name: str, layer: int | None) -> bool:
        return any((site.name, site.layer) == (name, layer) for site in self.sites)

    def _plan(
        self, step: Step, request_id: str, held: Held, start: int, first: int, last: int, index: int
    ) -> None:
        end = start + last - first
        step.touched.append((request_id, held))
        if held.error is not None:
            rows = np.arange(first, last)
            lost = step.work.setdefault(("embedding", None), Work(None))
            lost.add(request_id, Part(held), rows, rows, 0)
            return
        for lookout in held.lookouts:
            watch = lookout.watch
            gate = ("residual", watch.layer, watch.method, watch.table)
            work = step.work.setdefault(gate, Work(None, lookout.table, watch.method))
            part = Part(held, lookout=lookout, start=start)
            work.add(request_id, part, np.arange(first, last), np.arange(start, end), 0)
        if 0 <= end - held.prompt < len(held.forced):
            step.forced.append((held, end - held.prompt, index))
        for progress in held.edits:
            edit = progress.edit
            if start > held.seen:
                progress.cached[progress.between(held.seen, start)] = True
            planned = progress.between(start, end)
            if edit.site == "logits":
                # The position whose successor is sampled in this step; before the prompt's last there is none.
                decides = end >= held.prompt and (edit.onward or planned.start < planned.stop)
                rows, positions = (np.array([v]) if decides else _NONE for v in (index, end - 1))
            else:
                positions = progress.positions[planned]
                if edit.onward and end > held.prompt:
                    positions = np.concatenate([positions, np.arange(max(start, held.prompt), end)])
                rows = positions - start + first
                if edit.site == "adapter" and len(rows):
                    rows = np.array([index])
            if len(rows):
                where = (edit.site, edit.layer, edit.method, edit.table, repr(sorted(edit.params.items())))
                work = step.work.setdefault(where, Work(edit, progress.table))
                part = Part(held, progress, planned)
                work.add(request_id, part, rows, positions[: len(rows)], seed_of(edit.seed))
        held.seen = max(held.seen, end)

    def _site(self, name: str, layer: int | None) -> Site:
        return next(s for s in self.sites if (s.name, s.layer) == (name, layer))

    def _force(self, logits: torch.Tensor, step: Step) -> None:
        """Read the likelihoods of forced tokens, and leave the sampler no other choice."""
        rows = torch.tensor([row for *_, row in step.forced], device=logits.device)
        try:
            wanted = [held.forced[place] for held, place, _ in step.forced]
            tokens = torch.tensor(wanted, device=logits.device).unsqueeze(1)
            scores = logits[rows].double().log_softmax(dim=1).gather(1, tokens).squeeze(1)
            logits.index_fill_(0, rows, -1e9)
            logits[rows, tokens.squeeze(1)] = 0.0
            step.scores = scores
        except Exception as error:
            log.exception("an answer could not be forced; it ends here")
            for held, *_ in step.forced:
                held.error = held.error or type(error).__name__
            self._end_answers(logits, rows)

    def _end_answers(self, logits: torch.Tensor, rows: torch.Tensor) -> None:
        """Leave the model nothing to say in these rows but the end of its answer, where it has one."""
        logits.index_fill_(0, rows, -1e9 if self.end_tokens else 0.0)
        for token in self.end_tokens:
            logits[rows, token] = 0.0

    def _report(self, request_id: str, held: Held) -> None:
        held.reported, held.failed = True, held.error is not None
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
