"""Detection alone, without a server: latency, scale, conversations, changes, memory."""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from tokenizers import Tokenizer

from benchmarks.register import SUBJECT, Registered, person, questions, register
from guard.detection import Compiler, Encoder, Gate, load_encoder
from guard.detection.encoder import BACKENDS, PACKAGED, packaged_folder
from guard.metrics.wilson import wilson
from guard.types import Message, Prompt

ROOT = Path(__file__).parents[1]
SCALES = (10, 10_000, 1_000_000)
AT_ONCE = 16
TURNS = 20


@dataclass(frozen=True, slots=True)
class Effort:
    """How long one figure may take, and of how many measurements it is made."""

    seconds: float
    least: int
    most: int
    compiled: int
    conversations: int
    changes: int
    queries: int
    tokens: tuple[int, ...]
    longest: float  # seconds of one prompt, of which no AT_ONCE are measured beyond


FULL = Effort(20, 3, 200, 1_000, 10, 5, 500, (32, 512, 8_000), 2.0)
QUICK = Effort(1, 1, 16, 5, 2, 2, 20, (32, 512), 0.5)


class Texts:
    """Prompts of a wanted length that hold no window twice, so that no cache helps."""

    def __init__(self, seed: int) -> None:
        self._questions = questions(random.Random(seed))
        self._tokenizer = Tokenizer.from_file(f"{packaged_folder()}/tokenizer.json")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def of(self, tokens: int) -> str:
        """Questions of about `tokens` tokens together, by the packaged encoder's tokenizer."""
        parts: list[str] = []
        length = 0
        while length < tokens:
            parts.append(next(self._questions))
            length += len(self._tokenizer.encode(parts[-1], add_special_tokens=False).ids)
        encoded = self._tokenizer.encode(" ".join(parts), add_special_tokens=False)
        return " ".join(parts)[: encoded.offsets[min(tokens, len(encoded.ids)) - 1][1]]


def spread(milliseconds: Sequence[float]) -> dict[str, float]:
    """p50, p99 and n."""
    return {
        "p50": float(np.quantile(milliseconds, 0.5)),
        "p99": float(np.quantile(milliseconds, 0.99, method="higher")),
        "n": len(milliseconds),
    }


def judged(gate: Gate, prompt: Prompt) -> tuple[float, float]:
    """Milliseconds that the gate takes for a prompt, and of these the processor's in this thread: on a machine that
    others use too, the second says what the first would be on an idle one, with one thread for the encoder."""
    started, worked = time.perf_counter(), time.thread_time()
    gate.detect(prompt)
    return (time.perf_counter() - started) * 1000, (time.thread_time() - worked) * 1000


def asked(text: str) -> Prompt:
    return Prompt(text, messages=(Message("user", text),))


def latency(gate: Gate, texts: Texts, tokens: int, effort: Effort) -> dict[str, dict[str, float]]:
    """Of one prompt at a time, and of as many as AT_ONCE at the same time, unless one alone takes so long that these
    would take many minutes."""
    judged(gate, asked(texts.of(tokens)))
    alone = [judged(gate, asked(texts.of(tokens))) for _ in rounds(effort, effort.least)]
    wall, cpu = zip(*alone, strict=True)
    found = {"alone": spread(wall), "alone, cpu": spread(cpu)}
    if found["alone"]["p50"] > effort.longest * 1000:
        return found
    together: list[float] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in rounds(effort, 1, effort.most // AT_ONCE):
            prompts = [asked(texts.of(tokens)) for _ in range(AT_ONCE)]
            together.extend(wall for wall, _ in pool.map(lambda prompt: judged(gate, prompt), prompts))
    return {**found, f"{AT_ONCE} at once": spread(together)}


def rounds(effort: Effort, least: int, most: int | None = None) -> Iterator[int]:
    """Counts until the time is over, `least` in any case."""
    until = time.monotonic() + effort.seconds
    for i in range(max(least, effort.most if most is None else most)):
        if i >= least and time.monotonic() > until:
            return
        yield i


def recall(gate: Gate, found: Registered, encoder: Encoder, effort: Effort) -> dict[str, Any] | None:
    """Share of the ten nearest rows of real questions that are among the ten that the approximate index finds."""
    if not gate.index.approximate:
        return None
    queries = encoder.encode(found.queries[: effort.queries])
    best: list[tuple[np.ndarray, np.ndarray]] = []
    before = 0
    for first in range(0, len(found.targets), 5_000):
        rows = np.concatenate([target.vectors for target in found.targets[first : first + 5_000]])
        cosines = queries @ rows.T
        top = np.argpartition(-cosines, 10, axis=1)[:, :10]
        best.append((np.take_along_axis(cosines, top, axis=1), top + before))
        before += len(rows)
    cosines, numbers = (np.concatenate(part, axis=1) for part in zip(*best, strict=True))
    nearest = np.take_along_axis(numbers, np.argsort(-cosines, axis=1)[:, :10], axis=1)
    _, approximate = gate.index.nearest(queries, 10)
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(nearest, approximate, strict=True))
    share = wilson(hits, nearest.size, trials=len(queries))
    assert share is not None
    started = time.perf_counter()
    for query in queries[:100]:
        gate.index.near(query[None])
    each = (time.perf_counter() - started) * 1000 / len(queries[:100])
    return {
        "recall@10": share.mean,
        "low": share.low,
        "high": share.high,
        "n": len(queries),
        "search_ms": each,
    }


def changes(
    gate: Gate, found: Registered, compiler: Compiler, encoder: Encoder, effort: Effort
) -> dict[str, Any]:
    """Seconds to compile one more target beside all, and to build the gate that has it."""
    rng = random.Random(7)
    seconds: dict[str, list[float]] = {"compile": [], "gate": [], "delete": []}
    targets = found.targets
    for i in range(effort.changes):
        started = time.perf_counter()
        new = compiler.compile(f"new-{i}", 1, person(rng)[0], targets, force=True)
        compiled = time.perf_counter()
        gate = Gate(encoder, [*targets, new], gate)
        built = time.perf_counter()
        gate = Gate(encoder, targets, gate)
        seconds["compile"].append(compiled - started)
        seconds["gate"].append(built - compiled)
        seconds["delete"].append(time.perf_counter() - built)
    return {
        name: {"p50": statistics.median(of), "max": max(of), "n": len(of)} for name, of in seconds.items()
    }


def turn(texts: Texts, role: str, tokens: int) -> Message:
    return Message(role, texts.of(tokens))


def rendered(messages: Sequence[Message]) -> Prompt:
    body = "".join(f"<|im_start|>{m.role}\n{m.text}<|im_end|>\n" for m in messages)
    return Prompt(f"{body}<|im_start|>assistant\n", messages=tuple(messages))


def conversations(gate: Gate, texts: Texts, effort: Effort) -> dict[str, Any]:
    """What the last of twenty turns costs when those before it were judged, against a prompt of that turn alone, and
    against one of that turn and the answer before it: these two messages are new."""
    found: dict[str, list[tuple[float, float]]] = {"last": [], "turn": [], "turn_and_answer": []}
    for _ in range(effort.conversations):
        talk = [turn(texts, "user", 40)]
        for _ in range(TURNS - 1):
            gate.detect(rendered(talk))
            talk += [turn(texts, "assistant", 60), turn(texts, "user", 40)]
        found["last"].append(judged(gate, rendered(talk)))
        found["turn"].append(judged(gate, rendered([turn(texts, "user", 40)])))
        found["turn_and_answer"].append(
            judged(gate, rendered([turn(texts, "assistant", 60), turn(texts, "user", 40)]))
        )
    report: dict[str, Any] = {"n": effort.conversations}
    for which, name in ((0, "ms"), (1, "cpu_ms")):
        medians = {of: statistics.median(pair[which] for pair in pairs) for of, pairs in found.items()}
        report |= {f"{of}_{name}": value for of, value in medians.items()}
        report |= {
            f"to_{of}_{name}": medians["last"] / value for of, value in medians.items() if of != "last"
        }
    return report


def memory() -> dict[str, float]:
    """Of this process in GiB: now, and at most so far."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "now": pages * os.sysconf("SC_PAGE_SIZE") / 2**30,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def measure(scale: int, encoder: Encoder, compiler: Compiler, effort: Effort) -> dict[str, Any]:
    """All figures with about `scale` vectors."""
    started = time.perf_counter()
    found = register(compiler, scale, effort.compiled)
    registered = time.perf_counter()
    gate = Gate(encoder, found.targets)
    built = time.perf_counter()
    report: dict[str, Any] = {
        "vectors": sum(len(target.vectors) for target in found.targets),
        "targets": len(found.targets),
        "compiled": found.compiled,
        "approximate": gate.index.approximate,
        "seconds": {"register": registered - started, "first gate": built - registered},
    }
    click.echo(f"\n{report['vectors']} vectors, {report['targets']} targets ({found.compiled} through the compiler), "
               f"{'approximate' if gate.index.approximate else 'exact'}; registered in {registered - started:.0f} s, "
               f"first gate in {built - registered:.1f} s")  # fmt: skip
    texts = Texts(seed=scale)
    subject = compiler.compile("subject", 1, SUBJECT, force=True)
    gates = {"people": gate, "people and a subject": Gate(encoder, [*found.targets, subject], gate)}
    report["latency"], report["conversation"] = {}, {}
    for name, one in gates.items():
        click.echo(f"  {name}:")
        report["latency"][name] = {}
        for tokens in effort.tokens:
            report["latency"][name][tokens] = latency(one, texts, tokens, effort)
            for load, of in report["latency"][name][tokens].items():
                click.echo(f"    {tokens:5} tokens, {load:11} p50 {of['p50']:8.1f} ms  p99 {of['p99']:8.1f} ms  "
                           f"n {of['n']}")  # fmt: skip
        report["conversation"][name] = of = conversations(one, texts, effort)
        for unit, label in (("ms", "time"), ("cpu_ms", "cpu time")):
            click.echo(f"    last of {TURNS} turns, {label}: {of[f'last_{unit}']:.1f} ms, "
                       f"{of[f'to_turn_{unit}']:.2f} of that turn alone, "
                       f"{of[f'to_turn_and_answer_{unit}']:.2f} of it and the answer before it, "
                       f"n {of['n']}")  # fmt: skip
    report["recall"] = recall(gate, found, encoder, effort)
    if of := report["recall"]:
        click.echo(f"  recall@10 {of['recall@10']:.4f} [{of['low']:.4f}, {of['high']:.4f}] on {of['n']} real "
                   f"questions, search {of['search_ms']:.2f} ms a window")  # fmt: skip
    report["changes"] = changes(gate, found, compiler, encoder, effort)
    for name, of in report["changes"].items():
        click.echo(f"  change, {name}: p50 {of['p50']:.3f} s, at most {of['max']:.3f} s, n {of['n']}")
    report["memory"] = of = memory()
    click.echo(f"  memory {of['now']:.2f} GiB, at most so far {of['peak']:.2f} GiB")
    return report


@click.command()
@click.option("--scale", "scales", type=int, multiple=True, help="Vectors; several times for several scales.")
@click.option("--tokens", type=int, multiple=True, help="Of a prompt; several times for several lengths.")
@click.option(
    "--compiled", type=int, help="Targets that go through the compiler; the others are made from them."
)
@click.option("--encoder", default=PACKAGED, show_default=True, help="The detectors' sentence encoder.")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", help="What runs the encoder.")
@click.option("--threads", default=1, show_default=True, help="Of the encoder.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path("data/cache"), show_default=True)
@click.option("--quick", is_flag=True, help="Few measurements: whether it runs, not how fast it is.")
@click.option("--out", default=ROOT / "reports" / "bench-detection.json", type=click.Path(path_type=Path))
def detection(
    scales: tuple[int, ...],
    tokens: tuple[int, ...],
    compiled: int | None,
    encoder: str,
    backend: str,
    threads: int,
    cache: Path,
    quick: bool,
    out: Path,
) -> None:
    """Latency of detection by length of the prompt and size of the register, recall of the approximate index, cost of
    the last turn of a conversation, of a change, and memory. Needs no server.

    Example: python -m benchmarks detection --scale 10 --scale 10000
    """
    effort = QUICK if quick else FULL
    effort = replace(effort, tokens=tokens or effort.tokens, compiled=compiled or effort.compiled)
    chosen = scales or ((10, 1_000) if quick else SCALES)
    loaded = load_encoder(encoder, threads=threads, backend=backend, cache_dir=cache)
    compiler = Compiler(loaded, cache)
    compiler.prepare()
    click.echo(f"encoder {loaded.name} ({backend}), {threads} threads of {os.cpu_count()} cores, "
               f"load {os.getloadavg()[0]:.1f}")  # fmt: skip
    found = [measure(scale, loaded, compiler, effort) for scale in chosen]
    report = {
        "encoder": {"name": loaded.name, "digest": loaded.digest, "backend": backend, "threads": threads},
        "effort": asdict(effort),
        "machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "scales": found,
    }
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    click.echo(f"\nload at the end {os.getloadavg()[0]:.1f}; written to {out}")
