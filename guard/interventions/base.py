"""What an intervention is: one method that plans for a request, and, where it acts inside the model, its maths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from guard.types import Chosen, Plan, Prompt

if TYPE_CHECKING:
    import torch

    from guard.targets import TargetSpec

Seeds = Callable[[str], str]
"""Target id -> 16 hex digits, HMAC(secret, target, prompt tokens)."""


Tensors = Mapping[str, "torch.Tensor"]


class Params(BaseModel):
    """Parameters of a method: unknown keys are refused, values are checked at registration."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True)
class Row:
    """A request whose next token is being decided, with its token ids so far."""

    request: str
    prompt: Sequence[int]
    output: Sequence[int]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a method makes of a target: `facts` for its plan, and for its worker's table `tensors` and `files`."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


class Intervention:
    """One method. Instances are stateless; the table in this package names each exactly once.

    `artifact` tells whether the method needs a trained artifact, named by its content hash in the parameter of
    that name. The tensor maths runs in the worker, batched over all requests of the step with equal parameters
    and table, and is a pure function of its arguments: chunking, recompute and batch order change nothing.
    `resident` is how many samples at once may hold state in a worker, for a method that keeps some; requests
    beyond it wait in the frontend. `exclusive`: a request can have it with one set of parameters only.
    """

    params_type: ClassVar[type[Params]] = Params
    artifact: ClassVar[bool] = False
    resident: ClassVar[int | None] = None
    exclusive: ClassVar[bool] = False

    def prepare(self, spec: TargetSpec, params: Params) -> Prepared | None:
        """What the method makes of the target itself at registration; None: nothing.

        A pure function. The facts reach `plan` as those of an artifact do. Where the method needs an artifact and
        the parameters name none, it becomes one: written, loaded into every worker and erased from disk again,
        so `load` reads all that it needs at once; it lives as long as the target does.

        Raises:
            LetheError: the target lacks what the method needs; the rung waits, with that sentence as the reason.
        """
        return None

    def plan(self, chosen: Chosen, prompt: Prompt, seeds: Seeds) -> Plan:
        """What to do to this request. An empty plan means that the method cannot act on it."""
        raise NotImplementedError

    def load(self, tensors: Tensors, facts: Mapping[str, Any]) -> Any:
        """What `edit` and `rescore` get as `table`, made once in each worker from an artifact's tensors and
        the facts of its manifest, to which the worker adds `model` and `folder`, the paths of the served
        weights and of the artifact, and its `digest`. A table that keeps state for requests has a method
        `forget(request)`, and as its length their number.

        Raises:
            ArtifactError: the artifact does not fit the method.
        """
        return tensors

    def edit(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        seeds: torch.Tensor,
        layer: int | None,
        params: Mapping[str, Any],
        table: Any,
    ) -> torch.Tensor:
        """New rows for `x` [n, width], float32, at a site inside the model.

        Args:
            positions: [n] absolute token positions; seeds: [n] int64, one for each row's request.
        """
        raise NotImplementedError

    def watched(self, params: Mapping[str, Any], facts: Mapping[str, Any]) -> int | None:
        """The layer behind which the method's gate observes requests that nothing matched, where these
        (valid) parameters ask for that; None: it does not.

        Raises:
            LetheError: they ask for it, and the artifact has no gate; the rung waits, with that sentence.
        """
        return None

    def hot(self, x: torch.Tensor, table: Any) -> torch.Tensor:
        """Which rows of the residuals `x` [n, width], float32, show what the gate looks for: [n], bool. The
        table's `limits` (guard.interventions.gates.Limits) say how much of it is too much."""
        raise NotImplementedError

    def rescore(
        self, logits: torch.Tensor, rows: Sequence[Row], params: Mapping[str, Any], table: Any
    ) -> torch.Tensor:
        """New `logits` [n, vocab], float32, one row for each of `rows`. What is -inf stays so, and no row may
        become all -inf."""
        raise NotImplementedError
