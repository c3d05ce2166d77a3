"""What the gate finds when a question is spread over a conversation or put into another field, and what it
then leaves alone.

Targets are registered as in the suite `detection`. Every question about them is put in every form of
`evals.conversations`; so is every question about somebody else, whose false positives are compared with those of
the same questions asked plainly. Shares come with Wilson intervals.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from evals.cases import Cases
from evals.conversations import FORMS, Case, Group, Talk, takes
from evals.report import Report, as_cell
from evals.suites.detection import register
from guard.decide import precise
from guard.detection import Compiler, Encoder, Gate
from guard.metrics.bootstrap import Interval
from guard.metrics.wilson import wilson
from guard.types import Detection

BARS: dict[Group, float] = {"named": 0.97, "split": 0.90, "described": 0.90}
EXTRA = 0.005  # what a form may add to the false positives of the same questions asked plainly
PLAIN = "plain"
SAMPLE = 200


@dataclass(frozen=True, slots=True)
class Setting:
    """Targets to register, cases about them and about others, and the groups of forms that the cases take."""

    name: str
    cases: Cases
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """A case in one form after the gate. `detectors` found its target or, of a case about nobody, any;
    `untouched`: nothing that they found lies in the last turn."""

    setting: str
    group: Group
    form: str
    case: Case
    detectors: tuple[str, ...]
    untouched: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": f"{self.setting}/{self.group}/{self.form}/{self.case.id}",
            "split": self.setting,
            "phrasing": self.form,
            "target": self.case.target,
            "detectors": list(self.detectors),
            "scores": {"found": float(bool(self.detectors))},
        }


def run(
    settings: Iterable[Setting], encoder: Encoder, compiler: Compiler, *, seed: int = 0, sample: int = SAMPLE
) -> Report:
    """All settings; `sample` cases of each sort at most in each form."""
    report = Report("conversations", seed=seed, params={"sample": sample, "encoder": encoder.name})
    report.inputs["encoder"] = {"name": encoder.name, "sha256": encoder.digest}
    for setting in settings:
        compiled, refused = register(setting.cases.trial, compiler)
        report.results.setdefault("refused", {})[setting.name] = refused
        judged = list(_judge(setting, Gate(encoder, compiled), seed, sample))
        for group in setting.groups:
            _tables(report, setting.name, group, [one for one in judged if one.group == group])
        report.n += len(judged)
        report.rows += [one.as_dict() for one in judged]
    return report


def _judge(setting: Setting, gate: Gate, seed: int, sample: int) -> Iterable[Judged]:
    cases = [*drawn(setting.cases.about, sample, seed), *drawn(setting.cases.others, sample, seed)]
    for group in setting.groups:
        for form, build in FORMS[group].items():
            for case in cases:
                if takes(build, case):
                    talk = build(case, random.Random(f"{seed}\x00{form}\x00{case.id}"))
                    found, *_ = gate.detect(talk.prompt())
                    yield _judged(setting.name, group, form, case, talk, found)
            print(f"{setting.name}, {group}, {form}: done", file=sys.stderr)


def _judged(
    setting: str, group: Group, form: str, case: Case, talk: Talk, found: Sequence[Detection]
) -> Judged:
    wanted = [d for d in found if case.target in (None, d.target_id)]
    last = talk.prompt().text.rfind(talk.messages[-1].text)
    spans = precise(wanted)
    untouched = bool(spans) and all(span.end <= last for span in spans)
    return Judged(setting, group, form, case, tuple(sorted({d.detector for d in wanted})), untouched)


def drawn(cases: Sequence[Case], sample: int, seed: int) -> list[Case]:
    """At most `sample` of each sort, the same ones for every form."""
    sorts = {case.sort: [c for c in cases if c.sort == case.sort] for case in cases}
    return [c for of in sorts.values() for c in random.Random(seed).sample(of, min(sample, len(of)))]


def _tables(report: Report, setting: str, group: Group, judged: Sequence[Judged]) -> None:
    forms = list(dict.fromkeys(one.form for one in judged))
    about = [one for one in judged if one.case.target is not None]
    table = []
    for form in forms:
        part = [one for one in about if one.form == form]
        share = _share(part)
        found = [one for one in part if one.detectors]
        free = sum(one.untouched for one in found) / len(found) if found else None
        table.append([form, len(part), as_cell(share), free])
        if group in BARS and share and form != PLAIN:
            name = f"{setting}, {group}: {form}, at least"
            report.criterion(name, share.mean, BARS[group], share.mean >= BARS[group])
    note = "share [95 % Wilson interval]; last turn free: share of those found where nothing in the last turn is edited"
    report.table(f"{setting}, {group}: found", ["form", "n", "found", "last turn free"], table, note)
    others = [one for one in judged if one.case.target is None]
    table = []
    for form in forms:
        for sort in dict.fromkeys(one.case.sort for one in others):
            part = [one for one in others if one.form == form and one.case.sort == sort]
            if part:
                added = _added(part, others, sort)
                table.append([form, sort, len(part), as_cell(_share(part)), added])
                if group in BARS and added is not None and form != PLAIN:
                    name = (
                        f"{setting}, {group}: {form}, {sort}, false positives beyond the plain ones, at most"
                    )
                    report.criterion(name, added, EXTRA, added <= EXTRA + 1e-12)
    columns = ["form", "sort", "n", "false positives", "beyond plain"]
    note = "share [95 % Wilson interval]; beyond plain: less the share of the same questions asked plainly"
    report.table(f"{setting}, {group}: false positives", columns, table, note)


def _share(part: Sequence[Judged]) -> Interval | None:
    return wilson(sum(bool(one.detectors) for one in part), len(part))


def _added(part: Sequence[Judged], others: Sequence[Judged], sort: str) -> float | None:
    """How much larger the share is than that of the same cases asked plainly."""
    plain = [one for one in others if one.form == PLAIN and one.case.sort == sort]
    if not plain:
        return None
    share, base = (sum(bool(one.detectors) for one in of) / len(of) for of in (part, plain))
    return share - base
