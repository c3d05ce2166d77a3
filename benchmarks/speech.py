"""What judging answers costs, in this process: the search for literal texts alone, and with judging what is meant."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
from tokenizers import Tokenizer

from evals.items import FORGET, Item, load_items
from evals.options import encoder_options
from guard.crypto import Secrets
from guard.detection import CompiledTarget, Compiler, Encoder, Gates, SpeakingCompiler
from guard.detection.background import background
from guard.detection.gist import least
from guard.detection.windows import windows
from guard.metrics.bootstrap import mean_interval
from guard.pipeline import Guard
from guard.snapshot import Gate, Snapshot
from guard.targets import TargetSpec
from guard.types import Message, Prompt

ROOT = Path(__file__).parents[1]
_KEY = b"k" * 32
_EDGES = (0.75, 0.8, 0.85, 0.9, 0.95, 0.98)
_TEXTS = 4_000  # of which all pairs are compared


class Inline(Executor):
    """Runs what it is given at once, in the caller's thread, whose processor time is measured."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as error:
            done.set_exception(error)
        return done


@dataclass(frozen=True)
class Answer:
    """What is asked, and what is said token by token."""

    prompt: Prompt
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class Costs:
    """Microseconds of processor time per token of each answer, what left of each and what it was cut for, and how many
    texts the encoder ran for all of them."""

    each: tuple[float, ...]
    left: tuple[tuple[str, str | None], ...]
    runs: int


class Counting:
    """An encoder of its own, with nothing in its cache, and how many texts it has run."""

    def __init__(self, encoder: Encoder) -> None:
        self.runs = 0
        self._embed = encoder._embed
        self.encoder = Encoder(
            encoder.name, encoder.digest, encoder.dim, encoder.max_tokens, self._run, gist=encoder.gist
        )

    def _run(self, texts: list[str]) -> np.ndarray:
        self.runs += len(texts)
        return self._embed(texts)


def said(items: Sequence[Item], count: int, tokens: int, seed: int) -> list[Answer]:
    """Questions of the demo, each answered by its own answer and then those to others, as a model that is not allowed
    to end goes on."""
    rng = random.Random(seed)
    asked = [item for item in items if item.split != FORGET and item.answer]
    tokenizer = Tokenizer.from_file(str(ROOT / "demo" / "models" / "full" / "tokenizer.json"))
    made = []
    for item in rng.sample(asked, count):
        text = " ".join([item.answer, *(other.answer for other in rng.sample(asked, tokens // 4))])
        ends = [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets[:tokens]]
        turn = item.messages[-1]["content"]
        pieces = tuple(text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True))
        made.append(Answer(Prompt(turn, messages=(Message("user", turn),)), pieces))
    return made


def guarding(encoder: Encoder, targets: Sequence[CompiledTarget]) -> Guard:
    of = {t.target_id: SimpleNamespace(spec=t.spec, compiled=t, version=1, ladder=()) for t in targets}
    snapshot = Snapshot(1, Gates(encoder)(targets), of)
    return Guard(lambda: snapshot, Secrets(_KEY), Inline(), 60.0)


async def judged(guard: Guard, answers: Sequence[Answer], counting: Counting, *, meaning: bool) -> Costs:
    """All answers, one after the other, as requests that match nothing."""
    each, left, before = [], [], counting.runs
    for answer in answers:
        speech = guard.speech(answer.prompt, None)
        speech.judge = speech.judge if meaning else None
        begun = time.thread_time()
        for number, token in enumerate(answer.tokens, start=1):
            await speech.say(token, ended=number == len(answer.tokens))
        each.append((time.thread_time() - begun) * 1e6 / len(answer.tokens))
        left.append((speech.text, speech.hit and speech.hit.target_id))
    return Costs(tuple(each), tuple(left), counting.runs - before)


def phases(gate: Gate, answers: Sequence[Answer], words: int = 24) -> dict[str, float]:
    """Milliseconds of a window of so many words by the gate's phases, means."""
    spent: Counter[str] = Counter()
    told = [" ".join("".join(answer.tokens).split()[:words]) for answer in answers]
    for text in told:
        spent.update(gate.detect(Prompt(text))[1])
    return {name: ms / len(told) for name, ms in spent.items()}


def room(encoder: Encoder, texts: Sequence[str]) -> list[dict[str, float]]:
    """For all pairs of texts, by how near the encoder finds them: how alike their gists are at least, and how many are
    less alike than the line asks for."""
    assert encoder.gist is not None
    vectors, gists = encoder.encode(texts), encoder.gist.of(texts)
    upper = np.triu_indices(len(texts), 1)
    near, alike = (vectors @ vectors.T)[upper], (gists @ gists.T)[upper]
    found = []
    for low, high in zip(_EDGES, (*_EDGES[1:], 1.01), strict=True):
        of = (near >= low) & (near < high)
        if of.any():
            below = int((alike[of] < least(near[of])).sum())
            found.append(
                {"from": low, "pairs": int(of.sum()), "least": float(alike[of].min()), "below": below}
            )
    return found


def texts_of(answers: Sequence[Answer], items: Sequence[Item], folder: Path | None, seed: int) -> list[str]:
    """Windows of what is said, single answers of the demo, ordinary prompts, and TOFU's answers with their paraphrases
    from `folder`."""
    spoken = [w.text for answer in answers for w in windows("".join(answer.tokens), max_chars=250)]
    pools = [spoken, [item.answer for item in items], background()]
    if folder is not None:
        rows = [
            json.loads(line)
            for path in sorted(folder.glob("*_perturbed.json"))
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
        told = [row[name] for row in rows for name in ("answer", "paraphrased_answer") if row.get(name)]
        pools.append([w.text for text in told for w in windows(text, max_chars=250)])
    rng, most = random.Random(seed), _TEXTS // len(pools)
    unlike = [sorted({text for text in pool if text}) for pool in pools]
    return [text for pool in unlike for text in rng.sample(pool, min(len(pool), most))]


@click.command()
@click.option("--answers", "count", default=96, show_default=True, help="Answers to judge.")
@click.option("--tokens", default=128, show_default=True, help="Of each.")
@click.option("--pairs", is_flag=True, help="Measure on pairs of texts, too, what screens them.")
@click.option(
    "--tofu",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="TOFU's files, whose paraphrases are among the pairs.",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", default=ROOT / "reports" / "bench-speech.json", type=click.Path(path_type=Path))
@encoder_options
def speech(
    load: Callable[[], tuple[Encoder, Compiler]],
    count: int,
    tokens: int,
    pairs: bool,
    tofu: Path | None,
    seed: int,
    out: Path,
) -> None:
    """Processor time of judging answers, as a ratio to the search for literal texts in the same run: with every window
    embedded, and with those alone that the screen lets pass.

    Example: python -m benchmarks speech --pairs
    """
    encoder, _ = load()
    compiler = SpeakingCompiler(encoder, Path("data/cache"))
    compiler.prepare()
    items = load_items(ROOT / "demo" / "items.jsonl")
    answers = said(items, count, tokens, seed)
    targets = compile_all(compiler)
    every = [replace(one, spoken=one.spoken and replace(one.spoken, screen=None)) for one in targets]
    report: dict[str, Any] = {"answers": count, "tokens": tokens, "encoder": encoder.digest}
    found: dict[str, Costs] = {}
    for name, of, meaning in (
        ("literal", targets, False),
        ("every window", every, True),
        ("screened", targets, True),
    ):
        counting = Counting(encoder)
        guard = guarding(counting.encoder, of)
        asyncio.run(judged(guard, answers[:4], counting, meaning=meaning))  # what is made on first use
        found[name] = costs = asyncio.run(judged(guard, answers, counting, meaning=meaning))
        took = mean_interval(costs.each, seed=seed)
        ratio = mean_interval(
            [a / b for a, b in zip(costs.each, found["literal"].each, strict=True)], seed=seed
        )
        assert took is not None and ratio is not None
        report[name] = {"us_per_token": took.as_dict(), "to_literal": ratio.as_dict()}
        report[name]["runs_per_answer"] = costs.runs / count
        click.echo(f"{name:13} {took.mean:7.1f} [{took.low:.1f}, {took.high:.1f}] us a token, {ratio.mean:6.2f} "
                   f"[{ratio.low:.2f}, {ratio.high:.2f}] times literal, encoder runs an answer "
                   f"{costs.runs / count:.2f}")  # fmt: skip
        if meaning and (gate := guarding(Counting(encoder).encoder, of).snapshot().gate.spoken):
            report[name]["phases_ms"] = spent = phases(gate, answers)
            click.echo("  a window: " + ", ".join(f"{part} {ms:.2f} ms" for part, ms in spent.items()))
    differ = sum(a != b for a, b in zip(found["every window"].left, found["screened"].left, strict=True))
    report["differ"] = differ
    click.echo(f"answers that end otherwise with the screen: {differ} of {count}")
    if pairs:
        report["pairs"] = room(encoder, texts_of(answers, items, tofu, seed))
        for row in report["pairs"]:
            click.echo(f"  cosine from {row['from']:.2f}: {row['pairs']:6} pairs, gists alike by {row['least']:.3f} "
                       f"at least, {row['below']} below the line")  # fmt: skip
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if differ or any(row["below"] for row in report.get("pairs", ())):
        raise click.ClickException("The screen loses what would be found.")


def compile_all(compiler: SpeakingCompiler) -> list[CompiledTarget]:
    """The demo's targets, one after the other as they are registered."""
    made: list[CompiledTarget] = []
    for line in (ROOT / "demo" / "targets.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        target_id = row.pop("id")
        row.pop("intervention", None)
        spec = TargetSpec.model_validate(row)
        made.append(compiler.compile(target_id, 1, spec, tuple(made), force=True))
    return made
