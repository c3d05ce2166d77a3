"""From detections to a decision. Pure: the same detections under the same snapshot give the same decision.

Every matched target gets the rung of its ladder that its score has reached: the one with the highest `min_score` not
above the score, the first written among equals. A target whose reply style is not `natural` is refused in that
style, whatever its ladder says: an edited model cannot answer with an error. Of a method that a request can have
only once (adapters do not stack) the strongest match gets its own, and the others the next rung down that their
scores have reached. If any enforced target is refused, the request is refused; otherwise all methods are applied
together, each method once, for all its targets. What could not be read refuses the request where the guard says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Protocol

from guard import interventions
from guard.targets import TargetSpec
from guard.turns import located
from guard.types import Chosen, Decision, Detection, Evidence, Match, Message, Prompt, Reply, Rung, Span

STRICTEST = ("error", "content_filter", "natural")
_UNREAD_SHOWN = 16  # places; a prompt can be full of them


class EnforcedTarget(Protocol):
    """What a decision needs to know of a target."""

    @property
    def spec(self) -> TargetSpec: ...
    @property
    def version(self) -> int: ...
    @property
    def ladder(self) -> tuple[Rung, ...]: ...


def decide(
    detections: Iterable[Detection],
    targets: Mapping[str, EnforcedTarget],
    prompt: Prompt,
    *,
    snapshot: int,
    timings_ms: Mapping[str, float] | None = None,
    unread: Iterable[Span] = (),
    demanding: Sequence[TargetSpec] = (),
) -> Decision:
    """The verdict on `prompt`. `targets` are those of the snapshot that the detections were made with. `unread` is
    what looks like code and could not be read; the `demanding` targets refuse a prompt with such places."""
    where = _locate(prompt.text, prompt.messages)
    matches = tuple(_matches(detections, targets, where))
    enforced = tuple(m for m in matches if not m.shadow)
    places = tuple(dict.fromkeys(_evidence(span, where) for span in unread))[:_UNREAD_SHOWN]
    strict = demanding if places else ()
    rungs = _rungs(enforced, targets)
    refused = bool(strict) or any(rung.method == "refusal" for rung in rungs.values())
    specs = [*strict, *(targets[m.target_id].spec for m in enforced)]
    return Decision(
        action="refuse" if refused else "intervene" if enforced else "allow",
        snapshot=snapshot,
        matches=matches,
        chosen=() if refused else _chosen(enforced, rungs),
        reply=_reply(specs) if specs else Reply(),
        timings_ms=timings_ms or {},
        unread=places,
    )


def _matches(
    detections: Iterable[Detection],
    targets: Mapping[str, EnforcedTarget],
    where: list[tuple[int, int, int]],
) -> Iterable[Match]:
    """One match per target, in the order of target ids: its strongest detection and all spans."""
    ordered = sorted(detections, key=lambda d: (d.target_id, -d.score))
    for target_id, group in groupby(ordered, key=lambda d: d.target_id):
        found = list(group)
        spans = precise(found)
        yield Match(
            target_id=target_id,
            target_version=targets[target_id].version,
            score=found[0].score,
            threshold=found[0].threshold,
            detector=found[0].detector,
            spans=spans,
            evidence=tuple(_evidence(span, where) for span in spans),
            shadow=targets[target_id].spec.mode == "shadow",
        )


def precise(found: Sequence[Detection]) -> tuple[Span, ...]:
    """Where a target shows in the prompt: its names, and the windows that matched without any of them. A name is
    what the model must not read; the rest of the window around it says what the client wants to know."""
    named = [span for d in found if d.detector == "lexical" for span in d.spans]
    unnamed = [span for d in found for span in d.spans if not any(_meet(span, n) for n in named)]
    spans = {(span.start, span.end): span for span in (*named, *unnamed)}
    return tuple(spans[key] for key in sorted(spans))


def _meet(one: Span, other: Span) -> bool:
    return one.start < other.end and other.start < one.end


def _locate(text: str, messages: tuple[Message, ...]) -> list[tuple[int, int, int]]:
    """(start, end, message index) of every message that stands in the prompt, as if nothing had been stripped
    from it."""
    blanks = [len(message.text) - len(message.text.lstrip()) for message in messages]
    return [(start - blanks[i], end, i) for start, end, i in located(text, messages)]


def _evidence(span: Span, where: list[tuple[int, int, int]]) -> Evidence:
    for start, end, index in where:
        if _meet(span, Span(start, end)):
            return Evidence(index, max(span.start - start, 0), min(span.end, end) - start)
    return Evidence(None, span.start, span.end)


def _rungs(matches: tuple[Match, ...], targets: Mapping[str, EnforcedTarget]) -> dict[str, Rung]:
    """The rung of each matched target."""
    rungs: dict[str, Rung] = {}
    taken: dict[str, Rung] = {}
    for match in sorted(matches, key=lambda m: -m.score):
        rung = _rung(targets[match.target_id], match.score, taken)
        rungs[match.target_id] = rung
        if interventions.load(rung.method).exclusive:
            taken[rung.method] = rung
    return rungs


def _rung(target: EnforcedTarget, score: float, taken: Mapping[str, Rung]) -> Rung:
    if target.spec.reply.style != "natural":
        return Rung("refusal")
    reached = [rung for rung in target.ladder if rung.min_score <= score] or target.ladder[:1]
    free = [rung for rung in reached if rung.method not in taken or _alike(rung, taken[rung.method])]
    return max(free, key=lambda rung: rung.min_score, default=Rung("refusal"))


def _alike(one: Rung | Chosen, other: Rung) -> bool:
    return (one.method, one.params, one.facts) == (other.method, other.params, other.facts)


def _chosen(matches: tuple[Match, ...], rungs: Mapping[str, Rung]) -> tuple[Chosen, ...]:
    """Rungs with the same method, parameters and facts act together, in the order of the first that asks."""
    groups: list[Chosen] = []
    for match in matches:
        rung = rungs[match.target_id]
        for i, one in enumerate(groups):
            if _alike(one, rung):
                groups[i] = replace(one, matches=(*one.matches, match))
                break
        else:
            groups.append(Chosen(rung.method, rung.params, (match,), rung.facts))
    return tuple(groups)


def _reply(specs: list[TargetSpec]) -> Reply:
    """The strictest style among the matched targets, in the words of the first that has it."""
    spec = min(specs, key=lambda s: STRICTEST.index(s.reply.style))
    return Reply(spec.reply.style, spec.reply.text or Reply().text)
