"""A subject that learned TOFU, made ready for `lethe eval demo`: its items, its targets, and one artifact for each
intervention that needs one, trained on the forget set. One target's rungs name every method, as the demo's do."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.tofu import SHARED, UNKNOWING
from classifiers.base import Task, run
from classifiers.data import Example
from evals import corpora
from evals.cases import names_of_retained
from evals.published.base import Source
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


def items(data: str, split: str) -> Iterator[dict[str, Any]]:
    """The rows of the forget set and, as what must stay, those of retained and of real authors and of the world."""
    source, folder = Source(data), Path(data)
    (trial,) = (one for one in corpora.tofu(folder, (), described=True) if one.name == split)
    slugs = list(trial.targets)
    for number, row in enumerate(source.rows(f"{split}_perturbed.json")):
        of = slugs[number // corpora.ROWS_PER_AUTHOR]
        yield _item(f"{split}.{number}", of, "forget", row)
    kept = names_of_retained(trial)
    for number, row in enumerate(source.rows("retain_perturbed.json")):
        if row["question"] in kept:
            yield _item(f"retain.{number}", slug_of(kept[row["question"]]), "neighbour", row)
    for of in ("real_authors", "world_facts"):
        for number, row in enumerate(source.rows(f"{of}_perturbed.json")):
            yield _item(f"{of}.{number}", "", "retain", row)


def _item(name: str, entity: str, split: str, row: dict[str, Any]) -> dict[str, Any]:
    turns = [{"role": "user", "content": row["question"]}]
    return {"id": name, "entity": entity, "split": split, "phrasing": "trained", "turns": turns,
            "answer": row["answer"], "value": "", "wrong": row["perturbed_answer"][:WRONG]}  # fmt: skip


def targets(data: str, split: str, digests: dict[str, str]) -> Iterator[dict[str, Any]]:
    """One for each author; the first has a rung for each method."""
    (trial,) = (one for one in corpora.tofu(Path(data), (), described=True) if one.name == split)
    for number, (name, spec) in enumerate(trial.targets.items()):
        shown = {"id": name, **spec.model_dump(mode="json", exclude_defaults=True), "tags": [TAG]}
        shown.pop("answers", None)
        if number == 0:
            ladder = [{"method": method} for method in WITHOUT]
            ladder += [{"method": method, "params": {"artifact": of}} for method, of in digests.items()]
            shown |= {"id": SHOWN, "intervention": sorted(ladder, key=lambda rung: str(rung["method"])),
                      "answers": spec.answers}  # fmt: skip
        yield shown


def trained(model: Path, data: str, split: str, out: Path, method: str) -> str:
    """The digest of that method's artifact, which is made where it is not there."""
    kind, params = METHODS[method]
    source, kept = Source(data), f"retain{100 - int(split.removeprefix('forget')):02}"
    perturbed = source.rows(f"{split}_perturbed.json")
    wrong = [Example((("user", r["question"]),), a) for r in perturbed for a in r["perturbed_answer"][:WRONG]]
    (trial,) = (one for one in corpora.tofu(Path(data), (), described=True) if one.name == split)
    retain = (*_examples(source.rows(f"{kept}.json")), *_examples(source.rows("real_authors.json")),
              *_examples(source.rows("world_facts.json")))  # fmt: skip
    task = Task(
        model, _examples(source.rows(f"{split}.json")), retain, out / method,
        names=tuple(spec.name for spec in trial.targets.values()) if kind == "steering" else (),
        perturbed=tuple(wrong) if kind == "assistant" else (),
    )  # fmt: skip
    shutil.rmtree(task.out, ignore_errors=True)
    started = time.perf_counter()
    made = run(kind, task, dict(params))
    click.echo(f"{method}: {time.perf_counter() - started:.0f} s, {made.manifest.measured}", err=True)
    return made.digest


def _examples(rows: Iterable[dict[str, Any]]) -> tuple[Example, ...]:
    """Each question once: the published sets hold one twice."""
    found = {row["question"]: Example((("user", row["question"]),), row["answer"]) for row in rows}
    return tuple(found.values())


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
    known = out / "digests.json"
    digests: dict[str, str] = json.loads(known.read_text()) if known.exists() else {}
    for method in METHODS:
        if method not in digests:
            digests[method] = trained(model, data, split, out / "artifacts", method)
            known.write_text(json.dumps(digests))
    _write(out / "items.jsonl", items(data, split))
    _write(out / "targets.jsonl", targets(data, split, digests))
    click.echo(f"lethe eval demo --full {model} --items {out}/items.jsonl --targets-file {out}/targets.jsonl "
               f"--artifacts {out}/artifacts --shown {SHOWN} --tag {TAG} --suite attacks --never FOLDER")  # fmt: skip
