"""The interventions, one per file. The table is the only place that names them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from guard.errors import BadRequest
from guard.interventions.base import Intervention, Params, Prepared, Row

TABLE = {
    "lora_adapter": "guard.interventions.lora_adapter:LoraAdapter",
    "refusal": "guard.interventions.refusal:Refusal",
    "guard_prompt": "guard.interventions.guard_prompt:GuardPrompt",
    "in_context": "guard.interventions.in_context:InContext",
    "token_penalty": "guard.interventions.token_penalty:TokenPenalty",
    "logit_difference": "guard.interventions.logit_difference:LogitDifference",
    "embedding_corruption": "guard.interventions.embedding_corruption:EmbeddingCorruption",
    "sae_clamp": "guard.interventions.sae_clamp:SaeClamp",
    "steering": "guard.interventions.steering:Steering",
    "neuron_adjust": "guard.interventions.neuron_adjust:NeuronAdjust",
}


@cache
def load(method: str) -> Intervention:
    """The method of that name.

    Raises:
        BadRequest: there is no such method; the message lists those that exist.
    """
    if method not in TABLE:
        raise BadRequest(
            f"There is no method '{method}'; the methods are {', '.join(sorted(TABLE))}.",
            param="intervention",
        )
    module, name = TABLE[method].split(":")
    return getattr(import_module(module), name)()


def check_params(method: str, params: Mapping[str, Any]) -> Params:
    """Validated parameters of `method`, defaults filled in.

    Raises:
        BadRequest: an unknown method or key, or a value out of range.
    """
    try:
        return load(method).params_type.model_validate(dict(params))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadRequest(
            f"{method}: {where}: {first['msg']}.", param=f"intervention.params.{where}"
        ) from None


__all__ = ["TABLE", "Intervention", "Params", "Prepared", "Row", "check_params", "load"]
