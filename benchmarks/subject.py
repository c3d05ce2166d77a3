"""A subject that learned TOFU, made ready for `lethe eval demo`: its items, its targets, and one artifact for each
intervention that needs one, trained on the forget set. One target's rungs name every method, as the demo's do."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.runs import key
from benchmarks.tofu import SHARED, UNKNOWING, examples
from classifiers.base import Task, run
from classifiers.data import Example
from evals import corpora
from evals.cases import names_of_retained
from evals.published.base import Source
from evals.published.tofu import KEPT
from guard import artifacts
from guard.targets import slug_of

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora_adapter": (
        "adapter",
        {"rank": 8, "steps": 200, "learning_rate": 0.002, "refusals": UNKNOWING, "sample": 16},
    ),
    "logit_difference": ("assistant", {}),
    "neuron_adjust": ("neurons", {"share": 1.0, "both_sides": True}),
    "sae_clamp": ("sae", {"layer": 1, "steps": 800, "batch": 512}),
    "steering": ("steering", {}),
}
"""Intervention -> what trains its artifact, and with what."""
WITHOUT = ("embedding_corruption", "guard_prompt", "in_context", "refusal", "token_penalty")
SHOWN, TAG = "tofu-methods", "tofu"
WRONG = 3  # wrong answers that stand with each item


def _trial(data: str, split: str) -> corpora.Trial:
    """The authors of a split as targets, with the row that describes each."""
    (trial,) = (one for one in corpora.tofu(Path(data), (), described=True) if one.name == split)
    return trial


def items(data: str, split: str) -> Iterator[dict[str, Any]]:
    """The rows of the forget set and, as what must stay, those of retained and of real authors and of the world."""
    source, trial = Source(data), _trial(data, split)
    slugs = list(trial.targets)
    for number, row in enumerate(source.rows(f"{split}_perturbed.json")):
        of = slugs[number // corpora.ROWS_PER_AUTHOR]
        yield _item(f"{split}.{number}", of, "forget", row)
    kept = names_of_retained(trial)
    for number, row in enumerate(source.rows("retain_perturbed.json")):
        if row["question"] in kept:
            yield _item(f"retain.{number}", slug_of(kept[row["question"]]), "neighbour", row)
    for of in KEPT[1:]:
        for number, row in enumerate(source.rows(f"{of}_perturbed.json")):
            yield _item(f"{of}.{number}", "", "retain", row)


def _item(name: str, entity: str, split: str, row: dict[str, Any]) -> dict[str, Any]:
    turns = [{"role": "user", "content": row["question"]}]
    return {"id": name, "entity": entity, "split": split, "phrasing": "trained", "turns": turns,
            "answer": row["answer"], "value": "", "wrong": row["perturbed_answer"][:WRONG]}  # fmt: skip


def targets(data: str, split: str, digests: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """One for each author; the first has a rung for each method."""
    for number, (name, spec) in enumerate(_trial(data, split).targets.items()):
        shown = {"id": name, **spec.model_dump(mode="json", exclude_defaults=True), "tags": [TAG]}
        # What is registered as an answer does not leave, whatever the method does. So only the target whose rungs
        # need answers has any, as in the demo; methods that need them elsewhere get those of the items.
        answers = shown.pop("answers")
        if number == 0:
            ladder = [{"method": method} for method in WITHOUT]
            ladder += [{"method": method, "params": {"artifact": of}} for method, of in digests.items()]
            shown |= {"id": SHOWN, "intervention": sorted(ladder, key=lambda rung: str(rung["method"])),
                      "answers": answers}  # fmt: skip
        yield shown


def trained(model: Path, data: str, split: str, out: Path, method: str) -> str:
    """The digest of that method's artifact for this model, data and split, which is made where it is not there."""
    kind, params = METHODS[method]
    source, kept = Source(data), f"retain{100 - int(split.removeprefix('forget')):02}"
    perturbed = source.rows(f"{split}_perturbed.json")
    wrong = [Example((("user", r["question"]),), a) for r in perturbed for a in r["perturbed_answer"][:WRONG]]
    task = Task(
        model, examples(source, split), tuple(e for name in (kept, *KEPT[1:]) for e in examples(source, name)),
        out / "making",
        names=tuple(spec.name for spec in _trial(data, split).targets.values()) if kind == "steering" else (),
        perturbed=tuple(wrong) if kind == "assistant" else (),
    )  # fmt: skip
    made_of = key(artifacts.weights_digest(model), split, source.read, kind, params)
    folder = out / "artifacts" / f"{method}-{made_of}"
    if (folder / artifacts.MANIFEST).exists():
        return artifacts.read(folder).digest
    shutil.rmtree(task.out, ignore_errors=True)
    started = time.perf_counter()
    made = run(kind, task, dict(params))
    click.echo(f"{method}: {time.perf_counter() - started:.0f} s, {made.manifest.measured}", err=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    task.out.rename(folder)  # only whole artifacts lie where a server takes them from
    return made.digest


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@click.command()
@click.option(
    "--model", default=SHARED / "models" / "tofu-full", type=click.Path(path_type=Path, exists=True)
)
@click.option("--data", default=str(SHARED / "data" / "tofu"), type=click.Path(exists=True))
@click.option("--split", default="forget10", show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.argument("out", type=click.Path(path_type=Path))
def subject(model: Path, data: str, split: str, threads: int, out: Path) -> None:
    """Items, targets and artifacts for `lethe eval demo` on a model that learned TOFU. Goes on where it was stopped.

    Example: python -m benchmarks subject /tmp/tofu-subject
    """
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    digests = {method: trained(model, data, split, out, method) for method in METHODS}
    _write(out / "items.jsonl", items(data, split))
    _write(out / "targets.jsonl", targets(data, split, digests))
    click.echo(f"lethe eval demo --full {model} --items {out}/items.jsonl --targets-file {out}/targets.jsonl "
               f"--artifacts {out}/artifacts --shown {SHOWN} --tag {TAG} --suite attacks --never FOLDER")  # fmt: skip
