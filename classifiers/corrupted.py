"""What a model says to prompts of which some tokens are corrupted. The edit is the method's own, at its own places."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from classifiers.data import Example, encode
from guard.interventions.embedding_corruption import EmbeddingCorruption
from guard.interventions.noise import seed_of
from guard.metrics.rouge import rouge_l_recall
from guard.types import Chosen, Match, Prompt, Span

if TYPE_CHECKING:
    import torch

METHOD = "embedding_corruption"
Metric = Literal["recall", "probability"]
_EDIT = EmbeddingCorruption()
_BEYOND, _LONGEST = 8, 64  # tokens that an answer may have beyond the longest given one, and at most
_AT_ONCE = 128  # rows of a batch


@dataclass(frozen=True, slots=True)
class Row:
    """An example as the model reads it: the prompt, what matches there, and the answer, with the tokens that the
    server's `/score` takes for it."""

    prompt: Prompt
    match: Match
    answer: str
    answer_ids: tuple[int, ...]

    def edited(self, params: dict[str, Any]) -> tuple[int, ...]:
        """Positions that the method edits with these parameters."""
        (edit,) = _EDIT.plan(Chosen(METHOD, params, (self.match,)), self.prompt, lambda _: "0" * 16).edits
        return edit.positions

    def seed(self, draw: str) -> str:
        """16 hex digits for the noise of this draw."""
        return hashlib.sha256(f"{draw}:{self.prompt.token_ids}".encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Corruption:
    """The method's parameters, and factors [width] where each dimension has its own."""

    params: dict[str, Any]
    factors: torch.Tensor | None = None


class Reader:
    """Reads examples about somebody with these `names` as the model does."""

    def __init__(self, tokenizer: Any, names: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._names = tuple(names)

    def row(self, example: Example) -> Row:
        """The names in the prompt match; where none of them stands there, its last message does, as by its meaning."""
        from guard.detection.swaps import places
        from guard.engine.reading import encode as tokens_of
        from guard.engine.reading import read

        prompt = read(encode(self._tokenizer, replace(example, answer="")).ids, self._tokenizer)
        spans = tuple(span for name in self._names for span in places(prompt.text, name))
        if not spans:
            asked = example.turns[-1][1].strip()
            start = prompt.text.rfind(asked)
            spans = (Span(start, start + len(asked)),) if start >= 0 else ()
        match = Match("target", 1, 1.0, 0.5, "lexical", spans)
        return Row(prompt, match, example.answer, tuple(tokens_of(example.answer, self._tokenizer)))

    def of_somebody(self, example: Example, rng: random.Random) -> Row:
        """The same about somebody whom nobody knows: an invented name in question and answer."""
        from guard.detection.names import like
        from guard.detection.swaps import replace as swapped

        other = like(self._names[0], rng)
        turns, answer = example.turns, example.answer
        for name in sorted(self._names, key=len, reverse=True):
            turns = tuple((role, swapped(text, name, other)) for role, text in turns)
            answer = swapped(answer, name, other)
        return self.row(replace(example, turns=turns, answer=answer))


class Speaker:
    """A model that is asked under corruptions. All noise is a hash of the seed, the prompt and the draw, so that two
    strengths are compared under the same noise."""

    def __init__(self, model: Any, tokenizer: Any, *, seed: int, draws: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._draws = [f"{seed}:{draw}" for draw in range(draws)]

    @property
    def width(self) -> int:
        return int(self._model.get_input_embeddings().weight.shape[1])

    def scores(self, rows: Sequence[Row], corruption: Corruption | None, metric: Metric) -> list[float]:
        """For each row the mean over the draws: of `recall` of its answer (ROUGE-L) in what the model writes, or of the
        `probability` of its answer's tokens (TOFU's: their geometric mean)."""
        score = {"recall": self._recall, "probability": self._probability}[metric]
        drawn = [score(rows, corruption, draw) for draw in (self._draws if corruption else self._draws[:1])]
        return [sum(one) / len(one) for one in zip(*drawn, strict=True)]

    def answers(
        self, rows: Sequence[Row], corruption: Corruption | None, draw: str | None = None
    ) -> list[str]:
        """What the model writes, greedily; of the first draw."""
        longest = max((len(row.answer_ids) for row in rows), default=0)
        tokens = min(longest + _BEYOND, _LONGEST) if longest else _LONGEST
        said: list[str] = []

        def write(ids: torch.Tensor, mask: torch.Tensor) -> None:
            out = self._model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False,
                pad_token_id=self._tokenizer.eos_token_id,
            )  # fmt: skip
            said.extend(self._tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True))

        self._run(rows, [()] * len(rows), corruption, draw or self._draws[0], write)
        return said

    def _recall(self, rows: Sequence[Row], corruption: Corruption | None, draw: str) -> list[float]:
        said = self.answers(rows, corruption, draw)
        return [rouge_l_recall(row.answer, answer) for row, answer in zip(rows, said, strict=True)]

    def _probability(self, rows: Sequence[Row], corruption: Corruption | None, draw: str) -> list[float]:
        import torch

        found: list[float] = []
        answers = [row.answer_ids for row in rows]

        def weigh(ids: torch.Tensor, mask: torch.Tensor) -> None:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            logits = self._model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            ).logits
            for at, answer in enumerate(answers[len(found) : len(found) + len(ids)]):
                logs = logits[at, -len(answer) - 1 : -1].log_softmax(dim=-1)
                likely = logs.gather(1, torch.tensor(answer).unsqueeze(1))
                found.append(float(likely.mean().exp()))

        self._run(rows, answers, corruption, draw, weigh)
        return found

    def _run(
        self,
        rows: Sequence[Row],
        tails: Sequence[tuple[int, ...]],
        corruption: Corruption | None,
        draw: str,
        work: Callable[[torch.Tensor, torch.Tensor], None],
    ) -> None:
        """`work` on batches of prompts with their tails, padded on the left, their places corrupted."""
        import torch

        for start in range(0, len(rows), _AT_ONCE):
            batch = rows[start : start + _AT_ONCE]
            texts = [
                (*row.prompt.token_ids, *tail)
                for row, tail in zip(batch, tails[start : start + _AT_ONCE], strict=True)
            ]
            longest = max(map(len, texts))
            ids = torch.tensor([(0,) * (longest - len(text)) + text for text in texts])
            mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
            pads = [longest - len(text) for text in texts]
            with torch.inference_mode(), self._corrupted(batch, pads, corruption, draw):
                work(ids, mask)

    @contextmanager
    def _corrupted(
        self, rows: Sequence[Row], pads: Sequence[int], corruption: Corruption | None, draw: str
    ) -> Iterator[None]:
        """The first pass over a batch reads the prompts, and what follows is the answer's: it alone is edited."""
        import torch

        if corruption is None:
            yield
            return
        places = [(row.edited(corruption.params), seed_of(row.seed(draw))) for row in rows]
        index, position, seed = (
            torch.tensor(column)
            for column in zip(
                *((i, p, seed) for i, (found, seed) in enumerate(places) for p in found), strict=True
            )
        )
        column = position + torch.tensor(pads)[index]

        def corrupt(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            handle.remove()
            edited = output.clone()
            x = output[index, column].float()
            edited[index, column] = _EDIT.edit(
                x, position, seed, None, corruption.params, corruption.factors
            ).to(output.dtype)
            return edited

        handle = self._model.get_input_embeddings().register_forward_hook(corrupt)
        try:
            yield
        finally:
            handle.remove()
