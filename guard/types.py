"""The vocabulary of the guard: frozen values that every other module imports, and that import nothing of ours.

A request is read (`Prompt`), detected upon (`Detection`), decided (`Decision`), planned (`Plan`) and recorded
(`AppliedEdit`). Character spans are half-open `[start, end)` in code points; token positions are absolute
indices into the prompt that the engine is given.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Action = Literal["allow", "intervene", "refuse"]
Mode = Literal["enforce", "shadow", "off"]
Kind = Literal["entity", "work", "subject", "skill", "tool"]
ReplyStyle = Literal["natural", "content_filter", "error"]
Site = Literal["embedding", "residual", "neuron", "adapter", "logits"]


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open character span."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Message:
    """One turn as the client sent it: its role and all of its text."""

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model will really read, and what is known about who said what.

    `offsets[i]` is the character span of token i in `text`. `messages` sharpen the judgement and never replace
    the rendered text. `asides` are texts of the request that reach the model by other ways than the rendered
    prompt (stop strings, structured-output choices, response formats).
    """

    text: str
    token_ids: tuple[int, ...] = ()
    offsets: tuple[Span, ...] = ()
    messages: tuple[Message, ...] = ()
    asides: tuple[str, ...] = ()

    def tokens_in(self, spans: tuple[Span, ...]) -> tuple[int, ...]:
        """Sorted positions of the tokens that share at least one character with one of `spans`."""
        apart: list[Span] = []
        for span in sorted(spans, key=lambda span: (span.start, span.end)):
            if apart and span.start < apart[-1].end:
                apart[-1] = Span(apart[-1].start, max(apart[-1].end, span.end))
            else:
                apart.append(span)
        ends = [span.end for span in apart]
        nearest = ((i, token, bisect_right(ends, token.start)) for i, token in enumerate(self.offsets))
        return tuple(i for i, token, at in nearest if at < len(apart) and apart[at].start < token.end)


@dataclass(frozen=True, slots=True)
class Detection:
    """One detector's finding about one target: `score` in [0, 1] reached the target's `threshold`.

    `spans` are the characters of `Prompt.text` that matched: the name for the lexical detector, the window for
    the semantic ones; empty when the match lies in an aside.
    """

    target_id: str
    detector: str
    score: float
    threshold: float
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of a target's ladder: a method, its validated parameters, and the score from which it applies.

    `facts` are those of the artifact that the parameters name, once it is loaded (layers, scale, rank).
    """

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    min_score: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which tenants and models a target binds; empty means all."""

    tenants: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()

    def covers(self, tenant: str | None, model: str | None) -> bool:
        return (not self.tenants or tenant in self.tenants) and (not self.models or model in self.models)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Where a match lies for the reader of a decision: characters of one message, or of the prompt (None)."""

    message: int | None
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Match:
    """A target that a request matched: its strongest detection, and all spans that any detector gave."""

    target_id: str
    target_version: int
    score: float
    threshold: float
    detector: str
    spans: tuple[Span, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Chosen:
    """A method that a decision applies, with the facts of its artifact, and the matches that it is applied for."""

    method: str
    params: Mapping[str, Any]
    matches: tuple[Match, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a refused request gets: the style of the wire answer and its text."""

    style: ReplyStyle = "natural"
    text: str = "I'm sorry, I don't know anything about that."


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict on one prompt under one snapshot. Shadow matches are listed and never change `action`. `unread`
    is where the prompt looks like code that could not be read."""

    action: Action
    snapshot: int
    matches: tuple[Match, ...] = ()
    chosen: tuple[Chosen, ...] = ()
    reply: Reply = Reply()
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    unread: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Edit:
    """What a worker does inside the model for one request, fixed at admission and wholly in the fingerprint.

    `positions` are sorted token positions of the client's rendered prompt; the engine client shifts them past
    insertions. With `onward` the edit also acts on every position behind the prompt, as the answer grows; the
    positions of the prompt are those that are planned and counted. An edit of the logits stands at the position
    whose next token it decides. `seed` is 16 hex digits derived from HMAC(secret, target, prompt tokens), never the
    client's seed. `table` is the content hash of the artifact that the method needs in the worker.
    """

    site: Site
    method: str
    positions: tuple[int, ...]
    seed: str
    params: Mapping[str, Any] = field(default_factory=dict)
    layer: int | None = None
    onward: bool = False
    table: str | None = None


@dataclass(frozen=True, slots=True)
class Watch:
    """A gate that observes a request which is not edited: that of `method` with the artifact `table`, on the
    residual stream behind `layer`, for the target."""

    target_id: str
    method: str
    layer: int
    table: str


@dataclass(frozen=True, slots=True)
class Sighting:
    """A gate has fired: `excess` is its statistic over its limit (above 1), `positions` the tokens that showed
    the target so far, of the prompt and of the answer."""

    table: str
    excess: float
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Insertion:
    """Text put before character `at` of the prompt before it is given to the engine; the client never sees it."""

    at: int
    text: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What methods ask for: text to insert, edits inside the model, or a reply instead of the model's answer; and
    for a request that none of them changes, the gates that observe it. `likelihoods`: those of the edited model may be
    told."""

    insertions: tuple[Insertion, ...] = ()
    edits: tuple[Edit, ...] = ()
    reply: Reply | None = None
    watches: tuple[Watch, ...] = ()
    likelihoods: bool = False


@dataclass(frozen=True, slots=True)
class Spoken:
    """A whole answer: its text, why it ended, and how many tokens it has."""

    text: str
    reason: str
    tokens: int


@dataclass(frozen=True, slots=True)
class AppliedEdit:
    """What the engine counted for one edit, in distinct token positions."""

    site: str
    layer: int | None
    planned: int
    applied: int
    from_cache: int


@dataclass(frozen=True, slots=True)
class Admission:
    """A decision together with the plan that carries it out; what the engine client acts on."""

    decision: Decision
    plan: Plan = Plan()

    @property
    def matched(self) -> bool:
        """Whether the request is treated differently from a clean one (shadow matches are not)."""
        return self.decision.action != "allow"
