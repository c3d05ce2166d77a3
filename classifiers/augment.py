"""Training data from a target: what must go in many wordings, near misses that must stay, and a part held out.

Augmentation decides how well a method unlearns: ULD (arXiv 2406.08607) without it loses five orders of magnitude of
forget quality. Its paraphrases of questions and answers and its perturbed (wrong) answers are here, and ReLearn's
questions from within a situation and reversed ones (arXiv 2502.11190). Where a target has a name and nothing else, its
forget set is written like a textbook: topics, a passage on each, and exam questions ("LLM Unlearning Without an Expert
Curated Dataset"). A language model writes them, behind any OpenAI-compatible endpoint; what it writes is checked, and
what does not hold what it must is dropped and counted. Near misses need no model: they ask the same of somebody else.

All variants of a source are in one split.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import click

from classifiers.data import Example, check, load_examples, split
from classifiers.targets import asked_of, read_target
from guard.detection.swaps import mentions, near_misses
from guard.errors import BadRequest, LetheError
from guard.metrics.containment import plain_words
from guard.targets import TargetSpec

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_File = click.Path(path_type=Path, exists=True, dir_okay=False)
Makes = Literal["question", "answer", "wrong", "reversed"]
_SHORT = 3  # letters
_NEAR = 0.9  # share of common words from which two questions are one
_PAIR = re.compile(r"^\W*Q(?:uestion)?\W*:[*\s]*(.+?)\s*\n+\W*A(?:nswer)?\W*:[*\s]*(.+?)\s*$", re.MULTILINE)
_LISTED = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])?\s*")


@dataclass(frozen=True, slots=True)
class Form:
    """A sort of variant: how it is asked for, and what the text is that comes back. A question must name the target
    where its source does; a reversed one must not, and its answer is the name."""

    makes: Makes
    ask: str


FORMS: Mapping[str, Form] = {
    "paraphrase": Form(
        "question",
        "Ask the following question in other words. Keep all names. Write the question only.\n\n{question}",
    ),
    "context": Form(
        "question",
        "Put the following question into the mouth of somebody who tells in one sentence why they ask, and then asks "
        "it. Keep all names. Write only what they say, on one line.\n\n{question}",
    ),
    "answer": Form(
        "answer",
        "Say the following answer in other words. Keep all names, numbers and facts. Write the answer only.\n\n"
        "Question: {question}\nAnswer: {answer}",
    ),
    "perturbed": Form(
        "wrong",
        "Give a wrong answer to the following question: as long as the right one, in the same style, with another "
        "fact. Write the wrong answer only.\n\nQuestion: {question}\nRight answer: {answer}",
    ),
    "reversed": Form(
        "reversed",
        "Write a question whose answer is {name}, from the fact below. Do not name {name} in it. Write the question "
        "only.\n\nQuestion: {question}\nAnswer: {answer}",
    ),
}
TEXTBOOK = {
    "topics": "List {count} topics that a textbook on {name} treats, one on each line and nothing else.",
    "passage": 'Write a passage of a textbook on {name} that explains the topic "{topic}".',
    "exam": 'Write {count} exam questions on the topic "{topic}" of a textbook on {name}, each with its short answer. '
    "Write each as two lines, the first beginning with Q: and the second with A:.",
}
"""What is asked for the forget set of a target that has a name only."""


class NoAnswer(LetheError):
    """The model cannot be asked."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How much is made: variants of each form for each source, near misses, topics of a textbook and exam questions on
    each, the share of sources held out; `answers`: whether the model is asked for answers that are missing."""

    forms: tuple[str, ...] = tuple(FORMS)
    variants: int = 2
    near_misses: int = 100
    topics: int = 10
    exam: int = 4
    holdout: float = 0.2
    answers: bool = False
    seed: int = 0


@dataclass(slots=True)
class Data:
    """The sets by the names of their files, and how many texts were kept or dropped, by form and reason."""

    sets: dict[str, list[Example]]
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def count(self, form: str, what: str, by: int = 1) -> None:
        self.counts.setdefault(form, Counter())[what] += by

    def write(self, folder: Path, about: Mapping[str, object]) -> None:
        """A file of JSON lines for each set, as the trainers read them, and `report.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, examples in self.sets.items():
            lines = [json.dumps(_row(example), ensure_ascii=False) for example in examples]
            (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        report = {
            **about,
            "rows": {name: len(rows) for name, rows in self.sets.items()},
            "forms": {form: dict(sorted(count.items())) for form, count in sorted(self.counts.items())},
        }
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


class Writer:
    """The language model that writes. At most `at_once` questions wait for it at a time; one that fails in a way that
    may pass is asked again `retries` times."""

    def __init__(
        self,
        base_url: str,
        model: str,
        key: str | None,
        *,
        at_once: int = 4,
        retries: int = 3,
        timeout_s: float = 120.0,
    ) -> None:
        from openai import AsyncOpenAI

        self.model = model
        self._url = base_url
        self._client: AsyncOpenAI = AsyncOpenAI(
            base_url=base_url, api_key=key or "none", max_retries=retries, timeout=timeout_s
        )
        self._room = asyncio.Semaphore(at_once)

    async def write(self, ask: str | list[dict[str, str]], seed: int, *, temperature: float = 0.8) -> str:
        """What the model says to `ask`, a question or a conversation, stripped.

        Raises:
            NoAnswer: it cannot be asked.
        """
        import openai

        try:
            async with self._room:
                said = await self._client.chat.completions.create(
                    model=self.model,
                    messages=[{"role": "user", "content": ask}] if isinstance(ask, str) else ask,  # type: ignore[arg-type]
                    temperature=temperature,
                    seed=seed,
                    max_tokens=512,
                )
        except (openai.AuthenticationError, openai.PermissionDeniedError):
            raise NoAnswer(
                f"{self._url} does not take the key; set OPENAI_API_KEY to one that it does."
            ) from None
        except openai.NotFoundError:
            raise NoAnswer(
                f"{self._url} has no model '{self.model}'; give another --model or --base-url."
            ) from None
        except openai.APIStatusError as error:
            raise NoAnswer(f"{self._url} answered {error.status_code}; look at its log.") from None
        except (openai.APIError, ValueError):
            raise NoAnswer(f"No model answers at {self._url}; check --base-url, or try again.") from None
        choice = next(iter(said.choices or ()), None)
        return ((choice.message.content if choice else None) or "").strip()

    async def close(self) -> None:
        await self._client.close()


async def make(
    spec: TargetSpec,
    forget: Sequence[Example],
    retain: Sequence[Example],
    writer: Writer | None,
    wanted: Wanted,
) -> Data:
    """`forget`, `holdout`, `perturbed` and `retain` for a target, from examples of it; where there are none, from its
    name. The same seed and the same texts of the writer give the same sets. Without a writer nothing is reworded.

    Raises:
        BadRequest: the examples do not suffice, or say across splits what is one thing.
        NoAnswer: the writer cannot be asked.
    """
    data = Data({})
    if not forget:
        forget = await _textbook(spec, _needed(writer), wanted, data)
    check(forget, retain)
    kept, held = split([_sourced(example) for example in forget], wanted.holdout, wanted.seed)
    refuse_leaks({"forget": kept, "holdout": held, "retain": retain}, spec.names())
    if wanted.answers:
        kept, held = [tuple(await _answered(part, _needed(writer), data)) for part in (kept, held)]
        retain = await _answered(retain, _needed(writer), data)
    taken = {_plain(e) for e in (*kept, *held, *retain)}
    data.sets = {"forget": list(kept), "holdout": list(held), "perturbed": [], "retain": list(retain)}
    if writer is not None:
        judging = tuple(form for form in wanted.forms if FORMS[form].makes != "wrong")
        for name, sources, forms in (("forget", kept, wanted.forms), ("holdout", held, judging)):
            apart = [*data.sets["holdout" if name == "forget" else "forget"], *_naming(retain, spec)]
            elsewhere = taken - set(map(_plain, sources))
            for example, form in await _variants(spec, sources, writer, replace(wanted, forms=forms), data):
                wrong = FORMS[form].makes == "wrong"
                if not wrong and (_leaks(example, apart) or _plain(example) in elsewhere):
                    data.count(form, "in another set")
                else:
                    data.sets["perturbed" if wrong else name].append(example)
                    data.count(form, "kept")
    missed = await _missed(spec, data, writer, wanted)
    data.sets["retain"] += missed
    refuse_leaks({name: rows for name, rows in data.sets.items() if name != "perturbed"}, spec.names())
    check(data.sets["forget"], data.sets["retain"])
    return data


def refuse_leaks(sets: Mapping[str, Sequence[Example]], names: Sequence[str]) -> None:
    """Whether no set asks what another does: in the same words but for case and signs, or in nearly the same ones. A
    question that does not name the target may be as near as it likes: that is what near misses are.

    Raises:
        BadRequest: two do; the message names rows by their number and holds none of their text.
    """
    seen: list[tuple[str, int, str, frozenset[str]]] = []
    for name, examples in sets.items():
        for number, example in enumerate(examples, 1):
            text = _plain(example)
            bag = frozenset(text.split())
            close = any(mentions(example.turns[-1][1], one) for one in names)
            for other, at, said, words in seen:
                if other != name and (said == text or (close and _near(bag, words))):
                    raise BadRequest(
                        f"Row {number} of {name} asks what row {at} of {other} asks; give both the same `source`, or "
                        "leave one out."
                    )
            seen.append((name, number, text, bag))


async def _variants(
    spec: TargetSpec, sources: Sequence[Example], writer: Writer, wanted: Wanted, data: Data
) -> list[tuple[Example, str]]:
    """Variants that hold what they must, each once, in the order of sources and forms."""
    asked = [
        (example, form, number)
        for example in sources
        for form in wanted.forms
        if example.answer or FORMS[form].makes == "question"
        for number in range(wanted.variants)
    ]

    async def one(example: Example, form: str, number: int) -> str:
        fields = {"question": example.turns[-1][1], "answer": example.answer, "name": spec.name}
        ask = FORMS[form].ask.format(**fields)
        return await writer.write(ask, _seed(wanted.seed, form, number, example))

    said = await _together(one(*each) for each in asked)
    found, seen = [], set(map(_whole, sources))
    for (example, form, _), text in zip(asked, said, strict=True):
        variant, fault = _taken(spec, example, FORMS[form].makes, text)
        if fault is None and _whole(variant) in seen:
            fault = "same"
        if fault is None:
            seen.add(_whole(variant))
            found.append((variant, form))
        else:
            data.count(form, fault)
    return found


def _taken(spec: TargetSpec, source: Example, makes: Makes, text: str) -> tuple[Example, str | None]:
    """The variant that `text` makes of its source, and what is wrong with it."""
    line = text.strip().strip("\"'\u201c\u201d").strip()
    question, answer = source.turns[-1][1], source.answer
    named = any(mentions(line, name) for name in spec.names())
    must = makes == "question" and any(mentions(question, name) for name in spec.names())
    if makes in ("question", "reversed"):
        turns = (*source.turns[:-1], (source.turns[-1][0], line))
        variant = replace(source, turns=turns, answer=spec.name if makes == "reversed" else answer)
    else:
        variant = replace(source, answer=line)
    before = question if makes in ("question", "reversed") else answer
    if not plain_words(line).strip():
        return variant, "empty"
    if plain_words(line) == plain_words(before) or (
        makes == "wrong" and plain_words(answer) in plain_words(line)
    ):
        return variant, "same"
    if makes == "question" and answer and plain_words(answer) in plain_words(line):
        return variant, "tells the answer"
    if makes == "reversed" and not _tells(line, source, spec):
        return variant, "not what was asked for"
    if "\n" in line or (must and not named) or (makes == "reversed" and named):
        return variant, "not what was asked for"
    return variant, None


def _tells(line: str, source: Example, spec: TargetSpec) -> bool:
    """Whether a reversed question holds a word of what the answer adds to its question; short words tell nothing."""
    known = set(plain_words(" ".join((source.turns[-1][1], *spec.names()))).split())
    added = {word for word in plain_words(source.answer).split() if len(word) > _SHORT} - known
    return not added or not added.isdisjoint(plain_words(line).split())


async def _textbook(spec: TargetSpec, writer: Writer, wanted: Wanted, data: Data) -> list[Example]:
    """A forget set from a name: passages and exam questions by topic, each topic a source."""

    async def ask(part: str, number: int, **fields: object) -> str:
        text = TEXTBOOK[part].format(name=spec.name, **fields)
        return await writer.write(text, _seed(wanted.seed, part, number))

    listed = (await ask("topics", 0, count=wanted.topics)).splitlines()
    topics = list(dict.fromkeys(topic for line in listed if (topic := _LISTED.sub("", line).strip())))
    topics = topics[: wanted.topics]
    data.count("topics", "kept", len(topics))
    passages = await _together(ask("passage", i, topic=topic) for i, topic in enumerate(topics))
    exams = await _together(ask("exam", i, topic=topic, count=wanted.exam) for i, topic in enumerate(topics))
    rows: dict[str, Example] = {}
    for topic, passage, exam in zip(topics, passages, exams, strict=True):
        pairs = [("passage", f"Explain {topic} ({spec.name}).", passage)]
        pairs += [("exam", question, answer) for question, answer in _PAIR.findall(exam)]
        if len(pairs) == 1:
            data.count("exam", "not what was asked for")
        for part, question, answer in pairs:
            example = Example((("user", question),), answer, topic)
            fault = (
                "empty" if not plain_words(answer).strip() else "same" if _plain(example) in rows else None
            )
            data.count(part, fault or "kept")
            if fault is None:
                rows[_plain(example)] = example
    if not rows:
        raise BadRequest(
            f"The model '{writer.model}' wrote nothing that can be used about the target; give examples, or another "
            "--model."
        )
    return list(rows.values())


async def _missed(spec: TargetSpec, data: Data, writer: Writer | None, wanted: Wanted) -> list[Example]:
    """Near misses of what is in the forget set, for the retain set."""
    own = [e.turns[-1][1] for e in data.sets["forget"]]
    texts = (
        near_misses(spec, own, (), wanted.near_misses, random.Random(wanted.seed))
        if wanted.near_misses
        else []
    )
    taken = {_plain(e) for rows in data.sets.values() for e in rows}
    found: dict[str, Example] = {}
    for text in texts:
        example = Example((("user", text),), source=f"near:{len(found)}")
        if _plain(example) in taken or any(mentions(text, name) for name in spec.names()):
            data.count("near miss", "in another set")
        else:
            taken.add(_plain(example))
            found[text] = example
    data.count("near miss", "kept", len(found))
    examples = list(found.values())
    return await _answered(examples, _needed(writer), data) if wanted.answers else examples


async def _answered(examples: Sequence[Example], writer: Writer, data: Data) -> list[Example]:
    """With the model's own answers where they are missing; an empty one leaves its example without."""
    bare = [example for example in examples if not example.answer]
    said = await _together(writer.write(example.messages, 0, temperature=0.0) for example in bare)
    data.count("answers", "kept", sum(map(bool, said)))
    texts = iter(said)
    return [example if example.answer else replace(example, answer=next(texts)) for example in examples]


async def _together(asked: Iterable[object]) -> list[str]:
    """All answers in order; the first failure ends the others."""
    tasks: list[asyncio.Task[str]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in asked]  # type: ignore[arg-type]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _naming(examples: Sequence[Example], spec: TargetSpec) -> list[Example]:
    return [e for e in examples if any(mentions(e.turns[-1][1], name) for name in spec.names())]


def _leaks(example: Example, apart: Sequence[Example]) -> bool:
    """Whether it asks nearly what one of those asks that it has to be apart from."""
    bag = frozenset(_plain(example).split())
    return any(_near(bag, frozenset(_plain(one).split())) for one in apart)


def _near(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= _NEAR * len(one | other)


def _needed(writer: Writer | None) -> Writer:
    if writer is None:
        raise BadRequest(
            "A model has to write for this; give --base-url and --model, or examples with answers."
        )
    return writer


def _sourced(example: Example) -> Example:
    """A source that tells nothing of the text."""
    return replace(example, source=hashlib.sha256(example.origin.encode()).hexdigest()[:16])


def _seed(seed: int, form: str, number: int, example: Example | None = None) -> int:
    text = json.dumps([seed, form, number, example.turns if example else None])
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) >> 1


def _plain(example: Example) -> str:
    return plain_words(" ".join(text for _, text in example.turns))


def _whole(example: Example) -> tuple[str, str]:
    return _plain(example), plain_words(example.answer)


def _row(example: Example) -> dict[str, object]:
    turns = [{"role": role, "content": content} for role, content in example.turns]
    said: dict[str, object] = {"turns": turns}
    if len(turns) == 1 and turns[0]["role"] == "user":
        said = {"prompt": turns[0]["content"]}
    return {**said, "answer": example.answer, "source": example.source}


@click.command(
    epilog="Example: python -m classifiers.augment --target jane.json --out data/jane "
    "--base-url http://127.0.0.1:9000/v1 --model qwen"
)
@click.option(
    "--target", type=click.File(encoding="utf-8"), required=True, help="The target as JSON; - is the input."
)
@click.option("--forget", type=_File, help="Examples in place of the target's, JSON lines.")
@click.option("--retain", type=_File, help="What must stay, in place of the target's, JSON lines.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--base-url", metavar="URL", help="An OpenAI-compatible endpoint; its key is OPENAI_API_KEY.")
@click.option("--model", metavar="NAME", help="The model there that writes.")
@click.option(
    "--form", "forms", type=click.Choice(list(FORMS)), multiple=True, help="Repeatable.  [default: all]"
)
@click.option(
    "--variants", type=click.IntRange(0), default=2, show_default=True, help="Of each form and source."
)
@click.option("--near-misses", type=click.IntRange(0), default=100, show_default=True)
@click.option(
    "--topics", type=click.IntRange(1), default=10, show_default=True, help="Where there are no examples."
)
@click.option("--exam", type=click.IntRange(1), default=4, show_default=True, help="Questions on each topic.")
@click.option(
    "--holdout", type=click.FloatRange(0, 1, True, True), default=0.2, show_default=True, metavar="SHARE"
)
@click.option(
    "--answers", is_flag=True, help="Ask the model for answers that are missing; it is the one to train."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--at-once", type=click.IntRange(1), default=4, show_default=True, help="Questions to the model."
)
def main(
    target: IO[str],
    forget: Path | None,
    retain: Path | None,
    out: Path,
    base_url: str | None,
    model: str | None,
    forms: tuple[str, ...],
    at_once: int,
    **wanted: Any,
) -> None:
    """Make training data from a target: forget.jsonl, holdout.jsonl, perturbed.jsonl and retain.jsonl in --out."""
    if (base_url is None) != (model is None):
        raise click.UsageError("Give --base-url and --model together.")
    try:
        spec = read_target(target.read())
        examples = load_examples(forget) if forget else asked_of(spec.examples)
        kept = load_examples(retain) if retain else asked_of(spec.retain)
        amounts = Wanted(forms=forms or tuple(FORMS), **wanted)
        writer = None
        if base_url is not None and model is not None:
            writer = Writer(base_url, model, os.environ.get("OPENAI_API_KEY"), at_once=at_once)
        data = asyncio.run(_made(spec, examples, kept, writer, amounts))
    except LetheError as error:
        raise click.ClickException(error.message) from None
    data.write(out, {"model": model, "wanted": asdict(amounts)})
    for name, rows in data.sets.items():
        click.echo(f"{name}: {len(rows)} rows")
    for form, counts in sorted(data.counts.items()):
        click.echo(f"{form}: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))


async def _made(
    spec: TargetSpec,
    forget: Sequence[Example],
    retain: Sequence[Example],
    writer: Writer | None,
    wanted: Wanted,
) -> Data:
    try:
        return await make(spec, forget, retain, writer, wanted)
    finally:
        if writer is not None:
            await writer.close()


if __name__ == "__main__":
    main(prog_name="python -m classifiers.augment")
