"""`refusal`: the model is not asked; the client gets the target's reply. The guardrail baseline."""

from __future__ import annotations

from guard.interventions.base import Intervention, Seeds
from guard.types import Chosen, Plan, Prompt, Reply


class Refusal(Intervention):
    def plan(self, chosen: Chosen, prompt: Prompt, seeds: Seeds) -> Plan:
        return Plan(reply=Reply())
