"""A page that shows what the chosen features of an autoencoder stand for: the tokens at which each is most active, in
their context, and how often it is active at all.

It holds text of the examples. So it is written where the user says and is no part of the artifact, which may outlive
the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classifiers.activations import collect
from classifiers.data import Example, encode
from guard.interventions.sae_clamp import Features

if TYPE_CHECKING:
    import torch

_MOST = 10  # examples of each feature
_BEFORE, _BEHIND = 24, 8  # tokens of context
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
td { padding: .1rem .8rem .1rem 0; vertical-align: top; } td.number { text-align: right; }
table { font-variant-numeric: tabular-nums; } mark { padding: 0 .1rem; } .note { opacity: .75; }
"""


@dataclass(frozen=True, slots=True)
class Shown:
    """One token of an example of a set, in its context, and the `activation` there."""

    activation: float
    of: str
    before: str
    token: str
    behind: str


@dataclass(slots=True)
class Feature:
    """The number of a feature in its autoencoder; for each set of examples the share of tokens at which it is active;
    and what activates it most, one token of an example, strongest first."""

    index: int
    active: dict[str, float] = field(default_factory=dict)
    strongest: list[Shown] = field(default_factory=list)


def look(
    features: Features,
    index: Sequence[int],
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, Sequence[Example]],
    layer: int,
) -> list[Feature]:
    """Each of the `features`, whose numbers are `index`, over all tokens of all examples but their first."""
    found = [Feature(number) for number in index]
    for name, examples in sets.items():
        tokens, active = 0, [0] * len(found)
        for example, values in collect(model, [encode(tokenizer, e) for e in examples], "residual", [layer]):
            z = features.active(values[0, 1:])
            tokens += len(z)
            active = [a + b for a, b in zip(active, (z > 0).sum(dim=0).tolist(), strict=True)]
            for feature, (activation, place) in zip(found, _peaks(z), strict=True):
                ranked = feature.strongest
                if activation > 0 and (len(ranked) < _MOST or activation > ranked[-1].activation):
                    ranked.append(_shown(tokenizer, example.ids, place + 1, activation, name))
                    ranked.sort(key=lambda shown: -shown.activation)
                    del ranked[_MOST:]
        for feature, count in zip(found, active, strict=True):
            feature.active[name] = count / max(tokens, 1)
    return found


def write(path: Path, found: Sequence[Feature], layer: int) -> None:
    """The page, which needs nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(map(_section, found))
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Chosen features</title>'
        f"<style>{_STYLE}</style></head><body><h1>Features behind layer {layer}</h1>"
        '<p class="note">Best first. Shares are of the tokens of each set at which the feature is active.</p>'
        f"{body}</body></html>\n",
        encoding="utf-8",
    )


def _peaks(z: torch.Tensor) -> list[tuple[float, int]]:
    """The largest activation of each feature and its place, of `z` [tokens, features]."""
    if not len(z):
        return [(0.0, 0)] * z.shape[1]
    values, places = z.max(dim=0)
    return list(zip(values.tolist(), places.tolist(), strict=True))


def _shown(tokenizer: Any, ids: Sequence[int], place: int, activation: float, of: str) -> Shown:
    parts = (
        ids[max(place - _BEFORE, 0) : place],
        ids[place : place + 1],
        ids[place + 1 : place + 1 + _BEHIND],
    )
    return Shown(activation, of, *(tokenizer.decode(list(part)) for part in parts))


def _section(feature: Feature) -> str:
    shares = ", ".join(f"{name} {share:.2%}" for name, share in feature.active.items())
    rows = "".join(
        f'<tr><td class="number">{one.activation:.2f}</td><td>{escape(one.of)}</td><td>{escape(one.before)}'
        f"<mark>{escape(one.token)}</mark>{escape(one.behind)}</td></tr>"
        for one in feature.strongest
    )
    return f'<h2>{feature.index}</h2><p class="note">{escape(shares)}</p><table>{rows}</table>'
