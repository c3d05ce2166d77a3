"""What may be tried, cheapest first: one table.

The order is that of what has to be made for a rung, and of what serving it costs: nothing to train, means and Gaussians
that are read off once, what is solved for, a search, small things that are trained, adapters that are. `refusal` is no
candidate: it forgets everything and answers nothing, and is the last rung of every ladder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the model is on this machine, and how much there is to read, from which the time of a candidate is
    estimated: seconds to read a token, to learn from one, and for a whole answer; the model's layers, width and
    weights; examples and tokens of what is trained on; questions that are asked to measure one candidate, and draws of
    noise."""

    reading: float
    learning: float
    answering: float
    layers: int
    width: int
    weights: int
    examples: int
    tokens: int
    example_tokens: float
    asked: int
    draws: int

    def measuring(self, noisy: bool) -> float:
        """Seconds to measure a candidate: an answer to each question, and a pass over the answers that are given; of
        each draw, where it has noise. And then all once more without it."""
        drawn = self.draws if noisy else 1
        return self.asked * ((drawn + 1) * self.answering + drawn * self.example_tokens * self.reading)


Estimate = Callable[[Pace], float]


def _nothing(_: Pace) -> float:
    return 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method with the `params` of its rung. Where it needs an artifact, `trainer` makes it with the `settings` for
    the model at hand, which takes about `seconds`. `noisy`: what it does depends on the draw of its noise."""

    name: str
    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    trainer: str | None = None
    settings: Callable[[Pace], dict[str, Any]] = lambda _: {}
    seconds: Estimate = _nothing
    noisy: bool = False


_SEARCH: dict[str, Any] = {"steps": 4, "draws": 1, "tokens": ["spans", "prompt"]}
_SAE = {"steps": 400, "batch": 512, "expansion": 8}
_ADAPTER: dict[str, Any] = {"rank": 4, "steps": 120, "batch": 16, "learning_rate": 0.002, "sample": 16}
_SOLVED = {"sample": 16}
_ASSISTANT = {"blocks": 2, "epochs": 20}


def _read(pace: Pace) -> float:
    return pace.tokens * pace.reading


def _read_twice(pace: Pace) -> float:
    return 2 * pace.tokens * pace.reading


def _solved(pace: Pace) -> float:
    """Of both sets what a layer gets and gives on is read; the rest is measuring before and after."""
    return 2 * _read_twice(pace) + 4 * _SOLVED["sample"] * pace.answering


def _search(pace: Pace) -> float:
    tries = len(_SEARCH["tokens"]) * (2 * _SEARCH["steps"] + 2)
    return (tries / 2 + 4) * pace.examples * pace.answering


def _sae(pace: Pace) -> float:
    """A pass of the model takes two operations for each weight and token, a step of the autoencoder six for each of its
    weights and token."""
    operation = pace.reading / (2 * pace.weights)
    weights = 2 * _SAE["expansion"] * pace.width**2
    return 4 * pace.tokens * pace.reading + _SAE["steps"] * _SAE["batch"] * 6 * weights * operation


def _assistant(pace: Pace) -> float:
    share = min(_ASSISTANT["blocks"] / pace.layers, 1.0)
    return _ASSISTANT["epochs"] * pace.examples * 2 * pace.example_tokens * pace.learning * share


def _adapter(pace: Pace) -> float:
    learned = _ADAPTER["steps"] * _ADAPTER["batch"] * 2 * pace.example_tokens * pace.learning
    return learned + 4 * _ADAPTER["sample"] * pace.answering


CANDIDATES = (
    Candidate("corruption", "embedding_corruption", noisy=True),
    Candidate("guard prompt", "guard_prompt"),
    Candidate("in context", "in_context"),
    Candidate("token penalty", "token_penalty"),
    Candidate("steering", "steering", {"mode": "redirection"}, "steering", seconds=_read),
    Candidate(
        "strong steering",
        "steering",
        {"mode": "redirection", "strength": 2.0},
        "steering",
        lambda _: {"layers": "all"},
        _read,
    ),
    Candidate("neurons", "neuron_adjust", {}, "neurons", seconds=_read_twice, noisy=True),
    Candidate(
        "all neurons",
        "neuron_adjust",
        {},
        "neurons",
        lambda _: {"share": 1.0, "both_sides": True},
        _read_twice,
        noisy=True,
    ),
    Candidate("redirection", "lora_adapter", {}, "redirection", lambda _: _SOLVED, _solved),
    Candidate(
        "searched corruption",
        "embedding_corruption",
        {},
        "corruption",
        lambda _: _SEARCH,
        _search,
        noisy=True,
    ),
    Candidate("features", "sae_clamp", {}, "sae", lambda p: {**_SAE, "layer": p.layers // 2}, _sae),
    Candidate("assistant", "logit_difference", {}, "assistant", lambda _: _ASSISTANT, _assistant),
    Candidate(
        "refusing adapter", "lora_adapter", {}, "adapter", lambda _: {**_ADAPTER, "loss": "idk"}, _adapter
    ),
    Candidate("npo adapter", "lora_adapter", {}, "adapter", lambda _: {**_ADAPTER, "loss": "npo"}, _adapter),
)
"""Cheapest first. Names are what the report and the command line call them."""
