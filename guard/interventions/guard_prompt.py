"""`guard_prompt`: the model is told, in front of the client's last message, that it knows nothing of the target.

The prompting baseline of Thaker et al., "Guardrail Baselines for Unlearning in LLMs" (arXiv 2403.03329), in the
form that RWKU uses for a single subject. The text is put at token level inside the rendered prompt, so it needs
nothing of the chat template; the client sees neither the text nor its tokens in `usage`.
"""

from __future__ import annotations

from pydantic import Field

from guard.interventions.base import Intervention, Params, Seeds
from guard.types import Chosen, Insertion, Plan, Prompt


class GuardPromptParams(Params):
    """`text` is put before the last user message; `{names}` stands for what the request named."""

    text: str = Field(
        "You know nothing about {names}. If asked about {names}, say that you do not know.\n",
        min_length=1,
        max_length=4_000,
    )


class GuardPrompt(Intervention):
    params_type = GuardPromptParams

    def plan(self, chosen: Chosen, prompt: Prompt, seeds: Seeds) -> Plan:
        params = GuardPromptParams.model_validate(dict(chosen.params))
        names = dict.fromkeys(prompt.text[s.start : s.end] for m in chosen.matches for s in m.spans)
        text = params.text.replace("{names}", " and ".join(names) or "this")
        return Plan(insertions=(Insertion(at=last_user_start(prompt), text=text),))


def last_user_start(prompt: Prompt) -> int:
    """Character of the rendered prompt at which the last user message starts; 0 for a bare prompt."""
    users = [m.text for m in prompt.messages if m.role == "user" and m.text.strip()]
    return max(prompt.text.rfind(users[-1].strip()), 0) if users else 0
