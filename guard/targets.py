"""A forget target as operators write it (`TargetSpec`) and as the store keeps it (`StoredTarget`).

Only `name` is required; every default is the one documented in docs/operations.md. Unknown keys are refused.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from guard.artifacts import Digest
from guard.types import Kind, Mode, ReplyStyle, Rung, Scope

SLUG = re.compile(r"^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$")
Text = Annotated[str, Field(min_length=1, max_length=8_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RungSpec(_Strict):
    """One rung: `{"method", "params", "min_score"}`. The parameters are checked by the method itself."""

    method: str
    params: dict[str, Any] = Field(default_factory=dict)
    min_score: float = Field(0.0, ge=0.0, le=1.0)


class Threshold(_Strict):
    """Either a false-positive rate to calibrate for, or a fixed score."""

    fpr: float | None = Field(None, gt=0.0, le=0.5)
    score: float | None = Field(None, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _one_of(self) -> Threshold:
        if (self.fpr is None) == (self.score is None):
            raise ValueError("give exactly one of fpr and score")
        return self


class ReplySpec(_Strict):
    style: ReplyStyle = "natural"
    text: str | None = Field(None, min_length=1, max_length=2_000)


class Policy(_Strict):
    on_error: Literal["closed", "open"] = "closed"
    logprobs: Literal["withhold", "edited"] = "withhold"
    context: Literal["refuse", "answer"] = "refuse"
    output: Literal["cut", "regenerate", "reprompt"] = "cut"
    max_tries: int = Field(2, ge=1, le=8)
    oversize: Literal["refuse", "hold"] = "refuse"


class ScopeSpec(_Strict):
    tenants: tuple[str, ...] = ()
    models: tuple[str, ...] = ()

    def frozen(self) -> Scope:
        return Scope(frozenset(self.tenants), frozenset(self.models))


class TargetSpec(_Strict):
    """What a client may write about a target."""

    id: str | None = None
    name: Annotated[str, Field(min_length=1, max_length=200)]
    aliases: tuple[Annotated[str, Field(min_length=2, max_length=200)], ...] = Field((), max_length=200)
    description: str = Field("", max_length=20_000)
    examples: tuple[Text, ...] = Field((), max_length=10_000)
    answers: tuple[Text, ...] = Field((), max_length=10_000)
    retain: tuple[Text, ...] = Field((), max_length=10_000)
    kind: Kind = "entity"
    mode: Mode = "enforce"
    intervention: Literal["auto"] | RungSpec | tuple[RungSpec, ...] = "auto"
    detectors: tuple[Digest, ...] = Field((), max_length=16)
    threshold: Threshold = Threshold(fpr=0.01, score=None)
    reply: ReplySpec = ReplySpec()
    policy: Policy = Policy()
    scope: ScopeSpec = ScopeSpec()
    reference: str | None = Field(None, max_length=1_000)
    expires_at: datetime | None = None
    tags: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = Field((), max_length=100)
    metadata: dict[str, Any] = Field(default_factory=dict)

    @field_validator("id")
    @classmethod
    def _slug(cls, value: str | None) -> str | None:
        if value is not None and not SLUG.match(value):
            raise ValueError(
                "id must be 1 to 64 of a-z, 0-9 and '-', starting and ending with a letter or digit"
            )
        return value

    @field_validator("answers")
    @classmethod
    def _long_enough(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            if len(text.split()) < 3 and len(text.strip()) < 12:
                raise ValueError("each answer needs at least 3 words or 12 characters")
        return value

    @field_validator("expires_at")
    @classmethod
    def _aware(cls, value: datetime | None) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value

    @field_validator("name", "aliases")
    @classmethod
    def _visible(cls, value: Any) -> Any:
        for text in (value,) if isinstance(value, str) else value:
            if not any(unicodedata.category(c)[0] in "LN" for c in text):
                raise ValueError("names and aliases need at least one letter or digit")
        return value

    def ladder(self) -> tuple[RungSpec, ...] | None:
        """The rungs as written, or None for "auto"."""
        if self.intervention == "auto":
            return None
        return (self.intervention,) if isinstance(self.intervention, RungSpec) else self.intervention

    def names(self) -> tuple[str, ...]:
        """Name and aliases, without repetition, in order."""
        return tuple(dict.fromkeys((self.name, *self.aliases)))


class StoredTarget(BaseModel):
    """One version of a target in the store. `state` is derived on reads; it is never stored."""

    model_config = ConfigDict(frozen=True)

    id: str
    spec: TargetSpec
    version: int
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        return f'"{self.id}.{self.version}"'

    def expired(self, now: datetime) -> bool:
        return self.spec.expires_at is not None and self.spec.expires_at <= now


def slug_of(name: str) -> str:
    """A slug for a target whose writer gave none: ASCII letters and digits of the name, joined by '-'."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:64].strip("-")
    return slug or "target"


__all__ = [
    "Policy",
    "ReplySpec",
    "Rung",
    "RungSpec",
    "ScopeSpec",
    "StoredTarget",
    "TargetSpec",
    "Threshold",
    "slug_of",
]
