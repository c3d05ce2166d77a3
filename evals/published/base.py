"""What a published benchmark is: files, questions to a subject, a score for each item, and its own aggregates.

An item's scores stand in the report's rows, so that a report is the log that later runs are compared with.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from evals.items import ItemError
from evals.report import Report, as_cell
from evals.subjects import Ask, NotTold, Subject
from guard.metrics.bootstrap import mean_interval

T = TypeVar("T")


class Source:
    """The published files, in a folder or in a dataset of the Hugging Face hub of that name. `read` tells which were
    read, with their hashes."""

    def __init__(self, place: str) -> None:
        self.read: dict[str, str] = {}
        self._place = place

    def rows(self, *names: str) -> list[dict[str, Any]]:
        """Of the first of these files that is there: JSON lines, a JSON list or object, CSV or parquet.

        Raises:
            ItemError: none is there, or it cannot be read.
        """
        path = self._find(names)
        self.read[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            return _rows(path)
        except (ValueError, TypeError, AttributeError, csv.Error) as error:
            raise ItemError(f"{path.name} cannot be read: {error}") from None

    def holds(self, *names: str) -> bool:
        """Whether one of these files is there, for what a benchmark can do without."""
        try:
            self._find(names)
        except ItemError:
            return False
        return True

    def _find(self, names: Sequence[str]) -> Path:
        folder = Path(self._place)
        if folder.is_dir():
            for name in names:
                if (folder / name).is_file():
                    return folder / name
            raise ItemError(f"{folder} has no {' or '.join(names)}, which the benchmark publishes")
        return self._download(names)

    def _download(self, names: Sequence[str]) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

        for name in names:
            try:
                return Path(hf_hub_download(self._place, name, repo_type="dataset"))
            except EntryNotFoundError:
                continue
            except (HfHubHTTPError, HFValidationError, OSError) as error:
                raise ItemError(
                    f"{self._place} is no folder, and not to be had from the hub: {error}"
                ) from None
        raise ItemError(f"the dataset {self._place} has no {' or '.join(names)}")


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return found
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    try:
        whole = json.loads(text)
        rows = whole if isinstance(whole, list) else [whole]
    except ValueError:
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    return [row if isinstance(row, dict) else {"text": row} for row in rows]


@dataclass
class Measured:
    """What a subject did: one row for each item (`id`, `split`, `scores`), and for what it could not tell, why; `ends`
    as the subject has it."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    untold: dict[str, str] = field(default_factory=dict)
    ends: bool = True

    def add(self, name: str, split: str, scores: Mapping[str, Any], **more: Any) -> None:
        self.rows.append({"id": name, "split": split, "scores": dict(scores), **more})

    def of(self, split: str, score: str) -> list[Any]:
        """That score of all items of a split that have it."""
        return [r["scores"][score] for r in self.rows if r["split"] == split and score in r["scores"]]

    def why(self, split: str) -> str:
        """What stands in place of a figure of that split."""
        return f"not measured: {self.untold[split]}" if split in self.untold else "-"


class Benchmark:
    """One benchmark. `name` is its command, `hub` the dataset that its files come from by default, `options` further
    options of the command with their defaults and what they are."""

    name: ClassVar[str]
    title: ClassVar[str]
    hub: ClassVar[str] = ""
    options: ClassVar[Mapping[str, tuple[Any, str]]] = {}

    def __init__(self, source: Source, sample: int | None, seed: int, **options: Any) -> None:
        """Reads the files. Raises ItemError: one is missing or cannot be read."""
        raise NotImplementedError

    async def measure(self, subject: Subject) -> Measured:
        """Raises ClientError: the subject cannot be asked."""
        raise NotImplementedError

    def report(self, found: Measured, reference: Measured | None, report: Report) -> None:
        """Fill in tables and results. `reference` is what a model that never learned the forget set did."""
        raise NotImplementedError


def some(rows: Sequence[T], sample: int | None, seed: int) -> list[T]:
    """All, or a random sample in their order."""
    if sample is None or sample >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), sample))]


async def tried(found: Measured, split: str, telling: Awaitable[T]) -> T | None:
    """What a subject tells of a split; None where it does not, and the first reason is noted."""
    try:
        return await telling
    except NotTold as error:
        found.untold.setdefault(split, str(error))
        return None


def tokenised(text: str) -> list[str]:
    """Words and signs, as nltk has them. Raises NotTold: its sentence model is not installed."""
    import nltk

    try:
        found: list[str] = nltk.word_tokenize(text)
    except LookupError:
        raise NotTold(
            "nltk's sentence model is not installed (python -m nltk.downloader punkt_tab)"
        ) from None
    return found


async def told(
    subject: Subject, found: Measured, split: str, asked: Sequence[tuple[Ask, str]]
) -> list[list[float]] | None:
    """The likelihoods of a split's texts; None where they are not told."""
    return await tried(found, split, subject.likelihoods(asked))


def check(rows: Sequence[Mapping[str, Any]], what: str, *fields: str) -> None:
    """Raises ItemError: a row lacks one of the fields."""
    if not all(set(fields) <= row.keys() for row in rows):
        raise ItemError(f"{what} must have {' and '.join(fields)} in each row")


def means(
    found: Measured, splits: Iterable[str], scores: Sequence[str], seed: int, name: Callable[[str], str] = str
) -> list[list[Any]]:
    """Table rows: for each split its size and the mean of each score with its interval, or why there is none."""
    lines = []
    for split in splits:
        count = sum(row["split"] == split for row in found.rows)
        cells = [
            as_cell(mean_interval(found.of(split, one), seed=seed)) or found.why(split) for one in scores
        ]
        lines.append([name(split), count, *cells])
    return lines
