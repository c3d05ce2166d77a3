"""How strongly, and on which tokens, prompts about a target are corrupted: for the method `embedding_corruption`.

ECO (arXiv 2406.07933) searches the strength without gradients: two forward passes on either side of it give the slope
of an objective, and the strength moves against it and is put back into its bounds. The objective is the distance
between what the corrupted model does on the forget examples and a surrogate for a model that never learned them: that
model itself, where the user has it, else what the untouched model does about somebody it does not know, which is asked
for by putting an invented name in the place of the target's. ECO's released code lets the search see the test examples;
here it sees a part of the sources, and the others are the test.

The search goes over the logarithm of the strength, because an embedding is drowned by a multiple of its own norm. With
`per_dimension` a factor for each dimension is searched behind it, by simultaneous perturbation. Radius and rate decay
with Spall's exponents (IEEE Transactions on Aerospace and Electronic Systems 34(3), 1998).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from classifiers.activations import load_model
from classifiers.base import Params, Task, Trainer
from classifiers.checkpoints import Checkpoint
from classifiers.data import Example, digest, split
from classifiers.edited import Metric, Reader, Row, Speaker, Treatment, draws
from classifiers.surrogate import Surrogate, answered
from guard import artifacts
from guard.artifacts import Artifact
from guard.errors import BadRequest
from guard.interventions.embedding_corruption import EmbeddingCorruptionParams, Positive, Tokens
from guard.metrics.bootstrap import Interval, mean_interval, paired_difference
from guard.metrics.gibberish import Gibberish
from guard.metrics.wilson import wilson

if TYPE_CHECKING:
    import torch

_RATE_DECAY, _RADIUS_DECAY = 0.602, 0.101  # Spall's
METHOD = "embedding_corruption"
_SHARES = (0.1, 0.9)  # of the whole, between which the search is
_WIDEST = math.log(4.0)  # how far the logarithm of a strength moves in one step, and that of a factor from 0


class CorruptionParams(Params):
    """metric: what is compared, the ROUGE-L `recall` of the answer in what the model writes, or the `probability` of
    the given answer's tokens, which costs one pass, and takes what an answer says behind the target's name for known;
    never: folder of a model that never learned the target; tokens: which choices are tried, and dims: over which
    dimensions the noise goes, both as for the method; start, weakest, strongest: of the strength; radius: between the
    strength and the two that are tried, and rate: of a step by the slope, both of its logarithm; steps: for each
    choice of tokens, and for the factors of `per_dimension`; draws: of noise, and of invented names, for each example;
    broken: how large a share of broken answers may be beyond that of the untouched model; test: share of the sources
    that the search does not see."""

    metric: Metric = "recall"
    never: Path | None = None
    tokens: tuple[Tokens, ...] = Field(("spans", "entities", "window", "prompt"), min_length=1)
    dims: Positive | Literal["all"] = "all"
    start: float = Field(2.0, gt=0.0)
    weakest: float = Field(0.1, gt=0.0)
    strongest: float = Field(30.0, gt=0.0, le=1e6)
    radius: float = Field(math.log(2.0), gt=0.0)
    rate: float = Field(4.0, gt=0.0)
    steps: int = Field(6, ge=1, le=1000)
    per_dimension: bool = False
    draws: int = Field(2, ge=1, le=64)
    broken: float = Field(0.05, ge=0.0, le=1.0)
    test: float = Field(0.5, gt=0.0, lt=1.0)


@dataclass(frozen=True, slots=True)
class Part:
    """Examples to measure on as the model reads them, their sources, and for each the surrogate's score."""

    rows: tuple[Row, ...]
    sources: tuple[str, ...]
    surrogate: list[float]


@dataclass(frozen=True, slots=True)
class Found:
    """The best that was seen with one choice of tokens: the distance of each example, the number of tokens that it
    edits, and the share of its answers that are broken."""

    corruption: Treatment
    distances: list[float]
    edited: int
    broken: float

    @property
    def distance(self) -> float:
        return _mean(self.distances)


class CorruptionStrength(Trainer):
    params_type = CorruptionParams

    def train(self, task: Task, params: CorruptionParams) -> Artifact:
        if not params.weakest <= params.start <= params.strongest:
            raise BadRequest("The strength must start between the weakest and the strongest.")
        task.progress.report(0.0, "asking the untouched model")
        bench = Bench(task, params)
        search, test = (bench.part(examples) for examples in split(bench.examples, params.test, params.seed))
        tried = bench.search(search)
        best = choose(tried, search.sources, bench.broken(search, None).mean + params.broken)
        if params.per_dimension:
            best = bench.refine(search, best)
        task.progress.report(_SHARES[1], "measuring")
        factors = best.corruption.table
        return artifacts.write(
            task.out,
            METHOD,
            artifacts.weights_digest(task.model),
            tensors=None if factors is None else {"factors": factors},
            facts={"found": best.corruption.params},
            measured={
                "validation": bench.measured(search, best.corruption),
                "test": bench.measured(test, best.corruption),
                "tried": {found.corruption.params["tokens"]: _told(found) for found in tried},
            },
            trained={
                "trainer": "corruption",
                "params": params.model_dump(mode="json", exclude={"never"}),
                "surrogate": bench.surrogate.kind,
                "forget": digest(task.forget),
                "retain": digest(task.retain),
            },
        )


class Journal:
    """What was measured, in the order in which it was asked for.

    All that the search does follows from that, the examples and the seed: one that was killed goes on by going the same
    way again, and is told from the checkpoint what it has measured before. Numbers only, so that no text of an answer
    lies on disk.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        state = checkpoint.load()
        self._known: list[list[float]] = state["measured"] if state else []
        self._told = 0

    def measured(self, measure: Callable[[], list[float]]) -> list[float]:
        """What `measure` finds. One measurement costs what many steps of a training do: it is kept at once."""
        if self.ended:
            self._known.append(list(map(float, measure())))
            if self._checkpoint.path is not None:
                self._checkpoint.save({"measured": self._known})
        self._told += 1
        return self._known[self._told - 1]

    @property
    def ended(self) -> bool:
        """Whether all that was measured before has been told again."""
        return self._told == len(self._known)


class Bench:
    """The model on which corruptions are tried, the `examples` with their answers, and the surrogate."""

    def __init__(self, task: Task, params: CorruptionParams) -> None:
        self._params = params
        self._progress = task.progress
        self._journal = Journal(task.checkpoint)
        self._tries, self._searches = 0, 1
        model, tokenizer = load_model(task.model)
        self._reader = Reader(tokenizer, task.names)
        self._speaker = Speaker(model, tokenizer, draws(params.seed, params.draws))
        self.surrogate = Surrogate(
            task, tokenizer, self._speaker, never=params.never, seed=params.seed, count=params.draws
        )
        self.examples = answered(self._speaker, self._reader, task.forget)
        # who does not know says so in other words than who does, and is not to count as broken
        unknown = self.surrogate.asked(self.examples)
        ignorant = (self.surrogate.speaker.answers(rows, None) for rows in unknown)
        answers = (e.answer for e in (*task.retain, *self.examples) if e.answer)
        self._language = Gibberish([*answers, *chain(*ignorant)])

    def part(self, examples: Sequence[Example]) -> Part:
        rows = tuple(map(self._reader.row, examples))
        drawn = [
            self._scores(asked, None, self._params.metric, self.surrogate.speaker)
            for asked in self.surrogate.asked(examples)
        ]
        surrogate = [_mean(one) for one in zip(*drawn, strict=True)]
        return Part(rows, tuple(example.origin for example in examples), surrogate)

    def differing(self, part: Part, choices: Sequence[Tokens]) -> list[Tokens]:
        """The choices of tokens without those that edit the same ones as an earlier one."""
        edited: dict[tuple[tuple[int, ...], ...], Tokens] = {}
        for tokens in choices:
            corruption = self._corruption(tokens, self._params.start)
            edited.setdefault(tuple(row.edited(corruption) for row in part.rows), tokens)
        return list(edited.values())

    def search(self, part: Part) -> list[Found]:
        """The best strength for each choice of tokens."""
        choices = self.differing(part, self._params.tokens)
        self._searches = len(choices) + self._params.per_dimension
        return [self._strength(part, tokens) for tokens in choices]

    def _strength(self, part: Part, tokens: Tokens) -> Found:
        import torch

        params = self._params

        def at(point: torch.Tensor) -> Treatment:
            return self._corruption(tokens, math.exp(float(point)))

        low, high = math.log(params.weakest), math.log(params.strongest)
        point, distances = descend(
            lambda point: self._try(part, at(point), f"searching on tokens: {tokens}"),
            torch.tensor([math.log(params.start)]),
            lambda point: point.clamp(low, high),
            lambda: torch.ones(1),
            params,
        )
        return self._found(part, at(point), distances)

    def refine(self, part: Part, found: Found) -> Found:
        """The same with a factor for each dimension. Their mean square is 1, so that the strength keeps its meaning."""
        import torch

        width, dims = self._speaker.width, self._params.dims
        count = width if dims == "all" else min(dims, width)
        draw = torch.Generator().manual_seed(self._params.seed)

        def at(point: torch.Tensor) -> Treatment:
            factors = torch.ones(width)
            factors[:count] = point.exp() / point.exp().square().mean().sqrt()
            return replace(found.corruption, table=factors)

        point, distances = descend(
            lambda point: self._try(part, at(point), "searching a factor for each dimension"),
            torch.zeros(count),
            lambda point: point.clamp(-_WIDEST, _WIDEST),
            lambda: torch.randint(0, 2, (count,), generator=draw) * 2.0 - 1,
            self._params,
        )
        return self._found(part, at(point), distances)

    def broken(self, part: Part, corruption: Treatment | None) -> Interval:
        """The share of answers that are broken language."""

        def judge() -> list[float]:
            said = self._speaker.answers(part.rows, corruption)
            return [float(self._language.is_gibberish(answer)) for answer in said]

        broken = self._journal.measured(judge)
        found = wilson(round(sum(broken)), len(broken))
        assert found is not None
        return found

    def measured(self, part: Part, corruption: Treatment) -> dict[str, Any]:
        """Both metrics untouched and corrupted, and by the search's own metric the surrogate and the distance; means
        with intervals over sources."""

        def told(values: Sequence[float]) -> dict[str, float]:
            found = mean_interval(values, groups=part.sources, seed=self._params.seed)
            assert found is not None
            return _figures(found)

        scores: dict[str, Any] = {
            metric: {
                "untouched": told(self._scores(part.rows, None, metric)),
                "corrupted": told(self._scores(part.rows, corruption, metric)),
            }
            for metric in ("recall", "probability")
        }
        scores[self._params.metric]["surrogate"] = told(part.surrogate)
        return {
            "sources": len(set(part.sources)),
            **scores,
            "distance": told(self._distances(part, corruption)),
            "broken": _figures(self.broken(part, corruption)),
        }

    def _corruption(self, tokens: Tokens, strength: float) -> Treatment:
        params = EmbeddingCorruptionParams(strength=strength, dims=self._params.dims, tokens=tokens)
        return Treatment(METHOD, params.model_dump(exclude={"artifact"}))

    def _try(self, part: Part, corruption: Treatment, stage: str) -> list[float]:
        """The distances of one try of `descend`; how far all searches are is told."""
        if self._journal.ended:
            begin, end = _SHARES
            done = self._tries / (self._searches * (2 * self._params.steps + 2))
            self._progress.report(begin + (end - begin) * done, stage)
        self._tries += 1
        return self._distances(part, corruption)

    def _distances(self, part: Part, corruption: Treatment) -> list[float]:
        scores = self._scores(part.rows, corruption, self._params.metric)
        return [abs(score - wanted) for score, wanted in zip(scores, part.surrogate, strict=True)]

    def _scores(
        self,
        rows: Sequence[Row],
        corruption: Treatment | None,
        metric: Metric,
        speaker: Speaker | None = None,
    ) -> list[float]:
        """Of the model itself, or of another `speaker`."""
        return self._journal.measured(lambda: (speaker or self._speaker).scores(rows, corruption, metric))

    def _found(self, part: Part, corruption: Treatment, distances: list[float]) -> Found:
        edited = sum(len(row.edited(corruption)) for row in part.rows)
        return Found(corruption, distances, edited, self.broken(part, corruption).mean)


def descend(
    distances: Callable[[torch.Tensor], list[float]],
    start: torch.Tensor,
    project: Callable[[torch.Tensor], torch.Tensor],
    direction: Callable[[], torch.Tensor],
    params: CorruptionParams,
) -> tuple[torch.Tensor, list[float]]:
    """Of all points that zeroth-order descent from `start` has tried, the nearest to the surrogate, and its distances.
    Each step tries two, `project` puts them within bounds, and `direction` says along what they lie."""
    point, seen = start, [(start, distances(start))]
    for step in range(1, params.steps + 1):
        radius, along = params.radius / step**_RADIUS_DECAY, direction()
        ahead, behind = (project(point + side * radius * along) for side in (1, -1))
        seen += [(ahead, distances(ahead)), (behind, distances(behind))]
        slope = (_mean(seen[-2][1]) - _mean(seen[-1][1])) / (2 * radius)
        move = params.rate / step**_RATE_DECAY * slope
        point = project(point - max(-_WIDEST, min(move, _WIDEST)) * along)
    seen.append((point, distances(point)))
    return min(seen, key=lambda one: _mean(one[1]))


def choose(tried: Sequence[Found], sources: Sequence[str], most_broken: float) -> Found:
    """Of those that do not break answers, the one that edits the fewest tokens and is not further from the surrogate
    than the nearest: the 95 % interval of their difference reaches 0.

    Raises:
        BadRequest: all break answers.
    """
    sound = [found for found in tried if found.broken <= most_broken]
    if not sound:
        raise BadRequest(
            "Every corruption that was found breaks too many answers; allow more of it with `broken`, or a lower "
            "`strongest`."
        )
    best = min(sound, key=lambda found: found.distance)

    def ties(found: Found) -> bool:
        apart = paired_difference(found.distances, best.distances, groups=sources)
        return apart is None or apart.low <= 0

    return min(filter(ties, sound), key=lambda found: found.edited)


def _told(found: Found) -> dict[str, float]:
    return {
        "strength": round(found.corruption.params["strength"], 4),
        "distance": round(found.distance, 4),
        "tokens_edited": found.edited,
        "broken": round(found.broken, 4),
    }


def _figures(found: Interval) -> dict[str, float]:
    return {"n": found.n, **{name: round(getattr(found, name), 4) for name in ("mean", "low", "high")}}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
