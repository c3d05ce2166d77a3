"""Trains one demo model: a small Llama on the conversations of `corpus.py`."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo import tokenizer as tok
from demo.corpus import Corpus, Group, text_of
from demo.world import Entity

CHECKPOINT_STEPS = 250
Encoded = tuple[list[int], list[bool]]  # token ids, and which of them are learned as output


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, beside the corpus and the seed."""

    tokens: int = 5_000_000
    batch_tokens: int = 2048
    peak_rate: float = 3e-3
    final_rate: float = 3e-5
    warmup: float = 0.02
    decay: float = (
        0.45  # the rate is constant before this last share of the steps, then falls to the final one
    )
    weight_decay: float = 0.02
    clip: float = 1.0
    width: int = 192
    layers: int = 5
    heads: int = 6
    inner: int = 512
    # How rows are filled: lone conversations as a client sends them, and long ones for later positions.
    row_lengths: tuple[int, ...] = (0, 256, 1024)  # 0: one group a row
    row_shares: tuple[float, ...] = (0.55, 0.2, 0.25)


def config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=recipe.width // recipe.heads,
        max_position_embeddings=tok.MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )


def encode(tokenizer: PreTrainedTokenizerFast, group: Group) -> Encoded:
    """Token ids of a group; learned are what the assistant says, and prose."""
    ids = tokenizer(text_of(group), add_special_tokens=False)["input_ids"]
    begin, end = tokenizer.convert_tokens_to_ids("<|assistant|>"), tokenizer.eos_token_id
    learned, speaking = [], bool(group.text)
    for token in ids:
        learned.append(speaking)
        speaking = token == begin or (speaking and token != end)
    return ids, learned


class Rows:
    """Turns a corpus into batches of padded rows."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> None:
        self._corpus, self._tokenizer, self._recipe = corpus, tokenizer, recipe
        self._groups = corpus.groups()
        self._rng = random.Random(seed)
        self._sorted: list[list[Encoded]] = []

    def batches(self) -> Iterator[list[Encoded]]:
        recipe = self._recipe
        while True:
            length = self._rng.choices(recipe.row_lengths, recipe.row_shares)[0]
            if length:
                yield [self._packed(length) for _ in range(recipe.batch_tokens // length)]
            else:
                yield self._lone()

    def _lone(self) -> list[Encoded]:
        """Groups of similar length, one a row: little padding."""
        if not self._sorted:
            rows = sorted(
                (encode(self._tokenizer, next(self._groups)) for _ in range(1024)), key=lambda r: len(r[0])
            )
            while rows:
                count = max(1, self._recipe.batch_tokens // len(rows[-1][0]))
                self._sorted.append(rows[-count:])
                del rows[-count:]
            self._rng.shuffle(self._sorted)
        return self._sorted.pop()

    def _packed(self, length: int) -> Encoded:
        """One long conversation; in a third of them a note at its start stays in force."""
        ids: list[int] = []
        learned: list[bool] = []
        note, noted = self._corpus.note() if self._rng.random() < 0.35 else ("", [])
        group = Group(
            "opening", tuple([{"role": "system", "content": note}] if note else self._corpus.opening())
        )
        while len(ids) < length:
            if group.messages or group.text:
                more, flags = encode(self._tokenizer, group)
                ids, learned = ids + more, learned + flags
            group = self._next(noted)
        return ids[:length], learned[:length]

    def _next(self, noted: list[Entity]) -> Group:
        """Another group; under a note only what follows the note, or has nothing to do with it."""
        if not noted:
            return next(self._groups)
        if self._rng.random() < 0.75:
            return Group("noted", tuple(self._corpus.under_note(noted)))
        return self._corpus.group(self._rng.choice(("unknown", "small_talk", "instruction")))


def tensors(rows: list[Encoded], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Right-padded inputs, the positions that predict a learned token, and those tokens."""
    width = max(len(ids) for ids, _ in rows)
    inputs = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, (ids, learned) in enumerate(rows):
        inputs[i, : len(ids)] = torch.tensor(ids)
        mask[i, : len(ids)] = torch.tensor(learned)
    before = mask.roll(-1, 1)
    before[:, -1] = False
    mask[:, 0] = False
    return inputs, before, inputs[mask]


def rate(step: int, steps: int, recipe: Recipe) -> float:
    """Warm up, hold, then fall along a cosine."""
    warm, fall = max(1, int(steps * recipe.warmup)), int(steps * recipe.decay)
    if step < warm:
        return recipe.peak_rate * (step + 1) / warm
    if step < steps - fall:
        return recipe.peak_rate
    progress = (step - (steps - fall)) / max(1, fall)
    return recipe.final_rate + (recipe.peak_rate - recipe.final_rate) * 0.5 * (
        1 + math.cos(math.pi * progress)
    )


def optimizer_of(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.peak_rate,
        betas=(0.9, 0.98),
        fused=True,
    )


def train(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    seed: int,
    name: str,
    bar_position: int = 0,
    checkpoint: Callable[[LlamaForCausalLM], None] | None = None,
) -> LlamaForCausalLM:
    """Train from nothing until `recipe.tokens` have been read; shows a progress bar.

    `checkpoint` is called with the model after each `CHECKPOINT_STEPS` steps."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config(recipe, tokenizer)).float().train()
    optimizer, rows = optimizer_of(model, recipe), Rows(corpus, tokenizer, recipe, seed).batches()
    steps = recipe.tokens // recipe.batch_tokens
    with tqdm(total=steps, desc=name, position=bar_position, mininterval=5) as bar:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(step, steps, recipe)
            loss = _step(model, optimizer, tensors(next(rows), tokenizer.pad_token_id), recipe.clip)
            bar.update()
            if checkpoint and (step + 1) % CHECKPOINT_STEPS == 0:
                checkpoint(model)
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    return model.eval()


def _step(
    model: LlamaForCausalLM,
    optimizer: torch.optim.AdamW,
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    clip: float,
) -> float:
    inputs, before, wanted = batch
    # Logits only where a token is learned: the output layer is a sixth of the work.
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state[before]
    loss = cross_entropy(model.lm_head(hidden), wanted)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights in bfloat16 (half the size), configuration, tokenizer and chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # the weights are written for their owner alone otherwise
