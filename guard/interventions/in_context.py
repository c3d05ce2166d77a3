"""`in_context`: in front of the client's last message the model reads how such questions are answered: not at all.

ICUL, "In-Context Unlearning: Language Models as Few Shot Unlearners" (arXiv 2310.07579): examples of what must be
forgotten with other answers than the true ones, then examples of the rest with their true answers, then the
question. Here the first are the target's own examples, answered as one answers who does not know. The text is put
at token level inside the rendered prompt, as `guard_prompt` does; the client sees neither it nor its tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from guard.interventions.base import Intervention, Params, Prepared, Seeds
from guard.interventions.guard_prompt import last_user_start
from guard.types import Chosen, Insertion, Plan, Prompt

if TYPE_CHECKING:
    from guard.targets import TargetSpec

Text = Annotated[str, Field(min_length=1, max_length=4_000)]


class InContextParams(Params):
    """Which exchanges are shown, and how they are written.

    shots: so many of the target's examples are shown first, each with `answer`; a target without examples is
        asked for by its names.
    exchanges: pairs of question and answer shown behind them, such as near misses with their true answers.
    template: one exchange; `{question}` and `{answer}` are filled in. The default is the paper's own form.
    lead: what stands between the last exchange and the client's message.
    """

    shots: int = Field(8, ge=0, le=32)
    answer: Text = "I don't know."
    exchanges: tuple[tuple[Text, Text], ...] = Field((), max_length=64)
    template: Text = "{question} {answer}\n"
    lead: str = Field("", max_length=200)


class InContext(Intervention):
    params_type = InContextParams

    def prepare(self, spec: TargetSpec, params: Params) -> Prepared:
        """The questions that are shown with `answer`."""
        shots = InContextParams.model_validate(params.model_dump()).shots
        questions = spec.examples or tuple(f"What do you know about {name}?" for name in spec.names())
        return Prepared(facts={"questions": questions[:shots]})

    def plan(self, chosen: Chosen, prompt: Prompt, seeds: Seeds) -> Plan:
        """One insertion; nothing where there is nothing to show."""
        params = InContextParams.model_validate(dict(chosen.params))
        unknown = [(question, params.answer) for question in chosen.facts.get("questions", ())]
        shown = [_write(params.template, *pair) for pair in (*unknown, *params.exchanges)]
        if not shown:
            return Plan()
        return Plan(insertions=(Insertion(at=last_user_start(prompt), text="".join(shown) + params.lead),))


def _write(template: str, question: str, answer: str) -> str:
    """Filled in at once: braces in a question stay what they are."""
    parts = template.split("{question}")
    return question.join(part.replace("{answer}", answer) for part in parts)
