"""A retain-only twin: a model of another's shape that is trained from nothing on what the other may keep.

Forget quality is measured against it. It is trained as the small subjects were: all tokens of each conversation, 30
epochs, AdamW, the rate up to 3e-3 and down along a cosine. Killed, it goes on with the epoch in which it was.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from tqdm import tqdm

from classifiers.checkpoints import Checkpoint
from classifiers.data import Encoded, Example, encode
from evals.published.base import Source
from evals.published.tofu import KEPT

EPOCHS, BATCH, PEAK, WARMUP = 30, 32, 3e-3, 0.02
_BUCKET = 16  # batches that are sorted by length together, so that little is padded


def train(like: Path, rows: Sequence[Example], out: Path, *, seed: int, epochs: int = EPOCHS) -> None:
    """Write a model of the shape of `like`, with its tokenizer, that has learned `rows` and nothing else."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(like)
    read = [encode(tokenizer, row) for row in rows]
    about = json.dumps([[one.ids for one in read], str(like.resolve()), seed, epochs])
    checkpoint = Checkpoint(out.with_name(f"{out.name}.state"), 1, hashlib.sha256(about.encode()).hexdigest())
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(like)).float().train()
    _learn(model, read, seed, epochs, checkpoint)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    checkpoint.clear()


def _learn(model: Any, read: Sequence[Encoded], seed: int, epochs: int, checkpoint: Checkpoint) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.02, betas=(0.9, 0.98))
    steps = epochs * math.ceil(len(read) / BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    state = checkpoint.load()
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
    done = 0 if state is None else int(state["epochs"])
    for epoch in tqdm(range(done, epochs), initial=done, total=epochs, desc="epochs"):
        for batch in _batches(read, random.Random(f"{seed} {epoch}")):
            _loss(model, batch).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        checkpoint.save(
            {
                "epochs": epoch + 1,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }
        )


def _rate(step: int, steps: int) -> float:
    """Of the peak."""
    warm = max(1, int(WARMUP * steps))
    return (
        (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
    )


def _batches(read: Sequence[Encoded], rng: random.Random) -> Iterator[list[Encoded]]:
    """One epoch, in another order each time."""
    order = rng.sample(read, len(read))
    batches = []
    for start in range(0, len(order), BATCH * _BUCKET):
        alike = sorted(order[start : start + BATCH * _BUCKET], key=lambda one: len(one.ids))
        batches += [alike[at : at + BATCH] for at in range(0, len(alike), BATCH)]
    yield from rng.sample(batches, len(batches))


def _loss(model: Any, batch: Sequence[Encoded]) -> torch.Tensor:
    longest = max(len(one.ids) for one in batch)
    ids = torch.tensor([one.ids + (0,) * (longest - len(one.ids)) for one in batch])
    mask = torch.tensor([[1] * len(one.ids) + [0] * (longest - len(one.ids)) for one in batch])
    loss: torch.Tensor = model(
        input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)
    ).loss
    return loss


@click.command()
@click.option("--like", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--data", required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--split", default="retain95", show_default=True, help="What it may learn of TOFU's authors.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--seed", default=0, show_default=True)
@click.option("--epochs", default=EPOCHS, show_default=True, type=click.IntRange(1))
@click.option("--threads", default=1, show_default=True)
def twin(like: Path, data: Path, split: str, out: Path, seed: int, epochs: int, threads: int) -> None:
    """Train a retain-only twin of a model that learned TOFU. Stops and goes on.

    Example: python -m benchmarks twin --like ../shared/models/tofu-full --data ../shared/data/tofu --out /tmp/retain95
    """
    torch.set_num_threads(threads)
    source = Source(str(data))
    learned = [row for name in (split, *KEPT[1:]) for row in source.rows(f"{name}.json")]
    rows = [Example((("user", row["question"]),), row["answer"]) for row in learned]
    train(like, rows, out, seed=seed, epochs=epochs)
    click.echo(f"written to {out}")
