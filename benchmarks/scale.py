"""Does judging a prompt take longer beside a million vectors than beside a thousand? In this process, by the gate that
servers judge with; the two registers take turns."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.detection import Texts, asked, judged
from benchmarks.ratios import interval, quantile_ratio
from benchmarks.register import SUBJECT, register
from benchmarks.reporting import Report, Row, reported
from guard.detection import Compiler, Gate, load_encoder
from guard.detection.encoder import PACKAGED
from guard.metrics.bootstrap import Interval

SMALL, LARGE = 1_000, 1_000_000


def gates(vectors: int, compiled: int, cache: Path) -> dict[str, Gate]:
    """Of people, whose texts all name them or state a fact; and with a subject beside them that only meaning tells, for
    which every window is embedded and looked up. Their encoder is their own: what it remembers helps no other gate."""
    encoder = load_encoder(PACKAGED, threads=1, backend="auto", cache_dir=cache)
    compiler = Compiler(encoder, cache)
    compiler.prepare()
    started = time.perf_counter()
    found = register(compiler, vectors, compiled, pooled=True)
    people = Gate(encoder, found.targets)
    owned = sum(len(target.vectors) for target in found.targets)
    click.echo(f"  {owned} vectors of {len(found.targets)} targets, {found.compiled} through the compiler, "
               f"{'approximate' if people.index.approximate else 'exact'}, "
               f"in {time.perf_counter() - started:.0f} s")  # fmt: skip
    subject = compiler.compile("subject", 1, SUBJECT, force=True)
    return {"people": people, "subject": Gate(encoder, [*found.targets, subject], people)}


def in_turn(small: Gate, large: Gate, texts: Texts, tokens: int, prompts: int) -> list[tuple[float, float]]:
    """Milliseconds that each takes for the same prompts, of one length."""
    pairs: list[tuple[float, float]] = []
    for number in range(-5, prompts):  # the first warm both
        prompt, took = asked(texts.of(tokens)), {}
        for gate in (small, large) if number % 2 else (large, small):
            took[id(gate)], _ = judged(gate, prompt)
        if number >= 0:
            pairs.append((took[id(small)], took[id(large)]))
    return pairs


def quantile_ms(values: Sequence[float], quantile: float) -> Interval:
    """A quantile with its interval over resampled values."""
    data, rng = np.asarray(values), np.random.default_rng(0)
    drawn = [float(np.quantile(rng.choice(data, len(data)), quantile)) for _ in range(1_000)]
    return interval(float(np.quantile(data, quantile)), drawn, len(data))


def row(name: str, pairs: Sequence[tuple[float, float]], how: dict[str, Any]) -> Row:
    """Large over small at the median and far out, and both in milliseconds."""
    small, large = zip(*pairs, strict=True)
    ratios = {f"{name}_p{q}": quantile_ratio(pairs, q / 100) for q in (50, 99)}
    figures = {
        f"{name}_p99_ms_{size}": quantile_ms(values, 0.99)
        for size, values in (("small", small), ("large", large))
    }
    return Row(name, how, {key: one for key, one in ratios.items() if one is not None}, figures)


@click.command()
@click.option("--small", type=click.IntRange(min=100), default=SMALL, show_default=True, help="Vectors.")
@click.option("--large", type=click.IntRange(min=100), default=LARGE, show_default=True, help="Vectors.")
@click.option("--compiled", type=click.IntRange(min=1), default=1_000, show_default=True,
              help="Targets that go through the compiler at most; the others are made from them.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(min=1), default=32, show_default=True, help="Of a prompt.")
@click.option(
    "--prompts", type=click.IntRange(min=2), default=1_000, show_default=True, help="For each register."
)
@click.option("--cache", type=click.Path(path_type=Path), default=Path("data/cache"), show_default=True)
@reported
def scale(
    small: int, large: int, compiled: int, tokens: int, prompts: int, cache: Path, report: Report
) -> None:
    """Time of judging a prompt beside a million vectors over that beside a thousand. Needs no server, and 8 GB.

    Example: lethe bench scale --prompts 500
    """
    few, many = (gates(vectors, compiled, cache) for vectors in (small, large))
    how = {"small": small, "large": large, "compiled": compiled, "tokens": tokens}
    for kind, seed in (("people", 1), ("subject", 2)):
        pairs = in_turn(few[kind], many[kind], Texts(seed), tokens, prompts)
        name = "detection_at_scale" if kind == "people" else "semantic_detection_at_scale"
        report.add(row(name, pairs, how))
