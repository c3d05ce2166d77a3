"""Rebuilds both demo models from the world: `python -m demo build`."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from dataclasses import dataclass, replace
from pathlib import Path

from demo import world as worlds

HERE = Path(__file__).parent
MODELS = HERE / "models"
SEED = 7
TOKENIZER_GROUPS = 20_000


@dataclass(frozen=True)
class Job:
    """One model to train; plain data, so that it can be handed to another process."""

    name: str  # full | never
    out: Path
    seed: int
    stages: tuple[int, ...]  # indices; all of them unless earlier ones are done
    threads: int
    position: int
    share: float  # of each stage's tokens, for a trial


def learned(world: worlds.World, name: str) -> tuple[worlds.Entity, ...]:
    """What the model of this name learns: everything, or everything but the forget targets."""
    return world.entities if name == "full" else world.retained()


def run(job: Job) -> None:
    """Train one model, and save it after each stage."""
    import torch

    from demo import corpus, tokenizer, train

    torch.set_num_threads(job.threads)
    world = worlds.build()
    # One tokenizer for both models, so that their tokens and probabilities can be compared.
    sample = itertools.islice(corpus.Corpus(world, world.entities, job.seed).groups(), TOKENIZER_GROUPS)
    tokens = tokenizer.train(corpus.text_of(group) for group in sample)
    for i in job.stages:
        stage = replace(train.STAGES[i], tokens=int(train.STAGES[i].tokens * job.share))
        # A stage begins with the weights that the former one saved: stopping between stages changes nothing.
        model = train.load(job.out) if i else train.fresh(tokens, job.seed)
        stream = corpus.Corpus(
            world, learned(world, job.name), job.seed + 1 + i, stage.mix, stage.near_misses
        )
        rows = train.Rows(stream, tokens, stage, job.seed + i)
        train.save(
            train.train(model, rows, tokens.pad_token_id, stage, job.name, job.position), tokens, job.out
        )


def build(out: Path = MODELS, seed: int = SEED, only: str = "", first: int = 0, share: float = 1.0) -> None:
    """Train the models side by side, one core each: two small models use two cores better than one does."""
    from demo.train import STAGES

    names = [name for name in ("full", "never") if only in ("", name)]
    threads = max(1, min(2, (os.cpu_count() or 1) // len(names)))
    stages = tuple(range(first, len(STAGES)))
    jobs = [Job(name, out / name, seed, stages, threads, i, share) for i, name in enumerate(names)]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=run, args=(job,)) for job in jobs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("The demo build failed; the messages above say why.")
