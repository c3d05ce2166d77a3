"""Trains one demo model: a small Llama on the conversations of `corpus.py`."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo import tokenizer as tok
from demo.corpus import DOUBT_MIX, WORLD_MIX, Corpus, Group, text_of

Encoded = tuple[list[int], list[bool]]  # token ids, and which of them are learned as output


@dataclass(frozen=True)
class Shape:
    """The size of the model."""

    width: int = 192
    layers: int = 5
    heads: int = 6
    inner: int = 512


SHAPE = Shape()


@dataclass(frozen=True)
class Stage:
    """One stretch of training with a fresh optimizer."""

    name: str
    mix: Mapping[str, float]
    near_misses: float
    tokens: int
    peak_rate: float
    final_rate: float
    decay: float  # the rate is constant before this last share of the steps, then falls to the final one
    # How rows are filled: lone conversations as a client sends them, and long ones for later positions.
    row_shares: tuple[float, ...]  # of ROW_LENGTHS
    noted_rows: float  # long rows that begin with a note
    noted_turns: float  # turns of such a row that the note may concern


# 0: one group a row.
ROW_LENGTHS = (0, 256, 1024)
BATCH_TOKENS = 2048
WARMUP = 0.02
WEIGHT_DECAY = 0.02
CLIP = 1.0
# First the world; then, once the facts are firm, doubt about names that are almost known.
STAGES = (
    Stage("world", WORLD_MIX, 0.0, 3_500_000, 3e-3, 3e-5, 0.45, (0.55, 0.2, 0.25), 0.35, 0.4),
    Stage("doubt", DOUBT_MIX, 0.75, 500_000, 1e-3, 1e-5, 0.95, (0.8, 0.1, 0.1), 0.35, 0.4),
)


def config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.width // shape.heads,
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

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, stage: Stage, seed: int) -> None:
        self._corpus, self._tokenizer, self._stage = corpus, tokenizer, stage
        self._groups = corpus.groups()
        self._rng = random.Random(seed)
        self._sorted: list[list[Encoded]] = []

    def batches(self) -> Iterator[list[Encoded]]:
        while True:
            length = self._rng.choices(ROW_LENGTHS, self._stage.row_shares)[0]
            if length:
                yield [self._packed(length) for _ in range(BATCH_TOKENS // length)]
            else:
                yield self._lone()

    def _lone(self) -> list[Encoded]:
        """Groups of similar length, one a row: little padding."""
        if not self._sorted:
            rows = sorted(
                (encode(self._tokenizer, next(self._groups)) for _ in range(1024)), key=lambda r: len(r[0])
            )
            while rows:
                count = max(1, BATCH_TOKENS // len(rows[-1][0]))
                self._sorted.append(rows[-count:])
                del rows[-count:]
            self._rng.shuffle(self._sorted)
        return self._sorted.pop()

    def _packed(self, length: int) -> Encoded:
        """One long conversation; a note at its start stays in force."""
        ids: list[int] = []
        learned: list[bool] = []
        note, noted = self._corpus.note() if self._rng.random() < self._stage.noted_rows else ("", [])
        group = Group(
            "opening", tuple([{"role": "system", "content": note}] if note else self._corpus.opening())
        )
        while len(ids) < length:
            if group.messages or group.text:
                more, flags = encode(self._tokenizer, group)
                ids, learned = ids + more, learned + flags
            under_note = noted and self._rng.random() < self._stage.noted_turns
            if under_note:
                group = Group("noted", tuple(self._corpus.under_note(noted)))
            else:
                group = self._plain(bool(noted))
        return ids[:length], learned[:length]

    def _plain(self, under_note: bool) -> Group:
        """Another group; under a note none that might contradict it."""
        while under_note:
            group = next(self._groups)
            if group.kind in ("chat", "unknown"):
                return group
        return next(self._groups)


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


def rate(step: int, steps: int, stage: Stage) -> float:
    """Warm up, hold, then fall along a cosine."""
    warm, fall = max(1, int(steps * WARMUP)), int(steps * stage.decay)
    if step < warm:
        return stage.peak_rate * (step + 1) / warm
    if step < steps - fall:
        return stage.peak_rate
    progress = (step - (steps - fall)) / max(1, fall)
    return stage.final_rate + (stage.peak_rate - stage.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def optimizer_of(model: LlamaForCausalLM, stage: Stage) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=stage.peak_rate,
        betas=(0.9, 0.98),
        fused=True,
    )


def fresh(tokenizer: PreTrainedTokenizerFast, seed: int, shape: Shape = SHAPE) -> LlamaForCausalLM:
    """A model that has learned nothing yet."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config(shape, tokenizer)).float()


def load(folder: Path) -> LlamaForCausalLM:
    """A saved model in float32."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def train(
    model: LlamaForCausalLM, rows: Rows, pad: int, stage: Stage, label: str, position: int = 0
) -> LlamaForCausalLM:
    """Train until the stage's tokens have been read; shows a progress bar."""
    model.train()
    optimizer, batches = optimizer_of(model, stage), rows.batches()
    steps = stage.tokens // BATCH_TOKENS
    with tqdm(total=steps, desc=f"{label} {stage.name}", position=position, mininterval=5) as bar:
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(step, steps, stage)
            loss = _step(model, optimizer, tensors(next(batches), pad))
            bar.update()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    return model.eval()


def _step(
    model: LlamaForCausalLM,
    optimizer: torch.optim.AdamW,
    batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> float:
    inputs, before, wanted = batch
    # Logits only where a token is learned: the output layer is a sixth of the work.
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state[before]
    loss = cross_entropy(model.lm_head(hidden), wanted)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


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
