"""A transformers encoder with a classification head, fine-tuned to tell windows of one target from all others.

Prompts are split by source: with three shares of five it is trained, on the fourth it stops, and on the fifth the
threshold is measured (split-conformal) and the forget prompts are counted that it finds. It stops where no epoch any
more misses fewer forget prompts at the threshold that keeps the fourth share at its rate; of equal epochs the one with
the smaller loss there is kept."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classifiers.base import Task
from classifiers.prompts import Made, Material, measured, threshold_of
from guard import artifacts
from guard.detection.graph import export
from guard.detection.trained import GRAPH, LONGEST, TOKENIZER, TransformerHead, chance
from guard.errors import BadRequest

_SHARES = 5
_PATIENCE = 3  # epochs without a better one
_READ = 64  # windows at once where nothing is learned
_ALIKE = 1e-3  # of scores of the graph and of the model


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    epochs: int
    batch: int
    learning_rate: float


def fine_tuned(task: Task, folder: Path, plan: Plan, material: Material) -> Made:
    """Fine-tune the model in `folder` and put it into `task.out` as a graph with its tokenizer.

    Raises:
        BadRequest: the folder holds no such model, or the graph does not say what the model says.
    """
    torch.manual_seed(plan.seed)
    model, tokenizer = _load(folder)
    learned, watched, held = (material.share(of, _SHARES, plan.seed) for of in ((0, 1, 2), (3,), (4,)))
    _learn(model, tokenizer, learned, watched, plan, task)
    task.progress.report(0.9, "measuring")
    scores = _scores(model, tokenizer, held)
    strata = held.strata(scores)
    threshold = threshold_of(strata)
    own = held.own.highest(scores["own"], float(scores["own"].min()))
    _write(model, tokenizer, task.out, held.own.texts[:8], scores["own"][:8])
    told = measured(strata, own, threshold, chance)
    facts = {"threshold": threshold, "fine_tuned": artifacts.weights_digest(folder)}
    return Made(None, facts, {"windows": len(learned.own.texts), **told})


def _load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=1,
            ignore_mismatched_sizes=True,  # a head for other labels is made anew
            local_files_only=True,
            use_safetensors=True,
            attn_implementation="eager",
        )
    except (OSError, ValueError):
        raise BadRequest(f"The folder {folder.name} holds no encoder that can be fine-tuned.") from None
    if not tokenizer.is_fast:
        raise BadRequest(f"The tokenizer in {folder.name} has no tokenizer.json, which serving needs.")
    return model.float(), tokenizer


def _learn(model: Any, tokenizer: Any, learned: Material, watched: Material, plan: Plan, task: Task) -> None:
    """Leaves in `model` the weights of the best epoch. The target's few windows weigh as much as all others together:
    by how often they are drawn, since a weight on the loss would shake the few steps that meet one."""
    texts = [text for of in learned.sorts.values() for text in of.texts]
    labels = torch.zeros(len(texts))
    labels[: len(learned.own.texts)] = 1.0  # they come first
    weights = torch.where(labels > 0, 1 / labels.sum(), 1 / (1 - labels).sum())
    loss = torch.nn.BCEWithLogitsLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate)
    generator = torch.Generator().manual_seed(plan.seed)
    best, kept, since = (np.inf, np.inf), model.state_dict(), 0
    for epoch in range(plan.epochs):
        task.progress.report(0.1 + 0.8 * epoch / plan.epochs, "training")
        model.train()
        for rows in torch.multinomial(weights, len(texts), True, generator=generator).split(plan.batch):
            optimizer.zero_grad()
            loss(_logits(model, tokenizer, [texts[row] for row in rows]), labels[rows]).backward()
            optimizer.step()
        found = _errors(_scores(model, tokenizer, watched), watched)
        if found < best:
            best, kept, since = found, copy.deepcopy(model.state_dict()), 0
        elif (since := since + 1) >= _PATIENCE:
            break
    model.load_state_dict(kept)
    model.eval()


def _errors(scores: dict[str, np.ndarray], watched: Material) -> tuple[float, float]:
    """The share of forget prompts that are missed at the rate of the others, and the loss of both sorts alike."""
    own = watched.own.highest(scores["own"], float(scores["own"].min()))
    others = np.concatenate([of for name, of in scores.items() if name != "own"])
    loss = np.logaddexp(0.0, -scores["own"]).mean() + np.logaddexp(0.0, others).mean()
    return float((own < threshold_of(watched.strata(scores))).mean()), float(loss)


def _scores(model: Any, tokenizer: Any, material: Material) -> dict[str, np.ndarray]:
    """[windows] of each sort."""
    model.eval()
    with torch.inference_mode():
        return {
            name: np.concatenate(
                [
                    np.zeros(0),
                    *(
                        _logits(model, tokenizer, of.texts[at : at + _READ]).numpy()
                        for at in range(0, len(of.texts), _READ)
                    ),
                ]
            )
            for name, of in material.sorts.items()
        }


def _logits(model: Any, tokenizer: Any, texts: Any) -> Any:
    """[texts]"""
    read = tokenizer(list(texts), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    return model(input_ids=read["input_ids"], attention_mask=read["attention_mask"]).logits[:, 0]


def _write(model: Any, tokenizer: Any, out: Path, texts: Any, expected: np.ndarray) -> None:
    class Forward(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, 0]

    out.mkdir(parents=True, exist_ok=True)
    tokenizer.backend_tokenizer.save(str(out / TOKENIZER))
    export(model, out / GRAPH, Forward())
    found = TransformerHead.of_files(0.0, out).of(texts)
    if not np.allclose(found, expected, atol=_ALIKE * max(1.0, float(np.abs(expected).max()))):
        raise BadRequest("The graph of the fine-tuned model does not say what the model says.")
