"""Isolation end to end: a request that matches nothing gets what bare vLLM with the same arguments gives it.

Sums in floating point depend on the shape of the batch, so equality cannot be asked of every token. The same
unmatched requests go to the guarded server beside matched ones, and to the bare server twice, in two batch
compositions: A (the guarded run's order and neighbours) and B (another order and concurrency). A against B is
the control: how much bare vLLM differs from itself. Violations:

1. a guarded answer differs from bare A at a token where bare's two best log-probabilities are more than
   `tolerance` apart (a tie cannot explain it), or differs in text or finish reason with equal tokens;
2. guarded differs from A more often than B does;
3. on equal prefixes a log-probability differs by more than `delta_limit` and by more than in the control;
4. a request fails on one server and not on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from evals.admin import Admin
from evals.client import Answer, Client, Request
from evals.items import Item
from evals.report import Report
from evals.workload import Load, isolation_requests, mixed

TOLERANCE = 1e-3
DELTA_LIMIT = 1e-2


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two answers to one request part. `gap` is the reference's distance between its two best
    tokens."""

    position: int
    gap: float | None
    what: str

    def explained(self, tolerance: float) -> bool:
        return self.what == "tokens" and self.gap is not None and self.gap <= tolerance


@dataclass(frozen=True, slots=True)
class Comparison:
    """One request's outcome: the difference if any, and the largest change of a log-probability before it."""

    difference: Difference | None
    max_delta: float


def _gap(answer: Answer, position: int) -> float | None:
    tops = answer.tops[position] if position < len(answer.tops) else ()
    return tops[0] - tops[1] if len(tops) > 1 else None


def compare(reference: Answer, other: Answer) -> Comparison:
    """The first difference of `other` from `reference`.

    Where the reference has ended and the other goes on, the gap is the other's: up to there both read the
    same.
    """
    if reference.ok != other.ok or reference.status != other.status:
        return Comparison(Difference(0, None, f"status {reference.status} against {other.status}"), 0.0)
    pairs = zip(reference.tokens, other.tokens, strict=False)
    shared = min(len(reference.tokens), len(other.tokens))
    position = next((i for i, (a, b) in enumerate(pairs) if a != b), shared)
    deltas = [
        abs(a - b)
        for i in range(position)
        for a, b in [
            (reference.logprobs[i], other.logprobs[i]),
            *zip(reference.tops[i], other.tops[i], strict=False),
        ]
    ]
    delta = max(deltas, default=0.0)
    if position < max(len(reference.tokens), len(other.tokens)):
        gap = _gap(reference, position)
        return Comparison(
            Difference(position, _gap(other, position) if gap is None else gap, "tokens"), delta
        )
    if (reference.text, reference.finish_reason) != (other.text, other.finish_reason):
        return Comparison(Difference(position, None, "text or finish reason with equal tokens"), delta)
    return Comparison(None, delta)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome over all requests."""

    guarded: list[Comparison]
    control: list[Comparison]
    tolerance: float
    delta_limit: float

    @staticmethod
    def differing(comparisons: Sequence[Comparison]) -> list[tuple[int, Difference]]:
        return [(i, c.difference) for i, c in enumerate(comparisons) if c.difference is not None]

    @property
    def unexplained(self) -> list[tuple[int, Difference]]:
        return [(i, d) for i, d in self.differing(self.guarded) if not d.explained(self.tolerance)]

    @staticmethod
    def max_delta(comparisons: Sequence[Comparison]) -> float:
        return max((c.max_delta for c in comparisons), default=0.0)

    def judge(self, report: Report) -> None:
        """Writes the criteria and the table."""
        guarded, control = len(self.differing(self.guarded)), len(self.differing(self.control))
        gaps = [d.gap for _, d in self.differing(self.guarded) if d.gap is not None]
        delta, own = self.max_delta(self.guarded), self.max_delta(self.control)
        limit = max(self.delta_limit, own)
        unexplained = len(self.unexplained)
        report.criterion("differences that no near-tie explains", unexplained, 0, unexplained == 0)
        report.criterion(
            "answers that differ from bare (limit: the control)", guarded, control, guarded <= control
        )
        report.criterion("largest |delta logprob| on equal prefixes", delta, limit, delta <= limit)
        mine = [d.gap for _, d in self.differing(self.control) if d.gap is not None]
        report.table(
            "Isolation",
            ["compared", "n", "answers that differ", "largest gap", "unexplained", "max |delta logprob|"],
            [
                ["guarded - bare A", len(self.guarded), guarded, max(gaps, default=None), unexplained, delta],
                ["bare B - bare A (control)", len(self.control), control, max(mine, default=None), None, own],
            ],
            "gap = between the two best log-probabilities of bare at the first differing token",
        )
        report.results |= {"guarded_differences": guarded, "control_differences": control, "max_delta": delta}


def judge(
    guarded: Sequence[Answer],
    bare_a: Sequence[Answer],
    bare_b: Sequence[Answer],
    *,
    tolerance: float = TOLERANCE,
    delta_limit: float = DELTA_LIMIT,
) -> Verdict:
    """Compares both runs with bare A, request by request."""
    return Verdict(
        [compare(a, g) for a, g in zip(bare_a, guarded, strict=True)],
        [compare(a, b) for a, b in zip(bare_a, bare_b, strict=True)],
        tolerance,
        delta_limit,
    )


async def _answers(client: Client, load: Load, label: str) -> list[Answer]:
    everything = await client.send_all(load.requests, concurrency=load.concurrency, label=label)
    return [everything[place] for place in load.unmatched]


async def _matched_anyway(admin: Admin | None, answers: Sequence[Answer]) -> list[int]:
    """Unmatched requests that the guard did match, or whose answer it ended because it said what is forbidden:
    counted apart from isolation."""
    if admin is None:
        return []
    found = []
    for i, answer in enumerate(answers):
        if answer.decision_id and await admin.touched(answer.decision_id):
            found.append(i)
    return found


def _rows(verdict: Verdict, requests: Sequence[Request], runs: dict[str, Sequence[Answer]]) -> list[dict]:
    rows = []
    for i, difference in verdict.differing(verdict.guarded):
        row = {
            "id": f"request-{i}",
            **asdict(difference),
            "explained": difference.explained(verdict.tolerance),
        }
        rows.append(
            row
            | {"kind": requests[i].kind, "stream": requests[i].stream, "body": requests[i].body}
            | {name: answers[i].text or answers[i].error for name, answers in runs.items()}
        )
    return rows


async def run(
    items: Sequence[Item],
    guarded: Client,
    bare: Client,
    *,
    admin: Admin | None = None,
    n: int = 500,
    beside: float = 1 / 3,
    seed: int = 0,
    concurrency: int = 16,
    max_tokens: int = 32,
    tolerance: float = TOLERANCE,
    delta_limit: float = DELTA_LIMIT,
) -> Report:
    """Sends the loads and judges them. With `admin`, requests that the guard matched are set apart."""
    for client in (guarded, bare):
        await client.model()  # fail before the work, not after half of it
    clean, matched = isolation_requests(items, n=n, beside=beside, seed=seed, max_tokens=max_tokens)
    first = mixed(clean, matched, seed=seed + 1, concurrency=concurrency)
    other = mixed(clean, matched, seed=seed + 2, concurrency=max(2, concurrency // 2 + 1))
    runs = {
        "guarded": await _answers(guarded, first, "guarded"),
        "bare_a": await _answers(bare, first, "bare A"),
        "bare_b": await _answers(bare, other, "bare B"),
    }
    suppressed = set(await _matched_anyway(admin, runs["guarded"]))
    kept = [i for i in range(len(clean)) if i not in suppressed]
    runs = {name: [answers[i] for i in kept] for name, answers in runs.items()}
    verdict = judge(*runs.values(), tolerance=tolerance, delta_limit=delta_limit)
    report = Report("isolation", seed=seed, n=len(kept))
    verdict.judge(report)
    both_failed = sum(not answer.ok for answer in runs["bare_a"])
    report.criterion("requests that bare answered with an error", both_failed, 0, both_failed == 0)
    report.results |= {"matched_beside": len(matched), "unmatched_that_the_guard_matched": sorted(suppressed)}
    report.params = {
        "concurrency": [first.concurrency, other.concurrency], "max_tokens": max_tokens, "beside": beside,
        "tolerance": tolerance, "delta_limit": delta_limit, "temperature": 0,
    }  # fmt: skip
    report.versions = {"engine of guarded": await guarded.version(), "engine of bare": await bare.version()}
    report.rows = _rows(verdict, [clean[i] for i in kept], runs)
    return report
