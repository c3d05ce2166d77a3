"""What an intervention is: one method that plans for a request, and, where it acts inside the model, its maths."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from guard.types import Chosen, Plan, Prompt

if TYPE_CHECKING:
    import torch

Seeds = Callable[[str], str]
"""Target id -> 16 hex digits, HMAC(secret, target, prompt tokens)."""


class Params(BaseModel):
    """Parameters of a method: unknown keys are refused, values are checked at registration."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Intervention:
    """One method. Instances are stateless; the table in this package names each exactly once."""

    params_type: ClassVar[type[Params]] = Params

    def plan(self, chosen: Chosen, prompt: Prompt, seeds: Seeds) -> Plan:
        """What to do to this request. An empty plan means that the method cannot act on it."""
        raise NotImplementedError

    @staticmethod
    def edit(x: torch.Tensor, positions: torch.Tensor, seed: str, params: dict[str, Any]) -> torch.Tensor:
        """The tensor maths at the method's site: rows `x` [n, width] at absolute `positions` [n] -> new rows.

        A pure function of its arguments: chunking, recompute and batch order change nothing.
        """
        raise NotImplementedError
