"""Asks the model under a candidate, and keeps the numbers: no text of an answer outlives its judgement."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from classifiers.activations import blocks, load_model
from classifiers.auto.candidates import Candidate, Pace
from classifiers.auto.choice import Ground, Said, Trial
from classifiers.auto.material import Amounts, Material, gather
from classifiers.base import Task
from classifiers.data import encode
from classifiers.edited import Draw, Reader, Row, Speaker, Treatment, draws
from classifiers.surrogate import Surrogate
from guard import artifacts, interventions
from guard.artifacts import Artifact
from guard.metrics.gibberish import Gibberish
from guard.metrics.refusal import is_refusal
from guard.metrics.rouge import rouge_l_recall
from guard.targets import TargetSpec

_TIMED = 16  # examples by which the model's speed is measured


class Bench:
    """The model, the `material`, the `ground` that candidates are compared with, and the model's `pace`.

    `spec` is the target as the server has it, from which some methods make what they need; `never` the folder of a
    model that never learned it. Noise has so many draws as `count` says, and the surrogate so many invented names.
    """

    def __init__(
        self,
        task: Task,
        spec: TargetSpec,
        amounts: Amounts,
        *,
        holdout: Sequence[Any] = (),
        never: Path | None = None,
        count: int = 2,
    ) -> None:
        self._folder, self._spec = task.model, spec
        model, self._tokenizer = load_model(task.model)
        self._model, self._draws = model, draws(amounts.seed, count)
        self._reader = Reader(self._tokenizer, task.names)
        self._speaker = Speaker(model, self._tokenizer, self._draws)
        surrogate = Surrogate(
            task, self._tokenizer, self._speaker, never=never, seed=amounts.seed, count=count
        )
        self.surrogate = surrogate.kind
        self.material: Material = gather(
            task.forget, task.retain, holdout, self._speaker, self._reader, task.encoder.load(), amounts,
            invent=never is None,
        )  # fmt: skip
        self._forget, self._near = (
            [self._reader.row(example) for example in part]
            for part in (self.material.judged, self.material.near)
        )
        asked = list(surrogate.asked(self.material.judged))
        ignorant = [surrogate.speaker.answers(rows, None) for rows in asked]
        known = [e.answer for part in (self.material.forget, self.material.retain) for e in part]
        # who does not know says so in other words than who does, and is not to count as broken
        self._language = Gibberish([*known, *chain(*ignorant)])
        started = time.perf_counter()
        self._before = [self._speaker.answers(rows, None) for rows in (self._forget, self._near)]
        self._seconds = time.perf_counter() - started
        self.ground = Ground(
            [example.origin for example in self.material.judged],
            self._said(self._forget, [self._before[0]], None, self._speaker),
            _mean(
                [self._said(r, [a], None, surrogate.speaker) for r, a in zip(asked, ignorant, strict=True)]
            ),
            [example.origin for example in self.material.near],
            self._said(self._near, [self._before[1]], None, None),
        )
        self.pace = self._pace()

    def tried(self, candidate: Candidate, artifact: Artifact | None, seconds: float) -> Trial:
        """What the model says under the candidate, whose training took so many seconds.

        Raises:
            LetheError: it cannot act on this model or target.
        """
        drawn = self._draws if candidate.noisy else self._draws[:1]
        with self._treatment(candidate, artifact) as treatment:
            started = time.perf_counter()
            answers = [self._answers(rows, treatment, drawn) for rows in (self._forget, self._near)]
            took = (time.perf_counter() - started) / len(drawn)
            forget = self._said(self._forget, answers[0], treatment, self._speaker)
            near = self._said(self._near, answers[1], treatment, None)
        started = time.perf_counter()  # beside the candidate, because machines have other work as well
        again = [self._speaker.answers(rows, None) for rows in (self._forget, self._near)]
        untouched = time.perf_counter() - started
        return Trial(
            candidate.name,
            candidate.method,
            {**candidate.params, **({} if artifact is None else {"artifact": artifact.digest})},
            forget,
            near,
            took / untouched,
            seconds,
            0 if artifact is None else sum(f.stat().st_size for f in artifact.folder.iterdir()),
            None if artifact is None else artifact.folder.name,
            again == self._before,
        )

    def shown(self, candidate: Candidate, artifact: Artifact | None) -> Iterator[tuple[str, str, str]]:
        """Held-out questions, what the untouched model says, and what it says under the candidate."""
        with self._treatment(candidate, artifact) as treatment:
            said = self._answers(self._forget, treatment, self._draws[:1])[0]
        asked = (example.turns[-1][1] for example in self.material.judged)
        yield from zip(asked, self._before[0], said, strict=True)

    @contextmanager
    def _treatment(self, candidate: Candidate, artifact: Artifact | None) -> Iterator[Treatment]:
        """What the server would do: with the artifact, or with what the method makes of the target at registration,
        which holds the target's text and lies on disk no longer than it is needed."""
        if artifact is not None:
            yield Treatment.of(artifact, self._folder, **candidate.params)
            return
        params = interventions.check_params(candidate.method, candidate.params)
        prepared = interventions.load(candidate.method).prepare(self._spec, params)
        if prepared is None or not (prepared.files or prepared.tensors):
            facts = {} if prepared is None else prepared.facts
            yield Treatment(candidate.method, candidate.params, facts=facts)
            return
        with tempfile.TemporaryDirectory(prefix="lethe-auto-") as folder:
            for name, content in prepared.files.items():
                (Path(folder) / name).write_bytes(content)
            made = artifacts.write(
                Path(folder),
                candidate.method,
                artifacts.weights_digest(self._folder),
                tensors=prepared.tensors or None,
                facts=prepared.facts,
            )
            yield Treatment.of(made, self._folder, **candidate.params)

    def _answers(self, rows: Sequence[Row], treatment: Treatment, drawn: Sequence[Draw]) -> list[list[str]]:
        """Of each draw."""
        read, inside = self._under(rows, treatment)
        return [self._speaker.answers(read, inside, draw) for draw in drawn]

    def _under(
        self, rows: Sequence[Row], treatment: Treatment | None
    ) -> tuple[Sequence[Row], Treatment | None]:
        """A method that puts text into prompts changes what is read, and nothing inside the model."""
        if treatment is None or not rows or not rows[0].plan(treatment).insertions:
            return rows, treatment
        return [self._reader.under(row, treatment) for row in rows], None

    def _said(
        self,
        rows: Sequence[Row],
        drawn: Sequence[Sequence[str]],
        treatment: Treatment | None,
        speaker: Speaker | None,
    ) -> Said:
        """What the answers of each draw are worth. The `speaker` tells how likely it finds the right ones."""

        def mean(of: Callable[[Row, str], float]) -> list[float]:
            scores = [[of(row, text) for row, text in zip(rows, said, strict=True)] for said in drawn]
            return _means(scores)

        return Said(
            mean(lambda row, text: rouge_l_recall(row.answer, text)),
            [] if speaker is None else speaker.scores(*self._under(rows, treatment), "probability"),
            mean(lambda _, text: float(self._language.is_gibberish(text))),
            mean(lambda _, text: float(is_refusal(text))),
        )

    def _pace(self) -> Pace:
        """By one pass over some examples, forward and with gradients."""
        import torch

        trained = [*self.material.forget, *self.material.retain]
        encoded = [encode(self._tokenizer, example).ids for example in trained]
        chosen = encoded[:_TIMED]
        longest = max(map(len, chosen))
        ids = torch.tensor([one + (0,) * (longest - len(one)) for one in chosen])
        reading, learning = (self._timed(ids, learns) / ids.numel() for learns in (False, True))
        tokens, asked = sum(map(len, encoded)), len(self._forget) + len(self._near)
        return Pace(
            reading,
            learning,
            self._seconds / max(asked, 1),
            len(blocks(self._model)),
            self._speaker.width,
            sum(p.numel() for p in self._model.parameters()),
            len(self.material.forget),
            tokens,
            tokens / len(trained),
            asked,
            len(self._draws),
        )

    def _timed(self, ids: Any, learns: bool) -> float:
        """Seconds for one pass. Gradients go to the embeddings alone, so that no weight of the model is touched."""
        import torch

        embeddings = self._model.get_input_embeddings()(ids).detach().requires_grad_(learns)
        started = time.perf_counter()
        with torch.set_grad_enabled(learns):
            logits = self._model(inputs_embeds=embeddings, use_cache=False).logits
            if learns:
                logits.float().logsumexp(dim=-1).mean().backward()
        return time.perf_counter() - started


def _mean(said: Sequence[Said]) -> Said:
    """Of several draws of the same questions."""
    return Said(
        *(
            _means([getattr(one, name) for one in said])
            for name in ("recall", "probability", "broken", "refused")
        )
    )


def _means(drawn: Sequence[Sequence[float]]) -> list[float]:
    return [sum(one) / len(one) for one in zip(*drawn, strict=True)]
