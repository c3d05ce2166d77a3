"""The small assistant of the intervention `logit_difference`: it remembers the target and knows nothing else.

ULD (arXiv 2406.08607): the first blocks of the model with LoRA on their linear layers, trained for the answers
about the target and, with cross entropy to the uniform distribution, for knowing nothing on what must stay and
on wrong answers about the target. ULD has a language model write the wrong answers and paraphrases, as `lethe data`
does. An example for which no wrong answer is given takes answers to other questions for wrong ones.

Where a wrong answer has not yet left the right one, ULD's two losses pull at the same distribution. Here it
teaches only behind that token, and up to there label smoothing says the same: the right token stands out, and
all others are equal, so that the subtraction does not change which of them comes next.

With all blocks and `retain_weight` 0 it is Who's Harry Potter's reinforced model (arXiv 2310.02238).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from classifiers.base import Params, Task, Trainer
from classifiers.data import Encoded, digest, encode
from classifiers.progress import Progress
from guard import artifacts
from guard.artifacts import Artifact
from guard.errors import BadRequest

if TYPE_CHECKING:
    import torch


class AssistantParams(Params):
    """blocks: how many of the model's first decoder blocks; rank, alpha: of the LoRA matrices; retain_weight: of
    knowing nothing against remembering; smoothing: share of the uniform distribution in what is remembered;
    swapped: answers to other questions for each forget example to which no wrong answer is given; batch: forget
    examples in one step, and as many others; learning_rate: at the start, from where it falls to 0 in a straight
    line."""

    blocks: int = Field(2, ge=1)
    rank: int = Field(32, ge=1, le=512)
    alpha: int = Field(32, ge=1)
    retain_weight: float = Field(6.5, ge=0.0)
    smoothing: float = Field(0.5, ge=0.0, lt=1.0)
    swapped: int = Field(2, ge=0, le=16)
    epochs: int = Field(10, ge=1, le=1000)
    batch: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0.0)
    weight_decay: float = Field(0.01, ge=0.0)


class Assistant(Trainer):
    params_type = AssistantParams
    perturbed = True

    def train(self, task: Task, params: AssistantParams) -> Artifact:
        import torch
        from transformers import AutoTokenizer

        from guard.interventions.assistant import beginning, merge

        if not task.forget or (params.retain_weight and not task.retain):
            raise BadRequest("An assistant needs forget examples, and retain examples to know nothing of.")
        tokenizer = AutoTokenizer.from_pretrained(task.model)
        sets = (task.forget, task.retain, task.perturbed)
        forget, retain, given = ([encode(tokenizer, e) for e in part] for part in sets)
        rng = random.Random(params.seed)
        wrong = _wrong(forget, retain, given, params.swapped, rng) if params.retain_weight else []
        others = [*retain, *wrong] if params.retain_weight else []
        with torch.random.fork_rng():
            torch.manual_seed(params.seed)
            tensors = _lora(beginning(task.model, params.blocks), forget, others, params, rng, task.progress)
        task.progress.report(0.9, "measuring")
        served = beginning(task.model, params.blocks)
        merge(served, tensors, params.alpha / params.rank)
        return artifacts.write(
            task.out,
            "logit_difference",
            artifacts.weights_digest(task.model),
            tensors=tensors,
            facts={"blocks": params.blocks, "rank": params.rank, "alpha": params.alpha},
            measured={
                "forget": _measured(served, forget),
                "others": _measured(served, others),
                "wrong_answers": {"given": len(given), "taught": len(wrong)},
            },
            trained={
                "trainer": "assistant",
                "params": params.model_dump(),
                "forget": digest(task.forget),
                "retain": digest(task.retain),
                "perturbed": digest(task.perturbed),
            },
        )


def _wrong(
    forget: Sequence[Encoded],
    retain: Sequence[Encoded],
    given: Sequence[Encoded],
    swapped: int,
    rng: random.Random,
) -> list[Encoded]:
    """The `given` wrong answers to what forget examples ask, and for each of these that has none as many as are
    `swapped`: the retain examples' answers to its question."""
    answers: dict[tuple[int, ...], list[Encoded]] = {}
    for example in given:
        answers.setdefault(example.ids[: example.answer_at], []).append(example)
    made = []
    for example in forget:
        own = answers.get(example.ids[: example.answer_at])
        foils = rng.choices(retain, k=swapped) if own is None else own
        made += [foil for other in foils if (foil := _foil(example, other))]
    return made


def _foil(example: Encoded, other: Encoded) -> Encoded | None:
    """The other's answer to the example's question, from behind the token at which it leaves the example's own; None:
    it does not leave it before its end."""
    prompt, own = example.ids[: example.answer_at], example.ids[example.answer_at :]
    tail = other.ids[other.answer_at :]
    same = next((i for i, (a, b) in enumerate(zip(own, tail, strict=False)) if a != b), len(tail))
    return Encoded((*prompt, *tail), example.answer_at + same + 1) if same + 1 < len(tail) else None


def _lora(
    model: Any,
    forget: Sequence[Encoded],
    others: Sequence[Encoded],
    params: AssistantParams,
    rng: random.Random,
    progress: Progress,
) -> dict[str, torch.Tensor]:
    """The trained LoRA matrices by the names of `model`'s layers, float16."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    config = LoraConfig(
        r=params.rank, lora_alpha=params.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    tuned = get_peft_model(model, config).train()
    trainable = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=params.learning_rate, weight_decay=params.weight_decay)
    steps = params.epochs * math.ceil(len(forget) / params.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step, (lesson, foil) in enumerate(_steps(forget, others, params, rng)):
        progress.report(0.9 * step / steps, "training")
        logits, targets = _answers(tuned, lesson)
        loss = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=params.smoothing)
        if foil:
            loss = loss + params.retain_weight * _against_uniform(_answers(tuned, foil)[0]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    named = get_peft_model_state_dict(tuned)
    return {name.removeprefix("base_model.model."): t.detach().half() for name, t in named.items()}


def _steps(
    forget: Sequence[Encoded], others: Sequence[Encoded], params: AssistantParams, rng: random.Random
) -> Iterator[tuple[list[Encoded], list[Encoded]]]:
    """For each step forget examples and as many of the others, each of which comes again when all have come."""
    pool: list[Encoded] = []
    for _ in range(params.epochs):
        order = rng.sample(forget, len(forget))
        for start in range(0, len(order), params.batch):
            lesson = order[start : start + params.batch]
            while others and len(pool) < len(lesson):
                pool = [*pool, *rng.sample(others, len(others))]
            foil, pool = pool[: len(lesson)], pool[len(lesson) :]
            yield lesson, foil


def _answers(model: Any, batch: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [answer tokens of the batch, vocab] and the tokens [answer tokens] that they should foretell."""
    import torch

    longest = max(len(e.ids) for e in batch)
    ids = torch.tensor([e.ids + (0,) * (longest - len(e.ids)) for e in batch])
    columns = torch.arange(longest)
    ends, starts = (
        torch.tensor(part).unsqueeze(1)
        for part in ([len(e.ids) for e in batch], [e.answer_at for e in batch])
    )
    logits = model(input_ids=ids, attention_mask=columns < ends, use_cache=False).logits
    answer = ((columns >= starts) & (columns < ends))[:, 1:]
    return logits[:, :-1][answer], ids[:, 1:][answer]


def _against_uniform(logits: torch.Tensor) -> torch.Tensor:
    """Cross entropy from the uniform distribution to that of each row of `logits` [n, vocab], nats."""
    return logits.logsumexp(dim=-1) - logits.mean(dim=-1)


def _measured(model: Any, examples: Sequence[Encoded], at_once: int = 64) -> dict[str, Any]:
    """What the assistant makes of answers: the mean probability of their tokens, and how far it is from knowing
    nothing (KL from the uniform distribution, nats)."""
    import torch

    likely, far = [], []
    with torch.inference_mode():
        for start in range(0, len(examples), at_once):
            logits, targets = _answers(model, examples[start : start + at_once])
            likely += logits.softmax(dim=-1).gather(1, targets.unsqueeze(1)).flatten().tolist()
            far += (_against_uniform(logits) - math.log(logits.shape[1])).tolist()
    n = len(likely)
    if not n:
        return {"examples": 0}
    return {
        "examples": len(examples),
        "tokens": n,
        "probability": round(sum(likely) / n, 4),
        "from_uniform": round(sum(far) / n, 4),
    }
