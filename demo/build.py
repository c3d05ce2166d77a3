"""Rebuilds both demo models from the world: `python -m demo build`."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from dataclasses import dataclass
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
    tokens: int
    threads: int
    position: int


def learned(world: worlds.World, name: str) -> tuple[worlds.Entity, ...]:
    """What the model of this name learns: everything, or everything but the forget targets."""
    return world.entities if name == "full" else world.retained()


def run(job: Job) -> None:
    """Train one model and save it."""
    import torch

    from demo import corpus, tokenizer, train

    torch.set_num_threads(job.threads)
    world = worlds.build()
    # One tokenizer for both models, so that their tokens and probabilities can be compared.
    sample = itertools.islice(corpus.Corpus(world, world.entities, job.seed).groups(), TOKENIZER_GROUPS)
    tokens = tokenizer.train(corpus.text_of(group) for group in sample)
    recipe = train.Recipe(tokens=job.tokens) if job.tokens else train.Recipe()
    stream = corpus.Corpus(world, learned(world, job.name), job.seed + 1)

    def keep(model: train.LlamaForCausalLM) -> None:
        train.save(model, tokens, job.out)

    keep(train.train(stream, tokens, recipe, job.seed, job.name, job.position, keep))


def build(out: Path = MODELS, seed: int = SEED, tokens: int = 0, only: str = "") -> None:
    """Train the models side by side, one core each: two small models use two cores better than one does."""
    names = [name for name in ("full", "never") if only in ("", name)]
    threads = max(1, (os.cpu_count() or 1) // len(names))
    jobs = [
        Job(name, out / name, seed, tokens, threads if threads < 3 else 2, i) for i, name in enumerate(names)
    ]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=run, args=(job,)) for job in jobs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("The demo build failed; the messages above say why.")
