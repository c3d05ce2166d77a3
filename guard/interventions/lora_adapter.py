"""`lora_adapter`: a LoRA adapter that was trained to unlearn acts on the whole request, and on it alone.

O3, "On Large Language Model Continual Unlearning" (arXiv 2407.10223): adapters are switched on by a detector
and weighted per request by how surely it is their matter. The adapter itself runs in the engine's own LoRA
layers; what is here is which one, for whom and how strongly, and whether an artifact can be one at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from guard.artifacts import Digest
from guard.errors import ArtifactError
from guard.interventions.base import Intervention, Params, Seeds, Tensors
from guard.types import Chosen, Edit, Match, Plan, Prompt

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
LEARNED = "slices"  # the fact of a manifest by which an adapter says what it knows, and which slice of it knows what
_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
_TIED_HEAD = ("lm_head", "model.embed_tokens")


class LoraAdapterParams(Params):
    """Which adapter, and how strongly.

    artifact: content hash of the trained adapter; without one the method cannot act.
    scale: multiplies what the adapter adds to every layer; 1 is as it was trained. "score": by the score of the match,
        which is O3's soft weight where the detector `ood` found it.
    soft: the share of `scale` that a match at its threshold gets. From there it grows with the score, to all
        of it at score 1; with 1 every match gets all of it.
    """

    artifact: Digest | None = None
    scale: Annotated[float, Field(gt=0.0, le=4.0)] | Literal["score"] = 1.0
    soft: float = Field(1.0, ge=0.01, le=1.0)


class LoraAdapter(Intervention):
    params_type = LoraAdapterParams
    artifact: ClassVar[bool] = True
    exclusive: ClassVar[bool] = True

    def plan(self, chosen: Chosen, prompt: Prompt, seeds: Seeds) -> Plan:
        """One edit on every token, with the weight of the strongest match."""
        params = LoraAdapterParams.model_validate(dict(chosen.params))
        if params.artifact is None or not prompt.token_ids or not chosen.matches:
            return Plan()
        scale = max(_scale(match, params) for match in chosen.matches)
        edit = Edit(
            site="adapter",
            method="lora_adapter",
            positions=tuple(range(len(prompt.token_ids))),
            seed=seeds(chosen.matches[0].target_id),
            params=params.model_copy(update={"scale": scale}).model_dump(),
            onward=True,
            table=params.artifact,
        )
        return Plan(edits=(edit,))

    def watched(self, params: Mapping[str, Any], facts: Mapping[str, Any]) -> int | None:
        """Raises ArtifactError: the adapter of a client, which knows what it was given, would teach what must go."""
        if LEARNED in facts:
            raise ArtifactError(
                "This adapter was trained to know, not to forget; serve it as a client's own."
            )
        return None

    def load(self, tensors: Tensors, facts: Mapping[str, Any]) -> int:
        """The number by which the engine knows the adapter.

        Raises:
            ArtifactError: it names layers that the model does not have, its shapes do not fit, or it holds
                values that are not finite or that change nothing.
        """
        check(tensors, _config(facts["folder"]), shapes(facts["model"]))
        return adapter_id(facts["digest"])


def adapter_id(digest: str) -> int:
    """A number for the engine that is the same in every process, within 31 bits, and above the numbers that
    vLLM counts up for clients' own adapters."""
    return int(digest[:8], 16) & 0x3FFFFFFF | 0x40000000


def _scale(match: Match, params: LoraAdapterParams) -> float:
    """Weights are in hundredths, so that there are few distinct scales and the cache is found again."""
    if params.scale == "score":
        return max(round(match.score, 2), 0.01)
    soft = params.soft
    room = 1.0 - match.threshold
    over = (match.score - match.threshold) / room if room > 0 else 1.0
    return params.scale * round(soft + (1.0 - soft) * min(max(over, 0.0), 1.0), 2)


def check(tensors: Tensors, config: Mapping[str, Any], served: Mapping[str, tuple[int, ...]]) -> None:
    """Whether `tensors`, in PEFT's names, are an adapter for a model with weights of the `served` shapes.

    Raises:
        ArtifactError: they are not; the message says why.
    """
    if config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
        raise ArtifactError(f"The adapter's {CONFIG} does not describe a LoRA.")
    if not tensors:
        raise ArtifactError("The adapter holds no tensors.")
    modules = {_module(name) for name in tensors}
    for module in sorted(modules):
        down, up = tensors.get(f"{_PREFIX}{module}{_DOWN}"), tensors.get(f"{_PREFIX}{module}{_UP}")
        if down is None or up is None:
            raise ArtifactError(f"The adapter has only one half of {module}.")
        _check_pair(module, down, up, config["r"], served)
    if not any(_changes(tensors, module) for module in modules):
        raise ArtifactError("The adapter changes nothing: every layer's change is zero.")


def _module(name: str) -> str:
    for ending in (_DOWN, _UP):
        if name.startswith(_PREFIX) and name.endswith(ending):
            return name[len(_PREFIX) : -len(ending)]
    raise ArtifactError(f"The adapter's tensor {name} does not belong to a linear layer.")


def _check_pair(
    module: str, down: torch.Tensor, up: torch.Tensor, rank: int, served: Mapping[str, tuple[int, ...]]
) -> None:
    weight = f"{module}.weight"
    if module == _TIED_HEAD[0] and weight not in served:
        weight = f"{_TIED_HEAD[1]}.weight"
    if weight not in served:
        raise ArtifactError(f"The model has no layer {module}.")
    fits = down.ndim == up.ndim == 2 and (up.shape[0], down.shape[1]) == served[weight]
    if not fits or down.shape[0] != rank or up.shape[1] != rank:
        raise ArtifactError(f"The adapter does not fit the model's {module} with rank {rank}.")
    if not (down.isfinite().all() and up.isfinite().all()):
        raise ArtifactError(f"The adapter's {module} holds values that are not finite.")


def _changes(tensors: Tensors, module: str) -> bool:
    down, up = tensors[f"{_PREFIX}{module}{_DOWN}"], tensors[f"{_PREFIX}{module}{_UP}"]
    return bool((up.float() @ down.float()).any())


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ArtifactError(f"The adapter has no readable {CONFIG}.") from None
    if not isinstance(config, dict):
        raise ArtifactError(f"The adapter's {CONFIG} does not describe a LoRA.")
    return config


def shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights in the model's folder, by name."""
    from safetensors import safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found
