"""Adapters that were made before, made into one.

`sum`: B A of all, each by its weight: exact, with the sum of their ranks.
`ties` (TIES-Merging, arXiv 2306.01708; for unlearning ZJUKLAB at SemEval-2025 Task 4, arXiv 2503.21088): of each one
the entries of largest magnitude, for each entry the sign that has more mass, and the mean of those that have it.
ZJUKLAB's code has PEFT do so on the matrices A and B apart, whose entries mean nothing by themselves; here it is done
on what they add.
`negmerge` (NegMerge, arXiv 2410.05583): adapters that learned what must go (loss `memorise`) with different settings;
entries on whose sign all agree, averaged and taken away.
`scale`: one adapter times a factor, the plainest form of weighting a change of weights globally (task arithmetic, arXiv
2212.04089).

The first and the last need no more rank than they are given. The others are dense, and become the nearest matrices of
`rank` (by SVD); the manifest has the share of their energy that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from classifiers import lora
from classifiers.activations import load_model
from classifiers.base import Params, Task, Trainer
from guard.artifacts import Artifact
from guard.errors import BadRequest
from guard.interventions.lora_adapter import LEARNED

Pair = tuple[torch.Tensor, torch.Tensor]


class MergeParams(Params):
    """how: see above. weights: of the adapters in their order, 1 for each. scale: multiplies the result. keep: share of
    the entries that `ties` leaves of each. rank: the highest of the result; by default, for dense ones, the highest
    that was given. sample: examples of each set that are measured before and after."""

    how: Literal["sum", "ties", "negmerge", "scale"] = "ties"
    weights: tuple[float, ...] | None = None
    scale: float = Field(1.0, gt=0, le=100)
    keep: float = Field(0.8, gt=0, le=1)
    rank: int | None = Field(None, ge=1, le=256)
    sample: int = Field(200, ge=1)


class Merge(Trainer):
    params_type = MergeParams
    adapters = True
    needs_forget = False

    def train(self, task: Task, params: MergeParams) -> Artifact:
        """Raises BadRequest: there are too few adapters, other than one to scale, one of `slices`, or weights for more
        or fewer."""
        least, most = (1, 1) if params.how == "scale" else (2, 256)
        if not least <= len(task.adapters) <= most:
            wanted = "one adapter" if params.how == "scale" else "at least two adapters"
            raise BadRequest(
                f"'{params.how}' takes {wanted}, and {len(task.adapters)} were given (--adapter)."
            )
        if any(LEARNED in one.manifest.facts for one in task.adapters):
            raise BadRequest(
                "No row could be taken out of an adapter of `slices` once it is merged; leave it out."
            )
        if params.weights is not None and len(params.weights) != len(task.adapters):
            raise BadRequest(f"There are {len(task.adapters)} adapters and {len(params.weights)} weights.")
        weights = params.weights or (1.0,) * len(task.adapters)
        task.progress.report(0.1, "merging")
        pairs, kept = merged([lora.read(one) for one in task.adapters], weights, params)
        model, tokenizer = load_model(task.model)
        task.progress.report(0.5, "measuring")
        measure = lora.Measure(
            model, tokenizer, task.forget, task.retain, sample=params.sample, seed=params.seed
        )
        return lora.write(task, "merge", params, pairs, {**measure.under(pairs), "energy_kept": kept})


def merged(
    adapters: Sequence[lora.Pairs], weights: Sequence[float], params: MergeParams
) -> tuple[dict[str, Pair], float]:
    """The pairs of what the adapters become together, and the share of its energy (squared entries) that they keep. A
    layer that an adapter does not have it does not change."""
    highest = max(len(down) for one in adapters for down, _ in one.values())
    exact = params.how in ("sum", "scale")
    rank = params.rank or (None if exact else highest)
    found, whole, lost = {}, 0.0, 0.0
    for module in dict.fromkeys(name for one in adapters for name in one):
        have = [
            (weight, *one[module]) for weight, one in zip(weights, adapters, strict=True) if module in one
        ]
        down = torch.cat([a for _, a, _ in have])
        up = torch.cat([params.scale * weight * b for weight, _, b in have], dim=1)
        dense = up @ down
        if not exact:
            some = [weight * b @ a for weight, a, b in have]
            some += [torch.zeros_like(some[0])] * (len(adapters) - len(some))
            dense = params.scale * _DENSE[params.how](torch.stack(some), params.keep)
        whole += float(dense.square().sum())
        if exact and (rank is None or len(down) <= rank):
            found[module] = (down, up)
        else:
            found[module], energy = lora.nearest(dense, rank or highest)
            lost += energy
    if not any(up.any() for _, up in found.values()):
        raise BadRequest("The adapters agree on nothing: merged they change nothing.")
    return found, round(1 - lost / whole, 4) if whole else 1.0


def ties(changes: torch.Tensor, keep: float) -> torch.Tensor:
    """[out, in] of `changes` [n, out, in]: see above."""
    flat = changes.flatten(1)
    count = max(1, round(keep * flat.shape[1]))
    least = flat.abs().topk(count, dim=1).values[:, -1:]
    trimmed = torch.where(flat.abs() >= least, flat, 0.0)
    sign = trimmed.sum(dim=0).sign()
    chosen = (trimmed.sign() == sign) & (trimmed != 0)
    mean = (trimmed * chosen).sum(dim=0) / chosen.sum(dim=0).clamp(min=1)
    return mean.view_as(changes[0])


def negmerge(changes: torch.Tensor, keep: float) -> torch.Tensor:
    """[out, in] of `changes` [n, out, in]: see above; nothing is trimmed."""
    signs = changes.sign()
    agreed = (signs == signs[0]).all(dim=0)
    return -changes.mean(dim=0) * agreed


_DENSE: dict[str, Any] = {"ties": ties, "negmerge": negmerge}
