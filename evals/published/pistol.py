"""PISTOL (Qiu et al., arXiv 2406.16810): contracts between invented parties, of which some are forgotten.

A contract is an edge of a graph, with twenty questions. Asked are the forgotten edges, all others, of the first of the
two published data sets those that have no party in common with the rest, and, where the file is there, facts about the
world; of each the first 200 questions, as published. Answers are greedy; the published code gives question and answer
512 tokens together. Scores are ROUGE-1 and ROUGE-L recall with stemming, and the loss of the true answer, whole and per
token.

Left out, because their published code does not measure what their names say: the mean reciprocal rank and the top hit
rate look up the true answer's tokens in the distributions of the model's own answer, step by step, and behind its end
in numbers that are all equal; the probability is the mean of the highest at the first positions of the question.
"""

from __future__ import annotations

from typing import Any

from evals.items import ItemError
from evals.published.base import Benchmark, Measured, Source, check, means, some, told
from evals.report import Report
from evals.subjects import Ask, Subject
from guard.metrics.rouge import rouge_1_recall, rouge_l_recall

ASKED = 200  # questions of each set
APART = {"independent sales": "E1_F1 E2_F2 E3_F3", "independent employment": "E1_q1 E2_q2 E3_q3"}
FIGURES = ("ROUGE-1", "ROUGE-L", "loss", "loss per token")
_BROKEN = "left out: its published code takes it from other steps than its name says"


class Pistol(Benchmark):
    name = "pistol"
    title = "PISTOL: recall and loss on forgotten contracts, on all others and on those apart"
    hub = "xinchiqiu/PISTOL"
    options = {
        "contracts": (1, "Which of the two published data sets."),
        "edges": ("A_C", "The forgotten contracts, with commas between them."),
        "tokens": (450, "Tokens of an answer, at most."),
    }

    def __init__(
        self, source: Source, sample: int | None, seed: int, contracts: int, edges: str, tokens: int
    ) -> None:
        self.seed, self.tokens = seed, tokens
        name = f"sample_data_{contracts}.json"
        rows = source.rows(name, f"data/{name}")
        check(rows, f"PISTOL's {name}", "question", "answer", "edge")
        forgotten = {edge.strip() for edge in edges.split(",")}
        if missing := forgotten - {row["edge"] for row in rows}:
            known = ", ".join(dict.fromkeys(row["edge"] for row in rows))
            raise ItemError(f"PISTOL's {name} has no contract {', '.join(sorted(missing))}; it has {known}")
        kept = [row for row in rows if row["edge"] not in forgotten]
        found = {"forgotten": [row for row in rows if row["edge"] in forgotten], "all others": kept}
        if contracts == 1:
            found |= {of: [r for r in kept if r["edge"] in names.split()] for of, names in APART.items()}
        facts = ("factual_data.json", "data/factual_data.json")
        if source.holds(*facts):
            found["facts"] = source.rows(*facts)
            check(found["facts"], "PISTOL's factual_data.json", "question", "answer")
        self.asked = {of: some(rows[:ASKED], sample, seed) for of, rows in found.items()}

    async def measure(self, subject: Subject) -> Measured:
        found = Measured(ends=subject.ends)
        for split, rows in self.asked.items():
            asked = [Ask.question(row["question"]) for row in rows]
            said = await subject.answers(asked, self.tokens)
            truths = [row["answer"] for row in rows]
            weighed = await told(subject, found, split, list(zip(asked, truths, strict=True)))
            for number, (truth, answer) in enumerate(zip(truths, said, strict=True)):
                scores = {"ROUGE-1": rouge_1_recall(truth, answer), "ROUGE-L": rouge_l_recall(truth, answer)}
                more: dict[str, Any] = {"answer": answer}
                if weighed:
                    tokens = weighed[number]
                    scores |= {"loss": -sum(tokens), "loss per token": -sum(tokens) / len(tokens)}
                    more["tokens"] = len(tokens)
                found.add(f"{split}.{number}", split, scores, **more)
        return found

    def report(self, found: Measured, reference: Measured | None, report: Report) -> None:
        for name, one in {"": found, ", never learned": reference}.items():
            if one is not None:
                lines = means(one, self.asked, FIGURES, self.seed)
                report.table(
                    f"Contracts{name}", ["set", "n", *FIGURES], lines,
                    "mean [95 % bootstrap], recall for ROUGE; losses of an answer"
                    f" {'with' if found.ends else 'without'} the end of its turn",
                )  # fmt: skip
                for split, _, *cells in lines:
                    report.results[f"{split}{name}"] = dict(zip(FIGURES, cells, strict=True))
        report.table(
            "Not measured", ["figure", "why"],
            [[figure, _BROKEN] for figure in ("mean reciprocal rank", "top hit rate", "probability")],
        )  # fmt: skip
