"""Tries candidates while the budget lasts, and keeps what it has found: the same command goes on from there."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from classifiers.auto.candidates import Candidate, Pace
from classifiers.auto.choice import Said, Trial
from classifiers.base import Task, run
from classifiers.checkpoints import Checkpoint
from classifiers.data import digest
from classifiers.progress import Progress, Silent
from guard import artifacts
from guard.artifacts import Artifact
from guard.errors import ArtifactError, LetheError

ARTIFACTS, TRIALS, WORK = "artifacts", "trials", "work"
Clock = Callable[[], float]


class BudgetSpent(LetheError):
    """There is no time left for what is being trained."""


class Judge(Protocol):
    """What the search needs of a bench."""

    @property
    def pace(self) -> Pace: ...

    def tried(self, candidate: Candidate, artifact: Artifact | None, seconds: float) -> Trial: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a candidate: the trial, or why there is none. `estimate` is in seconds."""

    name: str
    method: str
    estimate: float
    trial: Trial | None = None
    skipped: str = ""
    failed: str = ""


class Limited(Silent):
    """Passes on how far a trainer is, and ends it when the budget is spent."""

    def __init__(self, inner: Progress, clock: Clock, end: float) -> None:
        self._inner, self._clock, self._end = inner, clock, end

    def report(self, done: float, stage: str) -> None:
        if self._clock() > self._end:
            raise BudgetSpent("It took longer than was estimated, and the budget was spent.")
        self._inner.report(done, stage)


class Search:
    """Tries candidates with the task's examples; `purpose` says what else their trials depend on. Trials and artifacts
    lie in the task's `out`. `tell` gets a sentence for each candidate, `bar` shows how far a trainer is."""

    def __init__(
        self,
        task: Task,
        judge: Judge,
        purpose: str,
        *,
        tell: Callable[[str], None],
        bar: Callable[[], Progress] = Silent,
        clock: Clock = time.monotonic,
    ) -> None:
        self._task, self._judge, self._purpose = task, judge, purpose
        self._tell, self._bar, self._clock = tell, bar, clock

    def estimate(self, candidate: Candidate) -> float:
        """Seconds that training and measuring it will take, about."""
        pace = self._judge.pace
        trained = candidate.trainer is None or self._kept(candidate) is not None
        return pace.measuring(candidate.noisy) + (0.0 if trained else candidate.seconds(pace))

    def run(self, candidates: Sequence[Candidate], seconds: float) -> list[Outcome]:
        """All candidates that fit into so many seconds, one after the other. What was tried before costs nothing."""
        end = self._clock() + seconds
        return [self._one(candidate, end) for candidate in candidates]

    def artifact(self, candidate: Candidate) -> Artifact | None:
        """What was trained for it, where it needs something.

        Raises:
            ArtifactError: it is not there.
        """
        return None if candidate.trainer is None else artifacts.read(self._place(candidate))

    def _one(self, candidate: Candidate, end: float) -> Outcome:
        if (known := self._known(candidate)) is not None:
            self._tell(f"{candidate.name}: tried before")
            return Outcome(candidate.name, candidate.method, 0.0, known)
        estimate, left = self.estimate(candidate), max(end - self._clock(), 0.0)
        outcome = Outcome(candidate.name, candidate.method, estimate)
        if estimate > left:
            why = f"It needs about {estimate:.0f} s, and {left:.0f} s of the budget are left."
            self._tell(f"{candidate.name}: not tried. {why}")
            return replace(outcome, skipped=why)
        self._tell(f"{candidate.name}: about {estimate:.0f} s")
        try:
            artifact, seconds = self._trained(candidate, end - self._judge.pace.measuring(candidate.noisy))
            trial = self._judge.tried(candidate, artifact, seconds)
        except BudgetSpent as error:
            self._tell(f"{candidate.name}: {error.message}")
            return replace(outcome, skipped=error.message)
        except LetheError as error:
            self._tell(f"{candidate.name}: {error.message}")
            return replace(outcome, failed=error.message)
        except Exception as error:  # one trainer that breaks must not take the others with it
            why = f"It broke with {type(error).__name__}."  # whose own words may hold text of the examples
            self._tell(f"{candidate.name}: {why}")
            return replace(outcome, failed=why)
        self._keep(candidate, trial)
        return replace(outcome, trial=trial)

    def _trained(self, candidate: Candidate, end: float) -> tuple[Artifact | None, float]:
        """The artifact, and the seconds that it took; candidates that differ in their rung alone share one."""
        if candidate.trainer is None:
            return None, 0.0
        if (kept := self._kept(candidate)) is not None:
            return kept, 0.0
        progress, place = self._bar(), self._place(candidate)
        shutil.rmtree(place, ignore_errors=True)  # what a training that was ended has left
        started = self._clock()
        task = replace(
            self._task,
            out=place,
            progress=Limited(progress, self._clock, end),
            checkpoint=Checkpoint(self._task.out / WORK / place.name),
        )
        try:
            artifact = run(candidate.trainer, task, self._settings(candidate))
        except BaseException as error:
            progress.error(type(error).__name__)
            raise
        progress.finish(artifact.digest, {})
        return artifact, self._clock() - started

    def _settings(self, candidate: Candidate) -> dict[str, Any]:
        return candidate.settings(self._judge.pace)

    def _place(self, candidate: Candidate) -> Path:
        """The artifact's folder, named by what it is made by and of."""
        about = [candidate.trainer, self._settings(candidate), self._purpose, *self._sets()]
        return self._task.out / ARTIFACTS / f"{candidate.trainer}-{_hash(about)}"

    def _kept(self, candidate: Candidate) -> Artifact | None:
        try:
            return self.artifact(candidate)
        except ArtifactError:
            return None

    def _known(self, candidate: Candidate) -> Trial | None:
        """The trial of it, where it was tried before."""
        try:
            kept = json.loads(self._record(candidate).read_text(encoding="utf-8"))
            trial = Trial(**{**kept, "forget": Said(**kept["forget"]), "near": Said(**kept["near"])})
            artifact = self.artifact(candidate)
        except (OSError, ValueError, TypeError, KeyError, ArtifactError):
            return None
        named = None if artifact is None else artifact.digest
        return trial if trial.params.get("artifact") == named else None

    def _keep(self, candidate: Candidate, trial: Trial) -> None:
        """The file is whole at every moment."""
        path = self._record(candidate)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(trial)) + "\n", encoding="utf-8")
        part.replace(path)

    def _record(self, candidate: Candidate) -> Path:
        made = [candidate.method, dict(candidate.params), candidate.trainer, self._settings(candidate)]
        name = _hash([*made, self._purpose, *self._sets()])
        return self._task.out / TRIALS / f"{candidate.name.replace(' ', '-')}-{name}.json"

    def _sets(self) -> list[str]:
        return [digest(self._task.forget), digest(self._task.retain), *self._task.names]


def _hash(about: Any) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:12]
