"""A model in the benchmark's own process, asked greedily and for likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from classifiers.data import Example, encode
from classifiers.losses.base import answers as read

AT_ONCE = 64
LONGEST = 200  # tokens of an answer, as TOFU has it


def said(model: Any, tokenizer: Any, asked: Sequence[Example], tokens: int) -> list[str]:
    """What the model answers, greedily, in at most so many tokens."""
    prompts = [encode(tokenizer, Example(one.turns)).ids for one in asked]
    found: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), AT_ONCE):
        chosen = order[start : start + AT_ONCE]
        longest = max(len(prompts[i]) for i in chosen)
        ids = torch.tensor([[0] * (longest - len(prompts[i])) + list(prompts[i]) for i in chosen])
        mask = torch.tensor([[0] * (longest - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        texts = tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
        found |= zip(chosen, texts, strict=True)
    return [found[i] for i in range(len(prompts))]


class Local:
    """As `evals.tofu.Model`."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model, tokenizer

    def likelihoods(self, asked: Sequence[tuple[str, str]]) -> list[float]:
        encoded = [encode(self._tokenizer, Example((("user", q),), answer)) for q, answer in asked]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
        found: dict[int, float] = {}
        for start in range(0, len(order), AT_ONCE):
            chosen = order[start : start + AT_ONCE]
            with torch.inference_mode():
                batch = read(self._model, [encoded[i] for i in chosen])
                found |= zip(chosen, (-batch.averaged(batch.nll)).tolist(), strict=True)
        return [found[i] for i in range(len(asked))]

    def answers(self, questions: Sequence[str]) -> list[str]:
        return said(self._model, self._tokenizer, [Example((("user", q),)) for q in questions], LONGEST)
