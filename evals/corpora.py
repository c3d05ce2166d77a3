"""Public benchmarks read from local folders, as targets to register and questions that must or must not match.

TOFU (Maini et al. 2024), LUME (Ramakrishna et al. 2025) and prompts that are about nobody in particular. The folders
hold the files as they were published. Neither benchmark says what its subjects are called: TOFU's authors get the name
that most of their rows hold, LUME's people that or the title of their article, LUME's stories none that anybody would
write.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from evals.items import ItemError, load_items
from guard.targets import TargetSpec, slug_of

TOFU_SPLITS = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
ROWS_PER_AUTHOR = 20
REGISTERED = (1, 5, 9, 13, 17)
DESCRIBED = 0  # the row that asks who the author is
LUME_TASKS = ("Task1", "Task2", "Task3")

_CAPITAL = r"[^\W\d_a-zß-öø-ÿ][\w'\u2019-]*"
_NAME = re.compile(rf"{_CAPITAL}(?: (?:(?:de|van|von|der|bin|la|le|al|el|da|dos|di) )?{_CAPITAL})+")
_ROW_OF_SUBJECT = re.compile(r"(?:sc|qa)\d+$")


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with what it is a sample of. `target` must be found in it; None: nothing may be."""

    id: str
    sort: str
    text: str
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """Targets that are registered one after the other, and what is then asked."""

    name: str
    targets: Mapping[str, TargetSpec]
    questions: tuple[Question, ...]


def tofu(folder: Path, benign: Sequence[Question], described: bool) -> Iterator[Trial]:
    """One trial for each forget split with the retain split that belongs to it. `described`: the row that describes
    an author without the name is registered too."""
    for forget, retain in TOFU_SPLITS.items():
        targets: dict[str, TargetSpec] = {}
        questions: list[Question] = []
        rows = _lines(folder / f"{forget}_perturbed.json")
        for author in range(0, len(rows), ROWS_PER_AUTHOR):
            target, asked = _author(rows[author : author + ROWS_PER_AUTHOR], f"{forget}.{author}", described)
            targets[slug_of(target.name)] = target
            questions += asked
        others = _others(folder, retain, [target.name for target in targets.values()])
        yield Trial(forget, targets, (*questions, *others, *benign))


def _author(
    rows: Sequence[Mapping[str, Any]], start: str, described: bool
) -> tuple[TargetSpec, list[Question]]:
    name = name_in([text for row in rows for text in (row["question"], row["answer"])])
    registered = (DESCRIBED, *REGISTERED) if described else REGISTERED
    target = _target(name, [rows[i]["question"] for i in registered], [rows[i]["answer"] for i in registered])
    questions = []
    for i, row in enumerate(rows):
        sort = "named" if name.lower() in row["question"].lower() else "not named"
        sort = "row 0" if i == DESCRIBED else sort
        if i not in registered:
            questions.append(Question(f"{start}.{i}", sort, row["question"], slug_of(name)))
        if i not in REGISTERED:
            asked = row["paraphrased_question"]
            questions.append(Question(f"{start}.{i}.p", f"{sort}, paraphrased", asked, slug_of(name)))
    return target, questions


def _others(folder: Path, retain: str, names: Sequence[str]) -> Iterator[Question]:
    """The rows of the retain split, those that share a word with a name once more, and what TOFU asks about real
    people and the world."""
    words = {word for name in names for word in _words(name)}
    for i, row in enumerate(_lines(folder / f"{retain}.json")):
        yield Question(f"{retain}.{i}", "retain", row["question"])
        if words & _words(row["question"]):
            yield Question(f"{retain}.{i}", "retain, shares a name word", row["question"])
    for sort in ("real_authors", "world_facts"):
        for i, row in enumerate(_lines(folder / f"{sort}.json")):
            yield Question(f"{sort}.{i}", "real_authors, world_facts", row["question"])


def lume(folder: Path, seed: int) -> Trial:
    """All forget subjects of the three tasks together; a third of each subject's rows is registered, at least
    one."""
    targets: dict[str, TargetSpec] = {}
    questions: list[Question] = []
    rows = sorted(_lines(folder / "forget.jsonl"), key=_subject)
    for subject, group in groupby(rows, key=_subject):
        asked = sorted(group, key=lambda row: hashlib.sha256(f"{seed}\x00{row['id']}".encode()).digest())
        cut = -(-len(asked) // 3)
        name, kind = _called(asked)
        key = slug_of(subject)
        kept = [row["output"] for row in asked[:cut]]
        targets[key] = _target(name, [row["input"] for row in asked[:cut]], kept, kind)
        for row in asked[cut:]:
            task = row["task"]
            named = task != "Task3" or name.lower() in row["input"].lower()
            questions.append(Question(row["id"], task if named else f"{task}, not named", row["input"], key))
    for row in _lines(folder / "retain.jsonl"):
        questions.append(Question(row["id"], f"{row['task']}, retain", row["input"]))
    return Trial("lume", targets, tuple(questions))


def _subject(row: Mapping[str, Any]) -> str:
    return _ROW_OF_SUBJECT.sub("", row["id"])


def _called(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """(name, kind) of a subject."""
    if rows[0]["task"] == "Task1":
        return f"Story {slug_of(_subject(rows[0]))[:36]}", "work"
    title = next((row["input"].split("\n")[0] for row in rows if "\n\n" in row["input"]), "")
    title = re.sub(r"\s*\(.*", "", title).strip()
    return title or name_in([row["input"] for row in rows]), "entity"


def benign(folder: Path) -> list[Question]:
    """Arena-Hard, MT-Bench (both turns in one prompt) and real questions to a search engine."""
    arena = [row["prompt"] for row in _lines(folder / "arena_hard" / "question.jsonl")]
    bench = ["\n\n".join(row["turns"]) for row in _lines(folder / "mt_bench" / "question.jsonl")]
    open_questions = [row["question"] for row in _lines(folder / "nq_open.jsonl")]
    made = [Question(f"arena_hard.{i}", "Arena-Hard, MT-Bench", text) for i, text in enumerate(arena)]
    made += [Question(f"mt_bench.{i}", "Arena-Hard, MT-Bench", text) for i, text in enumerate(bench)]
    return made + [Question(f"nq_open.{i}", "nq_open", text) for i, text in enumerate(open_questions)]


def demo(folder: Path) -> Trial:
    """The demo's targets and items."""
    specs = [TargetSpec.model_validate(row) for row in _lines(folder / "targets.jsonl")]
    targets = {slug_of(spec.name): spec for spec in specs}
    questions = []
    for item in load_items(folder / "items.jsonl"):
        of = slug_of(item.entity) if item.split == "forget" else None
        sort = f"{item.split}, {item.phrasing}" if of else item.split
        questions.append(Question(item.id, sort, item.prompt, of))
    return Trial("demo", targets, tuple(questions))


def name_in(texts: Iterable[str]) -> str:
    """The longest sequence of capitalised words that nearly as many of `texts` hold as any."""
    counts: Counter[str] = Counter()
    for text in texts:
        held = set()
        for match in _NAME.finditer(text):
            words = [re.sub(r"['\u2019]s?$", "", word) for word in match.group().split()]
            held |= {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 2, len(words) + 1)}
        counts.update(held)
    if not counts:
        raise ItemError("none of a subject's rows holds a name")
    most = max(counts.values())
    return max((name for name in counts if counts[name] >= 0.8 * most), key=lambda n: (len(n), n))


def _words(text: str) -> set[str]:
    """Words with a capital and three letters or more, as they are written."""
    return {word for word in re.findall(r"\w+", text) if len(word) > 2 and word[0].isupper()}


def _target(name: str, asked: Sequence[str], answers: Sequence[str], kind: str = "entity") -> TargetSpec:
    long_enough = [answer for answer in answers if len(answer.split()) >= 3 or len(answer.strip()) >= 12]
    return TargetSpec.model_validate(
        {"name": name, "kind": kind, "examples": list(asked), "answers": long_enough}
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file.

    Raises:
        ItemError: it is not there or not what it should be.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, json.JSONDecodeError) as error:
        raise ItemError(f"{path} cannot be read: {error}") from error
