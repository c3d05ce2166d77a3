"""Trains `lora_adapter`: a LoRA adapter that unlearns the forget set and keeps the retain set.

What is minimised is gamma * L_forget + retain_weight * L_retain. The losses, their retain halves and the ways in which
the gradients of both meet are the tables of `classifiers.losses`; where the adapter edits is in `classifiers.places`,
and one of two ways to start it in `classifiers.fila`.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field

from classifiers import fila, lora
from classifiers.base import Params, Task, Trainer
from classifiers.checkpoints import Checkpoint
from classifiers.data import Encoded, Example, encode
from classifiers.losses import HALVES, ChosenHalf, ChosenLoss, ChosenUpdate, Half, Idk, Nothing, Sum
from classifiers.losses.base import Pair, Step, answers
from classifiers.losses.updates import slope, uphill
from classifiers.orthogonal import Orthogonal
from classifiers.places import ChosenAttribution, Layers, Sensed, linear_layers, sensed
from guard.artifacts import Artifact
from guard.errors import BadRequest
from guard.metrics.refusal import is_refusal

_REFUSALS = 8  # of the retain set, the most frequent
_SHARES = (0.1, 0.9)  # of the whole time, when the steps begin and end
T = TypeVar("T")


class AdapterParams(Params):
    """How it is trained.

    loss: the forget half, a name or an object of name and parameters; retain: the retain half, by default that of the
    loss's paper; gamma, retain_weight: their weights; update: how their gradients meet; sam: how far uphill the forget
    gradient is taken, 0 for where the weights are. rank, scaling: of the adapter, which adds scaling * B A; init:
    `zero` (B is 0) or `fila`, which doubles the rank that is served. modules, layers: the linear layers that get one;
    attribution: only those of them where what must go shows. refusals: what losses that aim at refusals aim at, by
    default the most frequent ones of the retain set. steps of `batch` forget and as many retain examples each;
    max_tokens: longer examples lose their end; sample: examples of each set that are measured before and after.
    orthogonal: weight of what keeps this adapter apart from those made before, where some are given (O3); 0 for none.
    """

    loss: ChosenLoss = Idk()
    retain: ChosenHalf | None = None
    gamma: float = Field(1.0, gt=0)
    retain_weight: float = Field(1.0, ge=0)
    update: ChosenUpdate = Sum()
    sam: float = Field(0.0, ge=0)
    rank: int = Field(4, ge=1, le=256)
    scaling: float = Field(2.0, gt=0)
    init: Literal["zero", "fila"] = "zero"
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    layers: Layers = "all"
    attribution: ChosenAttribution | None = None
    refusals: tuple[str, ...] = ()
    steps: int = Field(300, ge=1)
    batch: int = Field(16, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    max_tokens: int = Field(512, ge=8)
    sample: int = Field(200, ge=1)
    orthogonal: float = Field(0.1, ge=0)

    @property
    def half(self) -> Half:
        """The chosen one, or the loss's own with those of its parameters that both have."""
        if self.retain is not None:
            return self.retain
        half = HALVES[self.loss.half]
        return half(**{key: value for key, value in self.loss if key != "name" and key in half.model_fields})

    @property
    def senses(self) -> bool:
        """Whether gradients are taken before anything is trained."""
        return self.attribution is not None or self.init == "fila"

    @property
    def served_rank(self) -> int:
        return 2 * self.rank if self.init == "fila" else self.rank


@dataclass(frozen=True, slots=True)
class Places:
    """The linear layers that get a pair of matrices: their whole names, and how the adapter's configuration names them;
    and the gradients on both sets there, where they were taken."""

    targets: tuple[str, ...]
    modules: tuple[str, ...]
    forget: Sensed | None = None
    retain: Sensed | None = None


class Adapter(Trainer):
    params_type = AdapterParams
    adapters = True

    def train(self, task: Task, params: AdapterParams) -> Artifact:
        """Write an adapter in PEFT's format.

        Raises:
            BadRequest: there are no forget examples with answers; no retain examples with answers or, where the loss
                aims at refusals and none are named, no refusals among these, and they are needed; or the model has no
                such place.
        """
        from peft import get_peft_model_state_dict
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(task.model, local_files_only=True)
        forget = lora.answered(task.forget, "forget")
        retain = lora.answered(task.retain, "retain", _needs_retain(params))
        model = AutoModelForCausalLM.from_pretrained(
            task.model, dtype=torch.float32, local_files_only=True
        ).eval()
        pairs = _pairs(model, tokenizer, forget, retain, params)
        kept = lora.encoded(tokenizer, retain, params.max_tokens)
        places = _places(model, [pair.answer for pair in pairs], kept, params)
        adapted = _adapted(model, places, params)
        measure = lora.Measure(
            adapted, tokenizer, forget, retain,
            sample=params.sample, seed=params.seed, max_tokens=params.max_tokens,
        )  # fmt: skip
        task.progress.report(_SHARES[0] / 2, "measuring before")
        with adapted.disable_adapter():
            before = measure()
        _fit(adapted, pairs, kept, params, task)
        task.progress.report(_SHARES[1], "measuring after")
        return lora.write_tensors(
            task,
            "adapter",
            params,
            get_peft_model_state_dict(adapted),
            rank=params.served_rank,
            scaling=params.scaling,
            modules=places.modules,
            measured=measure.told(before, measure()),
        )


def _needs_retain(params: AdapterParams) -> bool:
    """Raises BadRequest: the update needs a retain half, and there is none."""
    without = isinstance(params.half, Nothing)
    if without and params.update.retain:
        raise BadRequest(f"'{params.update.name}' needs a retain half; name one in `retain`.")
    aims = params.loss.aims != "none" and not params.refusals
    return not without or params.senses or aims


def _pairs(
    model: Any, tokenizer: Any, forget: list[Example], retain: list[Example], params: AdapterParams
) -> list[Pair]:
    """The forget examples with what they aim at: nothing, the refusal that the model itself finds likeliest there, so
    that a book is not refused in the words for a person, or each of several."""
    if params.loss.aims == "none":
        return [Pair(answer) for answer in lora.encoded(tokenizer, forget, params.max_tokens)]
    counted = Counter(params.refusals or [e.answer for e in retain if is_refusal(e.answer)])
    if not counted:
        raise BadRequest(
            f"The loss '{params.loss.name}' aims at refusals, and the retain set has none; name some in `refusals`."
        )
    refusals = [text for text, _ in counted.most_common(_REFUSALS)]
    aims: Sequence[Sequence[str]] = [refusals] * len(forget)
    if params.loss.aims == "refusal":
        costs = [_cost(model, tokenizer, [replace(e, answer=text) for e in forget]) for text in refusals]
        aims = [[refusals[i]] for i in torch.stack(costs).argmin(dim=0).tolist()]
    wanted = [(example, aim) for example, own in zip(forget, aims, strict=True) for aim in own]
    true = lora.encoded(tokenizer, [example for example, _ in wanted], params.max_tokens)
    instead = lora.encoded(
        tokenizer, [replace(example, answer=aim) for example, aim in wanted], params.max_tokens
    )
    return [Pair(answer, aim) for answer, aim in zip(true, instead, strict=True)]


@torch.no_grad()
def _cost(model: Any, tokenizer: Any, examples: list[Example]) -> torch.Tensor:
    """[n]: mean negative log-likelihood of each answer's tokens."""
    encoded = [encode(tokenizer, example) for example in examples]
    read = [answers(model, encoded[i : i + lora.AT_ONCE]) for i in range(0, len(encoded), lora.AT_ONCE)]
    return torch.cat([one.averaged(one.nll) for one in read])


def _places(model: Any, forget: list[Encoded], retain: list[Encoded], params: AdapterParams) -> Places:
    weights = linear_layers(model, params.modules, params.layers)
    targets, own, other = tuple(weights), None, None
    if params.senses:
        own, other = (sensed(model, weights, examples, params.seed) for examples in (forget, retain))
    if params.attribution is not None:
        assert own is not None and other is not None
        targets = params.attribution.choose(weights, own, other)
    everywhere = targets == tuple(linear_layers(model, params.modules, "all"))
    return Places(targets, params.modules if everywhere else targets, own, other)


def _adapted(model: Any, places: Places, params: AdapterParams) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=params.served_rank,
        lora_alpha=params.scaling * params.served_rank,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=list(places.targets),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(params.seed)
        adapted = get_peft_model(model, config)
    if params.init == "fila":
        assert places.forget is not None and places.retain is not None
        fila.start(
            adapted, places.targets, places.forget, places.retain, params.rank, params.scaling, params.seed
        )
    return adapted.eval()


def _fit(model: Any, pairs: list[Pair], retain: list[Encoded], params: AdapterParams, task: Task) -> None:
    """Goes on from the task's checkpoint. The order of the examples follows from the seed: it is run through up to
    the step that was reached. The model stays in evaluation mode, since with dropout it would not be what it was before
    even where nothing has changed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=params.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, params.learning_rate, total_steps=params.steps)
    forget_batches = _batches(pairs, params.batch, params.seed)
    retain_batches = _batches(retain, params.batch, params.seed + 1)
    apart = Orthogonal(model, map(lora.read, task.adapters if params.orthogonal else ()))
    start, memory = _resumed(model, optimizer, schedule, task.checkpoint)
    for _ in range(start):
        next(forget_batches), next(retain_batches)
    for step in range(start, params.steps):
        begin, end = _SHARES
        task.progress.report(begin + (end - begin) * step / params.steps, "training")
        if task.checkpoint.due(step):
            task.checkpoint.save(
                {
                    "step": step,
                    "weights": _trained(model),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "update": memory,
                }
            )
        batches = Step(model, next(forget_batches), next(retain_batches), params.seed)
        gradients = _gradient(batches, trained, params, memory)
        if apart:
            beside = slope(apart(), trained)
            gradients = [g + params.orthogonal * b for g, b in zip(gradients, beside, strict=True)]
        for weight, gradient in zip(trained, gradients, strict=True):
            weight.grad = gradient
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()


def _gradient(
    step: Step, trained: list[torch.Tensor], params: AdapterParams, memory: dict[str, Any]
) -> list[torch.Tensor]:
    """Of what is minimised. One half is done with before the other is read."""
    forget = slope(params.loss(step), trained)
    if params.sam:
        with uphill(trained, forget, params.sam):
            forget = slope(params.loss(step.again()), trained)
    if isinstance(params.half, Nothing):
        return [params.gamma * g for g in forget]
    retain = slope(params.half(step), trained)
    forget, retain = params.update(forget, retain, memory)
    return [params.gamma * f + params.retain_weight * r for f, r in zip(forget, retain, strict=True)]


def _resumed(model: Any, optimizer: Any, schedule: Any, checkpoint: Checkpoint) -> tuple[int, dict[str, Any]]:
    """Steps that were done before, and what the update remembers; the three are as they were then."""
    state = checkpoint.load()
    if state is None:
        return 0, {}
    with torch.no_grad():
        for name, tensor in _trained(model).items():
            tensor.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return int(state["step"]), state["update"]


def _trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _batches(examples: Sequence[T], size: int, seed: int) -> Iterator[list[T]]:
    """Endless batches, each example as often as every other; empty ones of none."""
    if not examples:
        yield from itertools.repeat([])
    shuffle = random.Random(seed)
    waiting: list[T] = []
    while True:
        while len(waiting) < size:
            waiting += shuffle.sample(examples, len(examples))
        yield waiting[:size]
        waiting = waiting[size:]
