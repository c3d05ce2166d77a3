"""What every trainer of `lora_adapter` shares: adapters as numbers, their files, and what is measured of them.

An adapter is, for each linear layer that it changes, by the whole name of that layer, a pair A [rank, in] and
B [out, rank] of matrices: it adds B A to the layer's weight. Scalings of PEFT's configuration are within B.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from classifiers.base import Params, Task
from classifiers.data import Encoded, Example, digest, encode
from classifiers.losses.base import answers
from guard import artifacts
from guard.artifacts import Artifact
from guard.errors import BadRequest
from guard.interventions.lora_adapter import CONFIG
from guard.metrics.rouge import rouge_l_recall

METHOD = "lora_adapter"
WEIGHTS = "adapter_model.safetensors"
AT_ONCE = 64
_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"

Pairs = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Whole name of a linear layer -> A [rank, in] and B [out, rank]; ranks may differ. Files hold float32."""


def read(adapter: Artifact) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The pairs of an artifact of `lora_adapter`, float32."""
    config = json.loads((adapter.folder / CONFIG).read_text(encoding="utf-8"))
    scaling = config["lora_alpha"] / config["r"]
    tensors = adapter.tensors()
    found = {}
    for name in sorted(tensors):
        if name.endswith(_DOWN):
            module = name.removeprefix(_PREFIX).removesuffix(_DOWN)
            up = tensors[f"{_PREFIX}{module}{_UP}"]
            found[module] = (tensors[name].float(), scaling * up.float())
    return found


def write(
    task: Task,
    trainer: str,
    params: Params,
    pairs: Pairs,
    measured: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> Artifact:
    """The artifact of these pairs. An adapter has one rank: the largest, up to which the others get zeros."""
    rank = max(down.shape[0] for down, _ in pairs.values())
    tensors = {}
    for module, (down, up) in pairs.items():
        missing = rank - down.shape[0]
        tensors[f"{_PREFIX}{module}{_DOWN}"] = torch.nn.functional.pad(down.float(), (0, 0, 0, missing))
        tensors[f"{_PREFIX}{module}{_UP}"] = torch.nn.functional.pad(up.float(), (0, missing))
    return write_tensors(
        task, trainer, params, tensors,
        rank=rank, scaling=1.0, modules=tuple(pairs), measured=measured, facts=facts,
    )  # fmt: skip


def write_tensors(
    task: Task,
    trainer: str,
    params: Params,
    tensors: Mapping[str, torch.Tensor],
    *,
    rank: int,
    scaling: float,
    modules: Sequence[str],
    measured: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> Artifact:
    """The artifact of `tensors` in PEFT's names, whose manifest says how the task's trainer made them."""
    write_peft(task.out, tensors, rank=rank, scaling=scaling, modules=modules)
    made_of = {"adapters": [one.digest for one in task.adapters]} if task.adapters else {}
    return artifacts.write(
        task.out,
        METHOD,
        artifacts.weights_digest(task.model),
        facts={"rank": rank, "modules": list(modules), **(facts or {})},
        measured=measured,
        trained={
            "trainer": trainer,
            "params": params.model_dump(mode="json"),
            "forget": digest(task.forget),
            "retain": digest(task.retain),
            **made_of,
        },
    )


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


def nearest(dense: torch.Tensor, rank: int) -> tuple[tuple[torch.Tensor, torch.Tensor], float]:
    """The pair of that rank, at most, whose product is nearest to `dense`, and the energy (the squared entries) that it
    leaves out."""
    u, s, v = torch.linalg.svd(dense, full_matrices=False)
    root = s[:rank].sqrt()
    return (root[:, None] * v[:rank], u[:, :rank] * root), float(s[rank:].square().sum())


@contextmanager
def added(model: Any, pairs: Pairs) -> Iterator[None]:
    """`model`, not PEFT's, with the pairs added to its weights. Afterwards these are, bit for bit, as they were.

    Raises:
        BadRequest: the model has no such layer.
    """
    weights = {name: module.weight for name, module in model.named_modules() if name in pairs}
    if missing := sorted(pairs.keys() - weights.keys()):
        raise BadRequest(f"The model has no layer {missing[0]}.")
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, (down, up) in pairs.items():
            weights[name] += (up @ down).to(weights[name].dtype)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])


def answered(examples: Sequence[Example], what: str, needed: bool = True) -> list[Example]:
    """Those with answers. Raises BadRequest: there are none, and some are needed."""
    found = [example for example in examples if example.answer]
    if needed and not found:
        raise BadRequest(f"The adapter needs {what} examples with answers.")
    return found


def encoded(tokenizer: Any, examples: Sequence[Example], max_tokens: int) -> list[Encoded]:
    """Examples whose answer begins within `max_tokens`, cut behind that."""
    whole = (encode(tokenizer, example) for example in examples)
    return [replace(one, ids=one.ids[:max_tokens]) for one in whole if one.answer_at < max_tokens]


class Measure:
    """What an artifact says of itself: of samples of both sets, how likely the true answers are (`nll`, nats a token),
    and how much of them the model says itself (`rouge_l_recall`, mean). Examples without answers are left out."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        forget: Sequence[Example],
        retain: Sequence[Example],
        *,
        sample: int,
        seed: int,
        max_tokens: int = 512,
    ) -> None:
        self._model, self._tokenizer, self._max_tokens = model, tokenizer, max_tokens
        rng = random.Random(seed)
        sets = (("forget", answered(forget, "forget", False)), ("retain", answered(retain, "retain", False)))
        self._sets = {name: rng.sample(some, min(len(some), sample)) for name, some in sets if some}
        self.sizes = {f"{name}_n": len(examples) for name, examples in self._sets.items()}

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        found = {}
        for name, examples in self._sets.items():
            read = encoded(self._tokenizer, examples, self._max_tokens)
            batches = [answers(self._model, read[i : i + AT_ONCE]) for i in range(0, len(read), AT_ONCE)]
            found[f"{name}_nll"] = round(float(torch.cat([one.nll for one in batches]).mean()), 4)
            said = self._answers(examples)
            recall = [rouge_l_recall(e.answer, s) for e, s in zip(examples, said, strict=True)]
            found[f"{name}_rouge_l_recall"] = round(sum(recall) / len(recall), 4)
        return found

    def under(self, pairs: Pairs) -> dict[str, Any]:
        """Before and with the pairs, and of how many examples."""
        before = self()
        with added(self._model, pairs):
            after = self()
        return self.told(before, after)

    def told(self, before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
        """Both as a manifest has them."""
        return {**{f"{name}_before": value for name, value in before.items()}, **after, **self.sizes}

    def _answers(self, examples: Sequence[Example]) -> list[str]:
        """Greedy."""
        said: list[str] = []
        for start in range(0, len(examples), AT_ONCE):
            prompts = [
                encode(self._tokenizer, replace(e, answer="")).ids[-self._max_tokens :]
                for e in examples[start : start + AT_ONCE]
            ]
            longest = max(map(len, prompts))
            ids = torch.zeros(len(prompts), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, prompt in enumerate(prompts):
                ids[row, longest - len(prompt) :] = torch.tensor(prompt)
                mask[row, longest - len(prompt) :] = 1
            out = self._model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=64, do_sample=False,
                pad_token_id=self._tokenizer.eos_token_id,
            )  # fmt: skip
            said += self._tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
        return said
