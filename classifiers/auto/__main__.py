"""`python -m classifiers.auto --model FOLDER --target FILE --out FOLDER`, and whatever else --help lists."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import click
import yaml
from pydantic import Field, ValidationError

from classifiers.auto import report as reports
from classifiers.auto.bench import Bench
from classifiers.auto.candidates import CANDIDATES, Candidate
from classifiers.auto.choice import Choice, Wanted, choose
from classifiers.auto.material import Amounts
from classifiers.auto.search import ARTIFACTS, Search
from classifiers.base import Task
from classifiers.data import Example, check, digest, load_examples
from classifiers.encoding import Encoding
from classifiers.progress import Bar
from classifiers.targets import asked_of, read_target
from guard.artifacts import weights_digest
from guard.detection.encoder import BACKENDS
from guard.errors import BadRequest, LetheError
from guard.targets import TargetSpec

LADDER, REPORT, PAGE = "ladder.json", "report.json", "report.html"
_File = click.Path(path_type=Path, exists=True, dir_okay=False)


class AutoParams(Wanted):
    """What is accepted (see Wanted), and how it is found out. only: these candidates, all if there are none; without:
    not these, by name or method; never: folder of a model that never learned the target; draws: of noise, and of
    invented names, for each question; judged, near: at most so many held-out questions about the target and near it;
    share: of the wordings (or facts) that is held out; everyday: everyday questions that stand in for missing retain
    examples; rungs: of different methods in front of `refusal`."""

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    never: Path | None = None
    draws: int = Field(2, ge=1, le=16)
    judged: int = Field(60, ge=1)
    near: int = Field(40, ge=1)
    share: float = Field(1 / 3, gt=0.0, lt=1.0)
    everyday: int = Field(64, ge=0)
    rungs: int = Field(3, ge=1, le=8)
    seed: int = 0

    @property
    def amounts(self) -> Amounts:
        return Amounts(self.judged, self.near, self.everyday, self.share, self.seed)

    def candidates(self) -> list[Candidate]:
        """Raises BadRequest: a name that nothing has, or nothing is left."""
        known = {word for one in CANDIDATES for word in (one.name, one.method)}
        if strange := sorted({*self.only, *self.without} - known):
            raise BadRequest(f"There is no candidate '{strange[0]}'; there are {', '.join(sorted(known))}.")

        def named(one: Candidate, words: Sequence[str]) -> bool:
            return one.name in words or one.method in words

        found = [
            c for c in CANDIDATES if not named(c, self.without) and (not self.only or named(c, self.only))
        ]
        if not found:
            raise BadRequest("No candidate is left to try; take something out of `without`.")
        return found


@dataclass(frozen=True, slots=True)
class Examples:
    """What was given: of what must go, of what must stay, and of what must go to judge by."""

    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    holdout: tuple[Example, ...]


@click.command(
    epilog="Example: python -m classifiers.auto --model demo/models/full --target jane.json --forget forget.jsonl "
    "--retain retain.jsonl --out reports/jane --budget 10"
)
@click.option("--model", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--target", type=click.File(encoding="utf-8"), help="The target as JSON; - is the input.")
@click.option(
    "--name", "names", multiple=True, help="What the target goes by, in place of --target; repeatable."
)
@click.option("--forget", type=_File, help="Examples of what must go, in place of the target's, JSON lines.")
@click.option("--retain", type=_File, help="What must stay, in place of the target's, JSON lines.")
@click.option(
    "--holdout", type=_File, help="Examples of what must go to judge by; else some of --forget are."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option(
    "--budget", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True, metavar="MINUTES"
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="What you accept, and how it is measured."
)
@click.option("--encoder", metavar="NAME", help="The detectors' encoder.  [default: the packaged one]")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)
@click.option(
    "--cache", type=click.Path(path_type=Path, file_okay=False), default=Path("data/cache"), show_default=True
)
@click.option("--show-text", is_flag=True, help="Let the page show questions and answers.")
@click.option("--dry-run", is_flag=True, help="Only say what would be tried, and how long it would take.")
def main(
    model: Path,
    target: IO[str] | None,
    names: tuple[str, ...],
    forget: Path | None,
    retain: Path | None,
    holdout: Path | None,
    out: Path,
    budget: float,
    settings: tuple[str, ...],
    encoder: str | None,
    backend: str,
    cache: Path,
    show_text: bool,
    dry_run: bool,
) -> None:
    """Try what may make the model forget a target within --budget, and write into --out the artifacts, the ladder of
    the best, and a report. The same command goes on where it was."""
    started = time.monotonic()
    try:
        params = _params(settings)
        spec = _spec(target, names)
        given = Examples(
            load_examples(forget) if forget else asked_of(spec.examples),
            load_examples(retain) if retain else asked_of(spec.retain),
            load_examples(holdout) if holdout else (),
        )
        chosen = params.candidates()
        task = _task(model, spec, given, out, Encoding(encoder, backend, cache))
        bench = Bench(
            task, spec, params.amounts, holdout=given.holdout, never=params.never, count=params.draws
        )
        task = _task(
            model, spec, Examples(bench.material.forget, bench.material.retain, ()), out, task.encoder
        )
        search = Search(task, bench, _purpose(params, spec, model, bench), tell=_tell, bar=Bar)
        if dry_run:
            for one in chosen:
                click.echo(f"{one.name}: {one.method}, about {search.estimate(one):.0f} s")
            return
        outcomes = search.run(chosen, 60 * budget - (time.monotonic() - started))
        choice = choose([o.trial for o in outcomes if o.trial], bench.ground, params, params.rungs)
        about = {
            "notes": list(bench.material.notes),
            "budget_s": 60 * budget,
            "spent_s": round(time.monotonic() - started, 1),
            "trained_on": len(bench.material.forget),
            "retained": len(bench.material.retain),
            "judged_by": len(bench.material.judged),
            "neighbours_asked": len(bench.material.near),
            "surrogate": bench.surrogate,
            "model": weights_digest(model),
            "seed": params.seed,
        }
        found = reports.report(outcomes, bench.ground, choice, _wanted(params), about)
        shown = _shown(bench, search, chosen, choice) if show_text else ()
    except LetheError as error:
        raise click.ClickException(error.message) from None
    out.mkdir(parents=True, exist_ok=True)
    _write(out / LADDER, json.dumps({"intervention": choice.ladder, "folders": _folders(choice)}, indent=2))
    _write(out / REPORT, json.dumps(found, indent=2))
    _write(out / PAGE, reports.html(found, outcomes, bench.ground, choice, shown))
    click.echo(reports.text(reports.table(outcomes, bench.ground, choice)))
    click.echo(choice.sentence)
    click.echo(f"report in {out / PAGE}")


def _params(settings: Sequence[str]) -> AutoParams:
    pairs = {}
    for text in settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(f"--set {text}: write it as key=value.")
        read = yaml.safe_load(value)
        pairs[key] = [read] if key in ("only", "without") and isinstance(read, str) else read
    try:
        return AutoParams.model_validate(pairs)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRequest(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from None


def _wanted(params: AutoParams) -> Wanted:
    return Wanted(**params.model_dump(include=set(Wanted.model_fields)))


def _spec(file: IO[str] | None, names: Sequence[str]) -> TargetSpec:
    """Raises BadRequest: it is none."""
    if (file is None) == (not names):
        raise click.UsageError("Give either --target or --name.")
    if file is not None:
        return read_target(file.read())
    try:
        return TargetSpec(name=names[0], aliases=tuple(names[1:]))
    except ValidationError as error:
        raise BadRequest(f"The name cannot be one: {error.errors()[0]['msg']}.") from None


def _task(model: Path, spec: TargetSpec, given: Examples, out: Path, encoder: Encoding) -> Task:
    """Raises BadRequest: the examples do not go together."""
    check(given.forget, given.retain)
    return Task(model, given.forget, given.retain, out, names=spec.names(), encoder=encoder)


def _purpose(params: AutoParams, spec: TargetSpec, model: Path, bench: Bench) -> str:
    """What trials depend on beside what is trained on and the candidate."""
    material = bench.material
    never = params.never and weights_digest(params.never)
    about = [
        weights_digest(model),
        params.seed,
        params.draws,
        never,
        digest(material.judged),
        digest(material.near),
    ]
    made = spec.model_dump_json(include={"name", "aliases", "description", "examples", "answers"})
    return hashlib.sha256(json.dumps([*about, made]).encode()).hexdigest()


def _shown(bench: Bench, search: Search, candidates: Sequence[Candidate], choice: Choice) -> reports.Shown:
    if not choice.ranked:
        return ()
    (first,) = [one for one in candidates if one.name == choice.ranked[0].name]
    return list(bench.shown(first, search.artifact(first)))


def _folders(choice: Choice) -> dict[str, str]:
    """Where the artifacts of the ladder lie, by digest."""
    return {t.params["artifact"]: f"{ARTIFACTS}/{t.folder}" for t in choice.ranked if t.folder is not None}


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def _tell(sentence: str) -> None:
    click.echo(sentence, err=True)


if __name__ == "__main__":
    main(prog_name="python -m classifiers.auto")
