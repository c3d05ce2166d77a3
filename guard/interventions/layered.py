"""What the methods share that act behind chosen layers with a trained artifact: their plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from guard.artifacts import Digest
from guard.interventions.base import Intervention, Params, Seeds
from guard.interventions.positions import planned
from guard.types import Chosen, Edit, Plan, Prompt, Site

Tokens = Literal["spans", "window", "prompt", "last"]


class LayeredParams(Params):
    """Which artifact, and where it acts.

    artifact: content hash of the manifest of what the method's trainer made. Without it the method cannot act.
    tokens: of the prompt, `spans` are the tokens of the matched spans, `window` all from the first to the last
        of them, `prompt` all but the first, `last` the one that the answer follows. The first token is left out
        because attention rests on it in most models. Where nothing matched inside the prompt, `prompt` is used.
    onward: whether the tokens of the answer are edited too.
    """

    artifact: Digest | None = None
    tokens: Tokens = "prompt"
    onward: bool = True


class Layered(Intervention):
    """A method with one edit for each layer that its artifact names.

    All matches that share parameters share the edit: what is pushed once is not pushed twice.
    """

    params_type: ClassVar[type[LayeredParams]] = LayeredParams
    artifact = True
    name: ClassVar[str]
    site: ClassVar[Site]

    def plan(self, chosen: Chosen, prompt: Prompt, seeds: Seeds) -> Plan:
        """Empty without an artifact, or where `able` says that this one does not do what is asked."""
        params = self.params_type.model_validate(dict(chosen.params))
        end = len(prompt.token_ids)
        if params.artifact is None or not end or not chosen.matches or not self.able(params, chosen.facts):
            return Plan()
        whole = (end - 1,) if params.tokens == "last" else range(min(1, end - 1), end)
        positions = planned(chosen.matches, prompt, params.tokens, whole)
        seed = seeds(chosen.matches[0].target_id)
        return Plan(
            edits=tuple(
                Edit(
                    self.site,
                    self.name,
                    positions,
                    seed,
                    params.model_dump(),
                    layer,
                    params.onward,
                    params.artifact,
                )
                for layer in chosen.facts.get("layers", ())
            )
        )

    def able(self, params: LayeredParams, facts: Mapping[str, Any]) -> bool:
        """Whether an artifact with these facts can do what the parameters ask."""
        return True
