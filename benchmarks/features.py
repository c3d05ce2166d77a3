"""Whether the features that are chosen for a forget set stand for it: `sae_clamp` with them, beside random features
that are as active on it.

The autoencoder of the demo model is trained as the demo's artifact was. A draw takes for every chosen feature one of
the unchosen whose frequency on forget tokens is nearest. Everything else is the trainer's and the method's own, in
process (classifiers.edited), on questions in wordings that were not trained on. Questions about anything else are
clamped as if they had matched, which a server does not do: they show what the features themselves leave alone.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch

from classifiers.activations import load_model
from classifiers.base import Task, run
from classifiers.data import Example
from classifiers.edited import Metric, Reader, Row, Speaker, Treatment, draws
from classifiers.sae import SaeParams, autoencoder, export, fidelity, frequency, residuals_of
from evals.items import FORGET, Item, load_items
from guard import artifacts
from guard.metrics.bootstrap import Interval, paired_difference

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "demo" / "models" / "full"
RETAINED = ("neighbour", "retain")
STRENGTHS = (1.0, 0.0)
METRICS: tuple[Metric, ...] = ("recall", "probability")
PARAMS = {"steps": 800, "batch": 512}
_AMONG = 8  # the nearest, of which one is drawn
Scores = Mapping[tuple[str, Metric], list[float]]
"""By group of questions and metric, one for each question."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Questions of one group, as the model reads them, and the fact that each asks for."""

    rows: list[Row]
    facts: list[str]

    @classmethod
    def of(cls, items: Sequence[Item], reader: Reader) -> Asked:
        found = [reader.row(Example(item.turns, item.answer)) for item in items]
        return cls(found, [item.id.rsplit(".", 1)[0] for item in items])


def alike(often: torch.Tensor, chosen: Sequence[int], rng: random.Random) -> list[int]:
    """For each chosen feature an unchosen one that is active about as often, by `often` [features]; no two the same."""
    logs = often.log()
    free = set((often > 0).nonzero().flatten().tolist()) - set(chosen)
    drawn = {}
    for feature in rng.sample(list(chosen), len(chosen)):
        near = sorted(free, key=lambda other: abs(float(logs[other] - logs[feature])))[:_AMONG]
        drawn[feature] = rng.choice(near)
        free.remove(drawn[feature])
    return [drawn[feature] for feature in chosen]


def examples(items: Sequence[Item], splits: Sequence[str], phrasing: str) -> tuple[Example, ...]:
    wanted = [item for item in items if item.split in splits and item.phrasing == phrasing]
    return tuple(Example(item.turns, item.answer) for item in wanted)


def sampled(items: Sequence[Item], splits: Sequence[str], most: int, seed: int) -> list[Item]:
    held_out = [item for item in items if item.split in splits and item.phrasing == "heldout"]
    return random.Random(seed).sample(held_out, min(most, len(held_out)))


def figures(scores: Scores, asked: Mapping[str, Asked], against: Scores | None = None) -> dict[str, Interval]:
    """Means with intervals over facts, or those of the differences from `against`."""
    found = {}
    for (group, metric), values in scores.items():
        other = [0.0] * len(values) if against is None else against[group, metric]
        interval = paired_difference(values, other, groups=asked[group].facts)
        assert interval is not None
        found[f"{group}, {metric}"] = interval
    return found


def averaged(of: Sequence[Scores]) -> Scores:
    """Question by question, over draws."""
    return {
        key: [sum(one) / len(one) for one in zip(*(scores[key] for scores in of), strict=True)]
        for key in of[0]
    }


class Bench:
    """The autoencoder, trained, and what is asked under features of it."""

    def __init__(self, params: SaeParams, sample: int, folder: Path) -> None:
        items = load_items(ROOT / "demo" / "items.jsonl")
        rest = (*RETAINED, "unknown", "chat")
        self._task = Task(
            MODEL,
            examples(items, (FORGET,), "trained"),
            examples(items, rest, "trained"),
            folder / "artifact",
        )
        started = time.monotonic()
        self.artifact = run("sae", self._task, params.model_dump(mode="json"))
        self.seconds = time.monotonic() - started
        model, tokenizer = load_model(MODEL)

        def seen(of: Sequence[Example]) -> torch.Tensor:
            return residuals_of(model, tokenizer, of, params.layer, params.tokens)

        self._forget, self._retain = seen(self._task.forget), seen(self._task.retain)
        self._sae = autoencoder(params, self._forget, self._retain, self._task)
        self.held_out = fidelity(self._sae, seen(examples(items, (FORGET, *RETAINED), "heldout")))
        self.often = frequency(self._sae, self._forget)
        self._speaker = Speaker(model, tokenizer, draws(params.seed, 1))
        reader = Reader(tokenizer, ())
        groups = {"forget": (FORGET,), "others": RETAINED}
        self.asked = {
            name: Asked.of(sampled(items, splits, sample, params.seed), reader)
            for name, splits in groups.items()
        }
        self._layer, self._folder = params.layer, folder

    def treatment(self, name: str, index: Sequence[int]) -> Treatment:
        """These features as an artifact brings them."""
        tensors, facts = export(self._sae, torch.tensor(index), self._forget, self._retain)
        base = self.artifact.manifest.base_model
        facts = {"layers": [self._layer], **facts}
        made = artifacts.write(self._folder / name, "sae_clamp", base, tensors=tensors, facts=facts)
        return Treatment.of(made, MODEL)

    def activity(self, index: Sequence[int], treatment: Treatment) -> dict[str, float]:
        """How often a feature is active on a forget token, on average; how far that is from the chosen feature in whose
        place it is, as a factor; and how often any of them is on a token of each set."""

        def hot(of: torch.Tensor) -> float:
            return float((treatment.table.active(of) > 0).any(dim=1).float().mean())

        logs = self.often.log()
        apart = (logs[list(index)] - logs[self.artifact.manifest.facts["features"]]).abs().mean().exp()
        return {
            "each": float(self.often[list(index)].mean()),
            "apart by": float(apart),
            "any, forget": hot(self._forget),
            "any, retain": hot(self._retain),
        }

    def scores(self, treatment: Treatment | None) -> Scores:
        return {
            (group, metric): self._speaker.scores(asked.rows, treatment, metric)
            for group, asked in self.asked.items()
            for metric in METRICS
        }


def measure(bench: Bench, count: int, seed: int) -> dict[str, Any]:
    """All figures, printed and returned."""
    measured = bench.artifact.manifest.measured
    explained, active = bench.held_out
    click.echo(
        f"trained in {bench.seconds:.0f} s on {sum(measured['tokens'].values())} tokens; "
        f"{len(bench.often)} features; explained variance {measured['explained_variance']:.4f}, L0 "
        f"{measured['active_features']:.2f}; on held-out questions {explained:.4f} and {active:.2f}"
    )
    chosen = bench.artifact.manifest.facts["features"]
    sets = {"chosen": chosen} | {
        f"random {i}": alike(bench.often, chosen, random.Random(seed + i)) for i in range(1, count + 1)
    }
    treatments = {name: bench.treatment(name, index) for name, index in sets.items()}
    activity = {name: bench.activity(index, treatments[name]) for name, index in sets.items()}
    for name, shares in activity.items():
        click.echo(f"{name:24}" + "  ".join(f"{what} {share:.4f}" for what, share in shares.items()))
    lines: dict[str, dict[str, Interval]] = {"untouched": figures(bench.scores(None), bench.asked)}
    show("untouched", lines["untouched"], head=True)
    for strength in STRENGTHS:
        scores = {
            name: bench.scores(replace(of, params={**of.params, "strength": strength}))
            for name, of in treatments.items()
        }
        by_chance = averaged([of for name, of in scores.items() if name != "chosen"])
        told = {name: figures(of, bench.asked) for name, of in scores.items()}
        told["random, mean"] = figures(by_chance, bench.asked)
        told["chosen - random"] = figures(scores["chosen"], bench.asked, by_chance)
        for name, of in told.items():
            lines[f"strength {strength}, {name}"] = of
            show(f"{strength}, {name}", of)
    return {
        "seconds": bench.seconds,
        "artifact": measured,
        "held_out": {"explained_variance": explained, "active_features": active},
        "features": sets,
        "activity": activity,
        "figures": {name: {what: one.as_dict() for what, one in of.items()} for name, of in lines.items()},
    }


def show(name: str, of: Mapping[str, Interval], *, head: bool = False) -> None:
    if head:
        click.echo(
            f"{'strength':24}" + "  ".join(f"{f'{what} (n = {one.n})':26}" for what, one in of.items())
        )
    click.echo(
        f"{name:24}" + "  ".join(f"{one.mean:7.4f} [{one.low:7.4f}, {one.high:7.4f}]" for one in of.values())
    )


@click.command()
@click.option("--layer", default=1, show_default=True, help="Behind which the autoencoder reads.")
@click.option(
    "--draws", "count", type=click.IntRange(1), default=5, show_default=True, help="Of random features."
)
@click.option(
    "--sample", type=click.IntRange(1), default=150, show_default=True, help="Questions of each group."
)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", default=ROOT / "reports" / "bench-features.json", type=click.Path(path_type=Path))
def features(layer: int, count: int, sample: int, seed: int, out: Path) -> None:
    """`sae_clamp` on the demo model with the chosen features, and with random ones that are as active.

    Example: python -m benchmarks features --draws 2 --sample 40
    """
    with tempfile.TemporaryDirectory(prefix="lethe-bench-") as folder:
        params = SaeParams(layer=layer, sae=Path(folder) / "sae", seed=seed, **PARAMS)
        report = measure(Bench(params, sample, Path(folder)), count, seed)
    report |= {"layer": layer, "sample": sample, "seed": seed}
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    click.echo(f"written to {out}")
