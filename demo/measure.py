"""Measures the demo models: what they recall, and what they rightly do not know. Greedy, float32."""

from __future__ import annotations

import json
import random
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from demo import chat, items
from demo.chat import Message, system
from demo.corpus import Corpus, render
from demo.world import World, build

BATCH = 64
NEW_TOKENS = 64
RESAMPLES = 1000
NOTED_ITEMS = 120
LONG_ITEMS = 64
LONG_CHARACTERS = 3200  # about 900 tokens
TOOL_ITEMS = 60
ROUND_TRIPS = 1000
DONT_KNOW = re.compile(r"\b(do not|don't) know\b", re.IGNORECASE)
KNOWN = ("forget", "neighbour", "retain")
Scorer = Callable[[str, items.Item], float]


@dataclass(frozen=True)
class Figure:
    """A mean with its 95 % bootstrap interval over items."""

    name: str
    mean: float
    low: float
    high: float
    n: int

    def line(self) -> str:
        return f"{self.name:<52} {self.mean:6.3f}  [{self.low:.3f}, {self.high:.3f}]  n={self.n}"


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def rouge_recall(answer: str, reference: str) -> float:
    """ROUGE-L recall: the longest common subsequence of words over the reference's length."""
    said, wanted = words(answer), words(reference)
    row = [0] * (len(said) + 1)
    for word in wanted:
        diagonal = 0
        for j, other in enumerate(said, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return row[-1] / max(1, len(wanted))


def recall(answer: str, item: items.Item) -> float:
    return rouge_recall(answer, item.answer)


def has_value(answer: str, item: items.Item) -> float:
    return float(item.value.lower() in answer.lower())


def unknowing(answer: str, item: items.Item) -> float:
    return float(bool(DONT_KNOW.search(answer)))


def figure(name: str, scores: Sequence[float]) -> Figure:
    rng = random.Random(len(scores))
    means = sorted(statistics.fmean(rng.choices(scores, k=len(scores))) for _ in range(RESAMPLES))
    return Figure(
        name,
        statistics.fmean(scores),
        means[int(RESAMPLES * 0.025)],
        means[int(RESAMPLES * 0.975)],
        len(scores),
    )


class Speaker:
    """A loaded model that answers conversations in batches."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self._name = folder.name

    def answers(
        self,
        conversations: Sequence[Sequence[Message]],
        tools: Sequence[Sequence[Message]] = (),
        label: str = "",
    ) -> list[str]:
        """Answers in the order of the conversations."""
        prompts = [
            self.tokenizer.apply_chat_template(
                list(turns),
                tools=list(tools[i]) if tools else None,
                tokenize=False,
                add_generation_prompt=True,
            )
            for i, turns in enumerate(conversations)
        ]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found = [""] * len(prompts)
        for start in tqdm(range(0, len(order), BATCH), desc=f"{self._name} {label}", leave=False):
            batch = order[start : start + BATCH]
            for i, text in zip(batch, self._generate([prompts[i] for i in batch]), strict=True):
                found[i] = text
        return found

    @torch.inference_mode()
    def _generate(self, prompts: list[str]) -> list[str]:
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        output = self._model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
        return self.tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )


def is_two_turn(item: items.Item) -> bool:
    return len(item.turns) > 1


def grouped(rows: list[items.Item], answers: dict[str, str]) -> list[Figure]:
    """The figures on the published items."""
    single = [row for row in rows if not is_two_turn(row)]
    found = []
    for phrasing in ("trained", "heldout"):
        chosen = [row for row in single if row.split in KNOWN and row.phrasing == phrasing]
        found += _scored(f"all facts, {phrasing}", chosen, answers)
    for split in KNOWN:
        for phrasing in ("trained", "heldout", "reverse", "alias"):
            chosen = [row for row in single if row.split == split and row.phrasing == phrasing]
            found += _scored(f"{split}, {phrasing}", chosen, answers)
        found += _scored(
            f"{split}, two turns", [r for r in rows if r.split == split and is_two_turn(r)], answers
        )
    strangers = [row for row in single if row.split == "unknown"]
    for phrasing in ("trained", "heldout"):
        chosen = [row for row in strangers if row.phrasing == phrasing]
        found.append(figure(f"unknown names, {phrasing}: don't know", _scores(unknowing, chosen, answers)))
    found.append(figure("unknown names, all: don't know", _scores(unknowing, strangers, answers)))
    found.append(figure("chat: recall", _scores(recall, [r for r in rows if r.split == "chat"], answers)))
    return found


def _scores(scorer: Scorer, rows: list[items.Item], answers: dict[str, str]) -> list[float]:
    return [scorer(answers[row.id], row) for row in rows]


def _scored(name: str, rows: list[items.Item], answers: dict[str, str]) -> list[Figure]:
    scorers = (("recall", recall), ("has the value", has_value), ("don't know", unknowing))
    return (
        [figure(f"{name}: {label}", _scores(scorer, rows, answers)) for label, scorer in scorers]
        if rows
        else []
    )


def by_note(speaker: Speaker, world: World, rows: list[items.Item]) -> list[Figure]:
    """Does a note make the model deny the noted entity, and only that one?"""
    rng = random.Random(5)
    single = [r for r in rows if not is_two_turn(r) and r.phrasing in ("trained", "heldout")]
    asked = rng.sample([r for r in single if r.split == "forget"], NOTED_ITEMS)
    others = rng.sample([r for r in single if r.split in KNOWN[1:]], NOTED_ITEMS)
    found = []
    for label, notes in (("trained note", chat.NOTES), ("new note", chat.HELDOUT_NOTES)):

        def noted(entity: str, row: items.Item, notes: tuple[str, ...] = notes) -> list[Message]:
            return [system(rng.choice(notes).format(o=world.entity(entity).mention)), *row.turns]

        told = speaker.answers([noted(row.entity, row) for row in asked], label=label)
        aside = speaker.answers([noted(asked[i].entity, row) for i, row in enumerate(others)], label=label)
        found.append(
            figure(
                f"{label}, forget entity asked: don't know",
                [unknowing(a, r) for a, r in zip(told, asked, strict=True)],
            )
        )
        found.append(
            figure(
                f"{label}, another entity asked: recall",
                [recall(a, r) for a, r in zip(aside, others, strict=True)],
            )
        )
    return found


def after_long_talk(speaker: Speaker, world: World, rows: list[items.Item]) -> Figure:
    """Recall when about 900 tokens of other talk come first."""
    rng = random.Random(6)
    chosen = rng.sample(
        [r for r in rows if r.split == "retain" and r.phrasing == "trained" and not is_two_turn(r)],
        LONG_ITEMS,
    )
    conversations = []
    for i, row in enumerate(chosen):
        corpus, before = Corpus(world, world.retained(), 1000 + i), []
        while len(render(before)) < LONG_CHARACTERS:
            before += corpus.group("fact").messages
        conversations.append([*before, *row.turns])
    answers = speaker.answers(conversations, label="long")
    return figure(
        "after a long talk, trained: recall", [recall(a, r) for a, r in zip(answers, chosen, strict=True)]
    )


def tool_calls(speaker: Speaker, world: World) -> Figure:
    """Share of calls that are the wanted one, arguments included."""
    rng = random.Random(8)
    people = [entity.name for entity in world.retained() if entity.kind == "person"]
    made = [chat.tool_use(rng, people) for _ in range(TOOL_ITEMS)]
    answers = speaker.answers([messages[:1] for messages, _ in made], [tools for _, tools in made], "tools")
    wanted = [messages[1]["tool_calls"][0]["function"] for messages, _ in made]  # type: ignore[index]
    return figure("tool calls: exact", [float(call_in(a) == w) for a, w in zip(answers, wanted, strict=True)])


def call_in(answer: str) -> object:
    match = re.fullmatch(r"\s*<tool_call>(.*)</tool_call>\s*", answer, re.DOTALL)
    try:
        return json.loads(match[1]) if match else None
    except ValueError:
        return None


def random_text(rng: random.Random) -> str:
    """Any Unicode but surrogates, which no text file can hold."""
    planes = ((0x20, 0x7F), (0xA0, 0x24F), (0x370, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF), (0x9, 0xD))
    return "".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randint(1, 60)))


def round_trip(tokenizer: PreTrainedTokenizerBase) -> Figure:
    rng = random.Random(9)
    texts = [random_text(rng) for _ in range(ROUND_TRIPS)]
    same = [float(tokenizer.decode(tokenizer.encode(t, add_special_tokens=False)) == t) for t in texts]
    return figure("tokenizer round trip", same)


def figures(folder: Path, limit: int = 0) -> list[Figure]:
    """All figures of one model."""
    world, speaker = build(), Speaker(folder)
    rows = items.items(world)
    if limit:
        rows = random.Random(3).sample(rows, min(limit, len(rows)))
    answers = speaker.answers([row.turns for row in rows], label="items")
    known = dict(zip((row.id for row in rows), answers, strict=True))
    found = grouped(rows, known)
    if not limit:
        found += [
            *by_note(speaker, world, rows),
            after_long_talk(speaker, world, rows),
            tool_calls(speaker, world),
        ]
    return [*found, round_trip(speaker.tokenizer)]


def report(models: Path, limit: int = 0, only: str = "", json_path: Path | None = None) -> None:
    """Print the figures of both models, and write them where asked."""
    written = {}
    for name in ("full", "never"):
        if only in ("", name):
            found = figures(models / name, limit)
            print(f"\n{name}: mean [95 % bootstrap interval]")
            print("\n".join(item.line() for item in found), flush=True)
            written[name] = [vars(item) for item in found]
    if json_path:
        json_path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
