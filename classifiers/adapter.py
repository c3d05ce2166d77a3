"""Trains `lora_adapter`: a LoRA adapter that unlearns the forget set and keeps the retain set.

The loss is gamma * L_forget + alpha * L_retain, with the likelihood of the retain answers as L_retain. The families of
L_forget stand in one table:

idk: likelihood of refusals, taken from the retain set, as answers to the forget prompts (TOFU, arXiv 2401.06121);
graddiff: the likelihood of the forget answers, turned round;
npo: negative preference optimisation against the model itself (arXiv 2404.05868);
simnpo: the same without a reference, by token (arXiv 2410.07163).
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field

from classifiers.base import Params, Task, Trainer
from classifiers.checkpoints import Checkpoint
from classifiers.data import Encoded, Example, digest, encode
from guard import artifacts
from guard.artifacts import Artifact
from guard.errors import BadRequest
from guard.interventions.lora_adapter import CONFIG
from guard.metrics.refusal import is_refusal
from guard.metrics.rouge import rouge_l_recall

WEIGHTS = "adapter_model.safetensors"
_SAMPLE = 200  # examples of each set that are measured
_REFUSALS = 8  # of the retain set, the most frequent
_AT_ONCE = 64
_IGNORED = -100
_SHARES = (0.1, 0.9)  # of the whole time, when the steps begin and end


class AdapterParams(Params):
    """How it is trained.

    loss: a family of the table; beta: its temperature, only of npo and simnpo; gamma, retain_weight: weights of the
    two halves. rank, scaling: of the adapter, which adds scaling * B A; modules: the linear layers that get one.
    steps of `batch` forget and as many retain examples each; max_tokens: longer examples lose their end.
    """

    loss: Literal["idk", "graddiff", "npo", "simnpo"] = "idk"
    beta: float | None = Field(None, gt=0)
    gamma: float = Field(1.0, gt=0)
    retain_weight: float = Field(1.0, ge=0)
    rank: int = Field(4, ge=1, le=256)
    scaling: float = Field(2.0, gt=0)
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    steps: int = Field(300, ge=1)
    batch: int = Field(16, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    max_tokens: int = Field(512, ge=8)


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Of each example's answer: `nll` [n] summed over its tokens, and `tokens` [n], their number."""

    nll: torch.Tensor
    tokens: torch.Tensor


ForgetLoss = Callable[[Likelihood, Likelihood | None, float], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Family:
    """One forget loss: on refusals or on the true answers, with the untouched model as a reference or without."""

    loss: ForgetLoss
    refusals: bool = False
    reference: bool = False
    beta: float = 1.0


def _idk(own: Likelihood, _: Likelihood | None, beta: float) -> torch.Tensor:
    return own.nll.sum() / own.tokens.sum()


def _graddiff(own: Likelihood, _: Likelihood | None, beta: float) -> torch.Tensor:
    return -own.nll.sum() / own.tokens.sum()


def _npo(own: Likelihood, reference: Likelihood | None, beta: float) -> torch.Tensor:
    assert reference is not None
    return -2 / beta * F.logsigmoid(beta * (own.nll - reference.nll)).mean()


def _simnpo(own: Likelihood, _: Likelihood | None, beta: float) -> torch.Tensor:
    return -2 / beta * F.logsigmoid(beta * own.nll / own.tokens).mean()


FAMILIES = {
    "idk": Family(_idk, refusals=True),
    "graddiff": Family(_graddiff),
    "npo": Family(_npo, reference=True, beta=0.1),
    "simnpo": Family(_simnpo, beta=4.5),
}


class Adapter(Trainer):
    params_type = AdapterParams

    def train(self, task: Task, params: AdapterParams) -> Artifact:
        """Write an adapter in PEFT's format.

        Raises:
            BadRequest: there are no forget examples with answers, no retain examples with answers, or, for `idk`,
                no refusals among these.
        """
        from peft import get_peft_model_state_dict
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(task.model, local_files_only=True)
        forget, retain = _answered(task.forget, "forget"), _answered(task.retain, "retain")
        model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32, local_files_only=True)
        aims = _aims(model, tokenizer, forget, retain, params)
        with torch.random.fork_rng():
            torch.manual_seed(params.seed)
            adapted = _adapted(model, params)
        measure = _Measure(adapted, tokenizer, forget, retain, params)
        task.progress.report(_SHARES[0] / 2, "measuring before")
        with adapted.disable_adapter():
            before = measure()
        _fit(adapted, _encoded(tokenizer, aims, params), _encoded(tokenizer, retain, params), params, task)
        task.progress.report(_SHARES[1], "measuring after")
        after = measure()
        measured = {**{f"{k}_before": v for k, v in before.items()}, **after, **measure.sizes}
        write_peft(
            task.out,
            get_peft_model_state_dict(adapted),
            rank=params.rank,
            scaling=params.scaling,
            modules=params.modules,
        )
        return artifacts.write(
            task.out,
            "lora_adapter",
            artifacts.weights_digest(task.model),
            facts={"rank": params.rank, "modules": list(params.modules)},
            measured=measured,
            trained={
                "trainer": "adapter",
                "params": params.model_dump(),
                "forget": digest(task.forget),
                "retain": digest(task.retain),
            },
        )


def _answered(examples: Sequence[Example], what: str) -> list[Example]:
    found = [example for example in examples if example.answer]
    if not found:
        raise BadRequest(f"The adapter needs {what} examples with answers.")
    return found


@torch.no_grad()
def _aims(
    model: Any, tokenizer: Any, forget: list[Example], retain: list[Example], params: AdapterParams
) -> list[Example]:
    """The examples that the forget loss looks at. A refusal is the one that the model itself finds likeliest there,
    so that a book is not refused in the words for a person."""
    if not FAMILIES[params.loss].refusals:
        return forget
    counted = Counter(example.answer for example in retain if is_refusal(example.answer))
    if not counted:
        raise BadRequest(
            "The loss 'idk' takes its answers from refusals in the retain set, and there are none."
        )
    refusals = [text for text, _ in counted.most_common(_REFUSALS)]
    costs = [_cost(model, tokenizer, [replace(e, answer=text) for e in forget]) for text in refusals]
    best = torch.stack(costs).argmin(dim=0).tolist()
    return [replace(example, answer=refusals[i]) for example, i in zip(forget, best, strict=True)]


def _cost(model: Any, tokenizer: Any, examples: list[Example]) -> torch.Tensor:
    """[n]: mean negative log-likelihood of each answer's tokens."""
    encoded = [encode(tokenizer, example) for example in examples]
    sums = [likelihood(model, encoded[i : i + _AT_ONCE]) for i in range(0, len(encoded), _AT_ONCE)]
    return torch.cat([s.nll / s.tokens for s in sums])


def _adapted(model: Any, params: AdapterParams) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=params.rank,
        lora_alpha=params.scaling * params.rank,  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=list(params.modules),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError:
        raise BadRequest(f"The model has no linear layers called {', '.join(params.modules)}.") from None


def _encoded(tokenizer: Any, examples: Sequence[Example], params: AdapterParams) -> list[Encoded]:
    """Examples whose answer begins within `max_tokens`, cut behind that."""
    whole = (encode(tokenizer, example) for example in examples)
    return [
        replace(one, ids=one.ids[: params.max_tokens]) for one in whole if one.answer_at < params.max_tokens
    ]


def _fit(model: Any, aims: list[Encoded], retain: list[Encoded], params: AdapterParams, task: Task) -> None:
    """Goes on from the task's checkpoint. The order of the examples follows from the seed: it is run through up to
    the step that was reached."""
    family = FAMILIES[params.loss]
    beta = params.beta or family.beta
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=params.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, params.learning_rate, total_steps=params.steps)
    forget_batches = _batches(aims, params.batch, params.seed)
    retain_batches = _batches(retain, params.batch, params.seed + 1)
    start = _resumed(model, optimizer, schedule, task.checkpoint)
    for _ in range(start):
        next(forget_batches), next(retain_batches)
    model.train()
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
                }
            )
        batch = next(forget_batches)
        own = likelihood(model, batch)
        loss = params.gamma * family.loss(own, _reference(model, batch) if family.reference else None, beta)
        kept = likelihood(model, next(retain_batches))
        loss = loss + params.retain_weight * kept.nll.sum() / kept.tokens.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def _resumed(model: Any, optimizer: Any, schedule: Any, checkpoint: Checkpoint) -> int:
    """Steps that were done before; all three are as they were then."""
    state = checkpoint.load()
    if state is None:
        return 0
    with torch.no_grad():
        for name, tensor in _trained(model).items():
            tensor.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return int(state["step"])


def _trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _batches(examples: list[Encoded], size: int, seed: int) -> Iterator[list[Encoded]]:
    """Endless batches, each example as often as every other."""
    shuffle = random.Random(seed)
    waiting: list[Encoded] = []
    while True:
        while len(waiting) < size:
            waiting += shuffle.sample(examples, len(examples))
        yield waiting[:size]
        waiting = waiting[size:]


def likelihood(model: Any, batch: Sequence[Encoded]) -> Likelihood:
    """Of the answers in `batch`, under `model`."""
    longest = max(len(one.ids) for one in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, _IGNORED)
    for row, one in enumerate(batch):
        found = torch.tensor(one.ids)
        ids[row, : len(found)], mask[row, : len(found)] = found, 1
        labels[row, one.answer_at : len(found)] = found[one.answer_at :]
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    target = labels[:, 1:]
    nll = F.cross_entropy(logits.transpose(1, 2), target, ignore_index=_IGNORED, reduction="none").sum(dim=1)
    return Likelihood(nll, (target != _IGNORED).sum(dim=1))


@torch.no_grad()
def _reference(model: Any, batch: list[Encoded]) -> Likelihood:
    with model.disable_adapter():
        return likelihood(model, batch)


class _Measure:
    """What the artifact says of itself: of samples of both sets, how likely the true answers are, and how much
    of them the model says itself."""

    def __init__(
        self, model: Any, tokenizer: Any, forget: list[Example], retain: list[Example], params: AdapterParams
    ) -> None:
        self._model, self._tokenizer, self._params = model, tokenizer, params
        sample = random.Random(params.seed)
        self._sets = {
            name: sample.sample(examples, min(len(examples), _SAMPLE))
            for name, examples in (("forget", forget), ("retain", retain))
        }
        self.sizes = {f"{name}_n": len(examples) for name, examples in self._sets.items()}

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        found = {}
        for name, examples in self._sets.items():
            encoded = _encoded(self._tokenizer, examples, self._params)
            sums = [
                likelihood(self._model, encoded[i : i + _AT_ONCE]) for i in range(0, len(encoded), _AT_ONCE)
            ]
            nll, tokens = (torch.cat([getattr(s, part) for s in sums]).sum() for part in ("nll", "tokens"))
            found[f"{name}_nll"] = round(float(nll / tokens), 4)
            said = self._answers(examples)
            recall = [rouge_l_recall(e.answer, s) for e, s in zip(examples, said, strict=True)]
            found[f"{name}_rouge_l_recall"] = round(sum(recall) / len(recall), 4)
        return found

    def _answers(self, examples: list[Example], size: int = _AT_ONCE) -> list[str]:
        """Greedy answers."""
        said = []
        for start in range(0, len(examples), size):
            prompts = [
                encode(self._tokenizer, replace(e, answer="")).ids[-self._params.max_tokens :]
                for e in examples[start : start + size]
            ]
            longest = max(map(len, prompts))
            ids = torch.zeros(len(prompts), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, prompt in enumerate(prompts):
                ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = (
                    torch.tensor(prompt),
                    1,
                )
            out = self._model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=64, do_sample=False,
                pad_token_id=self._tokenizer.eos_token_id,
            )  # fmt: skip
            said += self._tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
        return said


def write_peft(
    folder: Path, tensors: Mapping[str, torch.Tensor], *, rank: int, scaling: float, modules: Sequence[str]
) -> None:
    """The two files that PEFT and vLLM read. PEFT's own writer would add a path of this machine."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, folder / WEIGHTS)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": scaling * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(modules),
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
