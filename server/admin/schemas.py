"""The bodies of the admin API, as they are checked and as OpenAPI shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from guard.artifacts import Digest
from guard.ledger import TargetState
from guard.store.jobs import State
from guard.store.keys import Role
from guard.targets import TargetSpec

TENANT = r"^[^\x00-\x1f\x7f]{1,128}$"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TargetBody(TargetSpec):
    """A target, and whether to take it although it would fire on background prompts."""

    force: bool = False


class CheckBody(_Body):
    """What would be generated from: `messages` or `prompt`."""

    messages: list[dict[str, Any]] | None = Field(None, min_length=1)
    prompt: str | None = Field(None, min_length=1)
    tenant: str | None = Field(None, pattern=TENANT)
    model: str | None = None
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None

    @field_validator("messages")
    @classmethod
    def _complete(cls, value: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for number, message in enumerate(value or ()):
            role, content = message.get("role"), message.get("content")
            if not isinstance(role, str) or not role:
                raise ValueError(f"message {number} needs a role")
            if content is not None and not isinstance(content, str | list):
                raise ValueError(f"the content of message {number} must be text or a list of parts")
            if role in ("user", "system", "developer") and not content:
                raise ValueError(f"message {number} needs content")
        return value

    @model_validator(mode="after")
    def _one_of(self) -> CheckBody:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give exactly one of messages and prompt")
        return self


class ScoreBody(CheckBody):
    """What is asked, and the answer whose likelihood is wanted."""

    continuation: str = Field(min_length=1)


class KeyBody(_Body):
    """A key to be made. Its tenant confines it: to that tenant's inference, targets and decisions."""

    role: Role
    tenant: str | None = Field(None, pattern=TENANT)
    expires_at: datetime | None = None
    speaks_for_tenants: bool = False

    @model_validator(mode="after")
    def _one_way_of_tenants(self) -> KeyBody:
        if self.speaks_for_tenants and (self.role != "inference" or self.tenant is not None):
            raise ValueError("speaks_for_tenants is for inference keys without a tenant")
        return self


class RotateBody(_Body):
    """How long the old key stays good, and when the new one ends: by default after as long as the old one was for."""

    grace_seconds: float = Field(86_400, ge=0, le=30 * 86_400)
    expires_at: datetime | None = None


class ArtifactBody(_Body):
    """An artifact that lies in the server's store already: bytes and paths are not taken over the network."""

    digest: Digest


class Turn(_Body):
    role: str = Field(min_length=1)
    content: str


class ExampleBody(_Body):
    """What somebody says, as `prompt` or as `turns`, and what the model says to it; examples of one `source` say the
    same in other words."""

    prompt: str | None = None
    turns: list[Turn] | None = Field(None, min_length=1)
    answer: str = ""
    source: str | None = None

    @model_validator(mode="after")
    def _one_of(self) -> ExampleBody:
        if (self.prompt is None) == (self.turns is None):
            raise ValueError("give exactly one of prompt and turns")
        return self


class JobParams(BaseModel):
    """The parameters of every kind: whether the artifact goes into the target, examples in place of the target's own,
    wrong answers to forget questions for a kind that learns from them, and digests of adapters that were made before
    for a kind that takes some. All others are the trainer's."""

    model_config = ConfigDict(extra="allow", frozen=True)
    attach: bool = True
    forget: list[ExampleBody] | None = None
    retain: list[ExampleBody] | None = None
    perturbed: list[ExampleBody] | None = None
    adapters: list[Digest] = []


class JobBody(_Body):
    """What shall be trained for which target."""

    kind: str
    target: str
    params: JobParams = JobParams()


class JobView(BaseModel):
    """A job: how far it is, what its trainer said last, and the digest of its artifact when it is done. `attached`
    tells whether the target names the artifact; `examples` how many were given."""

    id: str
    kind: str
    target: str
    params: dict[str, Any]
    examples: dict[str, int]
    state: State
    progress: float
    log: list[str]
    error: str | None
    artifact: str | None
    attached: bool | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class JobPage(BaseModel):
    data: list[JobView]
    next_cursor: str | None


class EndedJob(BaseModel):
    """`deleted`: the job had ended and is forgotten; otherwise it is cancelled."""

    id: str
    deleted: bool
    state: State


class ErrorDetail(BaseModel):
    model_config = ConfigDict(extra="allow")
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    error: ErrorDetail


class ArtifactView(BaseModel):
    """An artifact of the store: whether it is loaded, or why not, and what its manifest says."""

    model_config = ConfigDict(extra="allow")
    digest: str
    method: str | None
    state: Literal["loaded", "refused", "stored"]
    error: str | None


class ArtifactPage(BaseModel):
    data: list[ArtifactView]
    next_cursor: str | None


class RemovedArtifact(BaseModel):
    digest: str
    deleted: bool


class TargetView(TargetSpec):
    """A stored target: what was written, and what became of it."""

    state: TargetState
    version: int
    created_at: datetime
    updated_at: datetime
    calibration: dict[str, Any]
    artifacts: list[dict[str, Any]]


class TargetPage(BaseModel):
    data: list[TargetView]
    next_cursor: str | None


class Lagging(BaseModel):
    """Written, but not in force yet at the servers that `laggards` names; else as the answer without them."""

    model_config = ConfigDict(extra="allow")
    laggards: list[LaggardView]


class LaggardView(BaseModel):
    name: str
    snapshot: int


class Deleted(BaseModel):
    id: str
    deleted: bool
    purged: bool


class SnapshotView(BaseModel):
    """What a snapshot changed; `subject` is the one that was gone back to."""

    snapshot: int
    time: datetime
    action: str
    key_id: str
    subject: str | None
    created: int
    updated: int
    deleted: int
    purged: int


class SnapshotPage(BaseModel):
    current: int
    data: list[SnapshotView]
    next_cursor: str | None


class RolledBack(BaseModel):
    """Ids of the targets that came back, became what they were, or went; `snapshot` is in force now."""

    restored: int
    dry_run: bool
    snapshot: int
    created: list[str]
    updated: list[str]
    deleted: list[str]


class Problem(BaseModel):
    model_config = ConfigDict(extra="allow")
    field: str | None
    message: str
    code: str


class Validation(BaseModel):
    valid: bool
    problems: list[Problem]


class RejectedLine(BaseModel):
    line: int
    error: str


class ImportResult(BaseModel):
    created: int
    updated: int
    rejected: list[RejectedLine]


class Objects(BaseModel):
    """A page of objects whose fields docs/operations.md lists."""

    data: list[dict[str, Any]]
    next_cursor: str | None


class OpenObject(BaseModel):
    model_config = ConfigDict(extra="allow")


class KeyView(BaseModel):
    id: str
    role: Role
    tenant: str | None
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    speaks_for_tenants: bool
    successor: str | None


class NewKey(KeyView):
    """The only answer that ever holds the key itself."""

    key: str


class KeyPage(BaseModel):
    data: list[KeyView]
    next_cursor: str | None
