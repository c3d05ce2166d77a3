"""What was tried, what it did, and what was taken: for programs, for a terminal, and as a page for people.

None of it holds text of the examples, unless somebody asks for a page that shows what the model said.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from classifiers.auto.choice import Choice, Figures, Ground, Trial, Wanted
from classifiers.auto.search import Outcome
from guard import pages
from guard.metrics.bootstrap import Interval, mean_interval

Shown = Sequence[tuple[str, str, str]]
COLUMNS = (
    "candidate",
    "method",
    "recall",
    "beyond never learned",
    "probability",
    "broken beyond it",
    "refusals",
    "neighbours lose",
    "right ones lost",
    "time",
    "training, s",
    "size, kB",
    "verdict",
)
_NOTES = """\
Recall is ROUGE-L recall of the true answers in what the model says to held-out questions. A model that never learned
them has some too, by the words that answers share; what lies beyond that counts.
Neighbours are retained questions near the target, asked as if the gate had matched them by mistake: what a false match
costs. On questions that the gate does not match nothing acts; after each candidate all were asked again without it, and
one after which an answer is another is not admissible.
Time is that of an answer in this process, relative to the untouched model right behind it, and no measure of a server.
The last rung, refusal, answers nothing: it was not measured.
"""


def table(outcomes: Sequence[Outcome], ground: Ground, choice: Choice) -> list[list[pages.Cell]]:
    """A row for each candidate, of COLUMNS."""
    return [_row(outcome, ground, choice) for outcome in outcomes]


def report(
    outcomes: Sequence[Outcome],
    ground: Ground,
    choice: Choice,
    wanted: Wanted,
    about: dict[str, Any],
) -> dict[str, Any]:
    """For programs. `about` says on what it was measured: budget, numbers of examples, model, surrogate."""
    return {
        "format": 1,
        **about,
        "wanted": wanted.model_dump(),
        "untouched": _figures(ground.sources, ground.untouched),
        "never_learned": _figures(ground.sources, ground.never),
        "neighbours": _figures(ground.near_sources, ground.near),
        "candidates": [
            {
                "name": outcome.name,
                "method": outcome.method,
                "estimate_s": round(outcome.estimate, 2),
                "skipped": outcome.skipped,
                "failed": outcome.failed,
                **({} if outcome.trial is None else _tried(outcome.trial, ground)),
                "objections": list(choice.objections.get(outcome.name, ())),
            }
            for outcome in outcomes
        ],
        "chosen": [trial.name for trial in choice.ranked],
        "met": choice.met,
        "sentence": choice.sentence,
        "ladder": choice.ladder,
    }


def text(rows: Sequence[Sequence[pages.Cell]]) -> str:
    """The table for a terminal."""
    return "\n".join(pages.columns([list(COLUMNS), *([pages.show(cell) for cell in row] for row in rows)]))


def html(
    found: dict[str, Any], outcomes: Sequence[Outcome], ground: Ground, choice: Choice, shown: Shown = ()
) -> str:
    """The page. `shown`: held-out questions with what the untouched model said and what it says now."""
    wanted = Wanted.model_validate(found["wanted"])
    rungs = [[i, rung["method"], _told(rung["params"])] for i, rung in enumerate(choice.ladder, 1)]
    base = [
        ["the untouched model", *_cells(found["untouched"])],
        ["a model that never learned the target", *_cells(found["never_learned"])],
        ["the untouched model, near the target", *_cells(found["neighbours"])],
    ]
    untried = [[o.name, o.skipped or o.failed] for o in outcomes if o.trial is None]
    limits = [[name, value] for name, value in wanted.model_dump().items()]
    parts = [
        f'<p class="{"good" if choice.met else "bad"}">{escape(choice.sentence)}</p>',
        pages.table("The ladder", ["rung", "method", "parameters"], rungs, "The first that can act applies."),
        _plane(outcomes, ground, choice, wanted),
        pages.table("All candidates", COLUMNS, table(outcomes, ground, choice)),
        f'<p class="note">{escape(_NOTES)}</p>',
        pages.table("What they are compared with", ["", "n", "recall", "refusals", "broken"], base),
        pages.table("Not tried, or failed", ["candidate", "why"], untried) if untried else "",
        pages.table("What was asked for", ["limit", "value"], limits),
        "<h3>On what this rests</h3><ul>",
        *(f"<li>{escape(note)}</li>" for note in found["notes"]),
        *(f"<li>{escape(name)}: {escape(str(found[name]))}</li>" for name in _ABOUT if name in found),
        "</ul>",
        pages.table("What the model says", ["question", "untouched", "now"], [list(one) for one in shown])
        if shown
        else "",
    ]
    return pages.page("What makes the model forget", "".join(parts))


_ABOUT = (
    "budget_s",
    "spent_s",
    "trained_on",
    "retained",
    "judged_by",
    "neighbours_asked",
    "surrogate",
    "model",
    "seed",
)


def _row(outcome: Outcome, ground: Ground, choice: Choice) -> list[pages.Cell]:
    head: list[pages.Cell] = [outcome.name, outcome.method]
    if (trial := outcome.trial) is None:
        why = "failed" if outcome.failed else "not tried"
        return [*head, *([None] * (len(COLUMNS) - 3)), why]
    of = Figures.of(trial, ground)
    return [
        *head,
        *map(_cell, (of.recall, of.gap, of.probability, of.gibberish, of.refused, of.harm, of.lost)),
        f"{trial.slower:.1f} times",
        round(trial.seconds, 1),
        round(trial.size / 1_000, 1),
        _verdict(trial, choice),
    ]


def _verdict(trial: Trial, choice: Choice) -> str:
    names = [one.name for one in choice.ranked]
    if trial.name in names:
        return f"rung {names.index(trial.name) + 1}"
    return "; ".join(choice.objections.get(trial.name, ())) or "admissible"


def _tried(trial: Trial, ground: Ground) -> dict[str, Any]:
    of = Figures.of(trial, ground)
    names = ("recall", "gap", "probability", "gibberish", "refused", "harm", "lost")
    return {
        "params": dict(trial.params),
        "folder": trial.folder,
        "figures": {name: _cell(getattr(of, name)) for name in names},
        "slower": round(trial.slower, 3),
        "seconds": round(trial.seconds, 2),
        "bytes": trial.size,
        "unchanged": trial.unchanged,
    }


def _plane(outcomes: Sequence[Outcome], ground: Ground, choice: Choice, wanted: Wanted) -> str:
    """Forgetting against harm, where both are known."""
    points = []
    for outcome in outcomes:
        if outcome.trial is not None:
            of = Figures.of(outcome.trial, ground)
            if of.harm is not None:
                good = outcome.name not in choice.objections
                points.append(
                    {"label": outcome.name, "x": of.gap.as_dict(), "y": of.harm.as_dict(), "good": good}
                )
    axes = ("recall beyond that of never having learned", "recall that neighbours lose if they are matched")
    return pages.plane("Forgetting against harm", axes, points, (wanted.tolerance, wanted.harm))


def _figures(sources: Sequence[str], said: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"n": len(said.recall), "sources": len(set(sources))}
    for name in ("recall", "probability", "broken", "refused"):
        values = getattr(said, name)
        found[name] = _cell(mean_interval(values, groups=sources)) if values else None
    return found


def _cells(figures: dict[str, Any]) -> list[pages.Cell]:
    return [figures["n"], figures["recall"], figures["refused"], figures["broken"]]


def _cell(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else interval.as_dict()


def _told(params: dict[str, Any]) -> str:
    cut = {name: str(value)[:16] if name == "artifact" else value for name, value in params.items()}
    return ", ".join(f"{name} {value}" for name, value in cut.items()) or "its defaults"
