"""A model in this process, with or without a LoRA adapter, asked as `evals.subjects` asks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evals.subjects import Ask, NotTold, Post

AT_ONCE = 64


class Local:
    """A causal model of transformers and its tokenizer. Prompts go through its chat template, or in plain lines where
    it has none; prompt and answer are tokenised apart, as the model wrote it."""

    ends = True

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        self.name = name
        self.model, self._tokenizer = model, tokenizer

    @classmethod
    def load(cls, folder: Path, adapter: Path | None = None, *, merged: bool = False) -> Local:
        """Float32; `merged`: the adapter becomes part of the weights."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter))
            model = model.merge_and_unload() if merged else model
        return cls(model.eval(), AutoTokenizer.from_pretrained(folder), folder.name)

    async def answers(self, asked: Sequence[Ask], tokens: int, stop: Sequence[str] = ()) -> list[str]:
        return await asyncio.to_thread(self._say, asked, tokens, stop)

    async def likelihoods(self, asked: Sequence[tuple[Ask, str]]) -> list[list[float]]:
        return await asyncio.to_thread(self._weigh, asked)

    async def ranks(self, asked: Sequence[tuple[Ask, str]]) -> list[list[int]]:
        return await asyncio.to_thread(self._rank, asked)

    async def standings(self, texts: Sequence[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._stand, texts)

    async def recitals(self, texts: Sequence[str], tokens: int) -> list[list[list[int]]]:
        return await asyncio.to_thread(lambda: [self._recite(text, tokens) for text in texts])

    async def posts(self, asked: Sequence[Post]) -> list[dict[str, Any]]:
        raise NotTold("a model in this process takes no requests")

    def _say(self, asked: Sequence[Ask], tokens: int, stop: Sequence[str]) -> list[str]:
        prompts = [self._prompt(ask) for ask in asked]
        found: dict[int, str] = {}
        for chosen in _batches(prompts):
            said = self._go_on([prompts[i] for i in chosen], tokens, stop)
            texts = self._tokenizer.batch_decode(said, skip_special_tokens=True)
            found |= zip(chosen, texts, strict=True)
        return [_until(found[i], stop) for i in range(len(prompts))]

    def _recite(self, text: str, tokens: int) -> list[list[int]]:
        own = self._tokenizer(text)["input_ids"][:tokens]
        begun = [own[:length] for length in range(1, len(own))]
        found: dict[int, list[int]] = {}
        for chosen in _batches(begun):
            rest = [len(own) - len(begun[i]) for i in chosen]
            said = self._go_on([begun[i] for i in chosen], max(rest))
            found |= {i: ids[:count] for i, ids, count in zip(chosen, said, rest, strict=True)}
        return [own, *(found[i] for i in range(len(begun)))]

    def _go_on(self, prompts: Sequence[list[int]], tokens: int, stop: Sequence[str] = ()) -> list[list[int]]:
        import torch

        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(one)) + one for one in prompts])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False,
                pad_token_id=self._tokenizer.eos_token_id,
                **({"stop_strings": list(stop), "tokenizer": self._tokenizer} if stop else {}),
            )  # fmt: skip
        found: list[list[int]] = out[:, longest:].tolist()
        return found

    def _weigh(self, asked: Sequence[tuple[Ask, str]]) -> list[list[float]]:
        found: dict[int, list[float]] = {}
        for i, logs, own in self._foretold(asked):
            found[i] = logs.gather(1, own)[:, 0].tolist()
        return [found[i] for i in range(len(asked))]

    def _rank(self, asked: Sequence[tuple[Ask, str]]) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for i, logs, own in self._foretold(asked):
            found[i] = ((logs > logs.gather(1, own)).sum(dim=-1) + 1).tolist()
        return [found[i] for i in range(len(asked))]

    def _stand(self, texts: Sequence[str]) -> list[list[float]]:
        found: dict[int, list[float]] = {}
        for i, logs, own in self._foretold([(Ask(), text) for text in texts]):
            likely = logs.exp()
            mean = (likely * logs).sum(dim=-1)
            spread = ((likely * logs.square()).sum(dim=-1) - mean.square()).sqrt()
            found[i] = ((logs.gather(1, own)[:, 0] - mean) / spread).tolist()
        return [found[i] for i in range(len(texts))]

    def _foretold(self, asked: Sequence[tuple[Ask, str]]) -> Iterator[tuple[int, Any, Any]]:
        """Number of a text, log-likelihoods of shape [tokens, vocabulary] where its tokens stand, and those tokens of
        shape [tokens, 1]."""
        import torch

        parts = [self.read(ask, text) for ask, text in asked]
        wholes = [head + tail for head, tail in parts]
        for chosen in _batches(wholes):
            longest = max(len(wholes[i]) for i in chosen)
            ids = torch.tensor([wholes[i] + [0] * (longest - len(wholes[i])) for i in chosen])
            mask = torch.tensor([[1] * len(wholes[i]) + [0] * (longest - len(wholes[i])) for i in chosen])
            with torch.inference_mode():
                logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for row, i in enumerate(chosen):
                start = max(
                    len(parts[i][0]), 1
                )  # nothing foretells the first token of a text without a prompt
                logs = logits[row, start - 1 : len(wholes[i]) - 1].log_softmax(dim=-1)
                yield i, logs, ids[row, start : len(wholes[i]), None]

    def read(self, ask: Ask, text: str) -> tuple[list[int], list[int]]:
        """The tokens of the prompt, and of `text` as its answer with the end of the turn."""
        return self._prompt(ask), self._ids(text + self._end(ask, text))

    def _prompt(self, ask: Ask) -> list[int]:
        """Text gets the tokenizer's special tokens, conversations have them from their template."""
        if not ask.turns:
            ids: list[int] = self._tokenizer(ask.text)["input_ids"]
            return ids
        if not self._tokenizer.chat_template:
            return self._ids("\n".join(content for _, content in ask.turns) + "\n" + ask.begun)
        told: str = self._tokenizer.apply_chat_template(
            ask.messages, tokenize=False, add_generation_prompt=True
        )
        return self._ids(told + ask.begun)

    def _end(self, ask: Ask, text: str) -> str:
        """What the template puts behind an answer."""
        if not ask.turns or not ask.ended:
            return ""
        said = [*ask.messages, {"role": "assistant", "content": text}]
        if not self._tokenizer.chat_template:
            return self._tokenizer.eos_token or ""
        whole: str = self._tokenizer.apply_chat_template(said, tokenize=False)
        _, found, end = whole.rpartition(text)
        return end if found else self._tokenizer.eos_token or ""

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _batches(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Those of like length together, by their number."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return [order[start : start + AT_ONCE] for start in range(0, len(order), AT_ONCE)]


def _until(text: str, stop: Sequence[str]) -> str:
    ends = [at for one in stop if (at := text.find(one)) >= 0]
    return text[: min(ends)] if ends else text
