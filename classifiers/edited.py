"""What a model says under a method that acts inside it: the method's own plan, edit and table, in a Hugging Face model.

It is what trainers measure, and what the engine is compared with. The answer's tokens are edited as the engine edits
them when it generates or scores one: where an edit goes `onward`, each at its own position as it is read.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from classifiers.activations import module_at
from classifiers.data import Example, encode
from guard import interventions
from guard.artifacts import Artifact
from guard.errors import BadRequest
from guard.interventions.noise import seed_of
from guard.metrics.rouge import rouge_l_recall
from guard.types import Chosen, Edit, Match, Message, Plan, Prompt, Span

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Metric = Literal["recall", "probability"]
Draw = Callable[[Prompt], str]
"""A prompt -> the seed of its noise, 16 hex digits."""
_BEYOND, _LONGEST = 8, 64  # tokens that an answer may have beyond the longest given one, and at most
_AT_ONCE = 128  # rows of a batch


def draws(seed: int, count: int) -> tuple[Draw, ...]:
    """So many draws of noise; each is a hash of the seed, the draw and the prompt, so that two treatments are compared
    under the same noise."""

    def drawn(number: int, prompt: Prompt) -> str:
        return hashlib.sha256(f"{seed}:{number}:{prompt.token_ids}".encode()).hexdigest()[:16]

    return tuple(partial(drawn, number) for number in range(count))


@dataclass(frozen=True, slots=True)
class Treatment:
    """A method as a target's rung has it. Of the artifact that `params` name it has the `facts`, the `table` that the
    method makes of it, and the `folder`, from which PEFT reads adapters."""

    method: str
    params: Mapping[str, Any]
    table: Any = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @classmethod
    def of(cls, artifact: Artifact, model: Path, **params: Any) -> Treatment:
        """The artifact's method as it acts on the model in that folder, with more `params`.

        Raises:
            ArtifactError: the artifact does not fit the method.
        """
        manifest = artifact.manifest
        about = {**manifest.facts, "digest": artifact.digest, "model": model, "folder": artifact.folder}
        table = interventions.load(manifest.method).load(artifact.tensors(), about)
        named = {"artifact": artifact.digest, **params}
        return cls(manifest.method, named, table, manifest.facts, artifact.folder)


@dataclass(frozen=True, slots=True)
class Row:
    """An example as the model reads it: the prompt, what matches there, and the answer, with the tokens that the
    server's `/score` takes for it."""

    prompt: Prompt
    match: Match
    answer: str
    answer_ids: tuple[int, ...]

    def plan(self, treatment: Treatment, draw: Draw = lambda _: "0" * 16) -> Plan:
        """What the method plans for the prompt."""
        chosen = Chosen(treatment.method, treatment.params, (self.match,), treatment.facts)
        return interventions.load(treatment.method).plan(chosen, self.prompt, lambda _: draw(self.prompt))

    def edits(self, treatment: Treatment, draw: Draw = lambda _: "0" * 16) -> tuple[Edit, ...]:
        """What it edits there.

        Raises:
            BadRequest: nothing: it does not act inside the model, or lacks its artifact.
        """
        edits = self.plan(treatment, draw).edits
        if not edits:
            raise BadRequest(
                f"{treatment.method} edits nothing inside the model, or lacks what it needs for that."
            )
        return edits

    def edited(self, treatment: Treatment) -> tuple[int, ...]:
        """Positions of the prompt that are edited."""
        return tuple(sorted({position for edit in self.edits(treatment) for position in edit.positions}))


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

        ids = encode(self._tokenizer, replace(example, answer="")).ids
        prompt = read(ids, self._tokenizer, messages=tuple(Message(*turn) for turn in example.turns))
        spans = tuple(span for name in self._names for span in places(prompt.text, name))
        if not spans:
            asked = example.turns[-1][1].strip()
            start = prompt.text.rfind(asked)
            spans = (Span(start, start + len(asked)),) if start >= 0 else ()
        match = Match("target", 1, 1.0, 0.5, "lexical", spans)
        return Row(prompt, match, example.answer, tuple(tokens_of(example.answer, self._tokenizer)))

    def under(self, row: Row, treatment: Treatment) -> Row:
        """The row as the model reads it under a method that puts text into the prompt and edits nothing inside."""
        from guard.engine.reading import insert

        put = insert(row.prompt, row.plan(treatment).insertions, self._tokenizer).token_ids
        return replace(row, prompt=replace(row.prompt, token_ids=tuple(put)))

    def of_somebody(self, example: Example, rng: random.Random) -> Row:
        """The row of `about_somebody`."""
        return self.row(self.about_somebody(example, rng))

    def about_somebody(self, example: Example, rng: random.Random) -> Example:
        """The same about somebody whom nobody knows: an invented name in question and answer."""
        from guard.detection.names import like
        from guard.detection.swaps import replace as swapped

        other = like(self._names[0], rng)
        turns, answer = example.turns, example.answer
        for name in sorted(self._names, key=len, reverse=True):
            turns = tuple((role, swapped(text, name, other)) for role, text in turns)
            answer = swapped(answer, name, other)
        return replace(example, turns=turns, answer=answer)


class Speaker:
    """A model that is asked as it is (no treatment) or under one, with the noise of each of `drawn`."""

    def __init__(self, model: Any, tokenizer: Any, drawn: Sequence[Draw]) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._draws = tuple(drawn)

    @property
    def width(self) -> int:
        return int(self._model.get_input_embeddings().weight.shape[1])

    def scores(self, rows: Sequence[Row], treatment: Treatment | None, metric: Metric) -> list[float]:
        """For each row the mean over the draws: of `recall` of its answer (ROUGE-L) in what the model writes, or of the
        `probability` of its answer's tokens (TOFU's: their geometric mean)."""
        score = {"recall": self._recall, "probability": self._probability}[metric]
        drawn = [score(rows, treatment, draw) for draw in (self._draws if treatment else self._draws[:1])]
        return [sum(one) / len(one) for one in zip(*drawn, strict=True)]

    def answers(
        self, rows: Sequence[Row], treatment: Treatment | None, draw: Draw | None = None
    ) -> list[str]:
        """What the model writes, greedily; of the first draw."""
        longest = max((len(row.answer_ids) for row in rows), default=0)
        tokens = min(longest + _BEYOND, _LONGEST) if longest else _LONGEST

        def write(batch: Batch, ids: torch.Tensor, mask: torch.Tensor) -> list[str]:
            out = self._model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False,
                pad_token_id=self._tokenizer.eos_token_id,
                logits_processor=[
                    lambda said, logits: batch.rescored(logits, said[:, ids.shape[1] :].tolist())
                ],
            )  # fmt: skip
            found: list[str] = self._tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
            return found

        return self._run(rows, [()] * len(rows), treatment, draw or self._draws[0], write)

    def _recall(self, rows: Sequence[Row], treatment: Treatment | None, draw: Draw) -> list[float]:
        said = self.answers(rows, treatment, draw)
        return [rouge_l_recall(row.answer, answer) for row, answer in zip(rows, said, strict=True)]

    def _probability(self, rows: Sequence[Row], treatment: Treatment | None, draw: Draw) -> list[float]:
        import torch

        def weigh(batch: Batch, ids: torch.Tensor, mask: torch.Tensor) -> list[float]:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            logits = self._model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
            ).logits
            answers = [row.answer_ids for row in batch.rows]
            found: list[list[float]] = [[] for _ in answers]
            for place in range(max(map(len, answers))):
                going = [i for i, answer in enumerate(answers) if place < len(answer)]
                column = torch.tensor([place - len(answers[i]) - 1 for i in going])
                said = [answers[i][:place] for i in going]
                logs = batch.rescored(logits[going, column], said, going).double().log_softmax(dim=-1)
                for i, log in zip(going, logs, strict=True):
                    found[i].append(float(log[answers[i][place]]))
            return [torch.tensor(one).mean().exp().item() for one in found]

        return self._run(rows, [row.answer_ids for row in rows], treatment, draw, weigh)

    def _run(
        self,
        rows: Sequence[Row],
        tails: Sequence[tuple[int, ...]],
        treatment: Treatment | None,
        draw: Draw,
        work: Callable[[Batch, torch.Tensor, torch.Tensor], list[T]],
    ) -> list[T]:
        """What `work` makes of each row, of batches of prompts with their tails, padded on the left."""
        import torch

        edits = [row.edits(treatment, draw) if treatment else () for row in rows]
        found: dict[int, T] = {}
        for chosen in _together(edits):
            texts = [(*rows[i].prompt.token_ids, *tails[i]) for i in chosen]
            longest = max(map(len, texts))
            pads = [longest - len(text) for text in texts]
            ids = torch.tensor([(0,) * pad + text for pad, text in zip(pads, texts, strict=True)])
            mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
            batch = Batch(treatment, [rows[i] for i in chosen], [edits[i] for i in chosen], pads)
            with batch.inside(self._model), torch.inference_mode():
                found |= zip(chosen, work(batch, ids, mask), strict=True)
        return [found[i] for i in range(len(rows))]


class Batch:
    """Rows, padded on the left by `pads` columns, while the model reads them and what comes behind them."""

    def __init__(
        self,
        treatment: Treatment | None,
        rows: Sequence[Row],
        edits: Sequence[tuple[Edit, ...]],
        pads: Sequence[int],
    ) -> None:
        self.rows = rows
        self._treatment = treatment
        self._edits = edits
        self._pads = pads
        self._columns = range(0)  # that the running pass reads: the prompts at first, then what was generated

    @contextmanager
    def inside(self, model: Any) -> Iterator[None]:
        """The model is edited; afterwards it is as before."""
        if self._treatment is None:
            yield
            return
        sites = {(edit.site, edit.layer) for edits in self._edits for edit in edits}
        with ExitStack() as stack:
            stack.enter_context(_adapted(model, self._treatment.folder, _scale(self._edits[0])))
            hooks = [model.get_input_embeddings().register_forward_pre_hook(self._begin)]
            hooks += [
                module_at(model, site, layer).register_forward_hook(partial(self._edit, site, layer))
                for site, layer in sites
                if site not in ("adapter", "logits")
            ]
            for hook in hooks:
                stack.callback(hook.remove)
            yield
            if (forget := getattr(self._treatment.table, "forget", None)) is not None:
                for i in range(len(self.rows)):
                    forget(str(i))

    def rescored(
        self, logits: torch.Tensor, said: Sequence[Sequence[int]], which: Sequence[int] | None = None
    ) -> torch.Tensor:
        """`logits` [n, vocab] of the tokens behind what was `said` in each of the rows `which`, all of them where it is
        None, edited."""
        if self._treatment is None:
            return logits
        about = [
            interventions.Row(str(i), self.rows[i].prompt.token_ids, output)
            for i, output in zip(range(len(said)) if which is None else which, said, strict=True)
        ]
        for edit in self._edits[0]:  # those of the logits are the same for every prompt
            if edit.site == "logits":
                method = interventions.load(edit.method)
                logits = method.rescore(logits.float(), about, edit.params, self._treatment.table)
        return logits

    def _begin(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        start = self._columns.stop
        self._columns = range(start, start + inputs[0].shape[1])

    def _edit(self, site: str, layer: int | None, module: Any, inputs: Any, output: Any) -> Any:
        import torch

        assert self._treatment is not None
        whole = output[0] if isinstance(output, tuple) else output
        new = whole.clone()
        for name, params, places in self._shares(site, layer):
            index, position, seed = (torch.tensor(part) for part in zip(*places, strict=True))
            column = position + torch.tensor(self._pads)[index] - self._columns.start
            x = new[index, column].float()
            method = interventions.load(name)
            x = method.edit(x, position, seed, layer, params, self._treatment.table)
            new[index, column] = x.to(new.dtype)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    def _shares(
        self, site: str, layer: int | None
    ) -> list[tuple[str, Mapping[str, Any], list[tuple[int, int, int]]]]:
        """What this pass edits there: method, parameters, and for each token its row, its position and its seed."""
        found: dict[str, tuple[str, Mapping[str, Any], list[tuple[int, int, int]]]] = {}
        for i, (row, edits, pad) in enumerate(zip(self.rows, self._edits, self._pads, strict=True)):
            start, end = self._columns.start - pad, self._columns.stop - pad
            for edit in edits:
                if (edit.site, edit.layer) != (site, layer):
                    continue
                answer = range(max(start, len(row.prompt.token_ids)), end) if edit.onward else ()
                here = [*(p for p in edit.positions if start <= p < end), *answer]
                if here:
                    key = repr((edit.method, sorted(edit.params.items())))
                    share = found.setdefault(key, (edit.method, edit.params, []))
                    share[2].extend((i, position, seed_of(edit.seed)) for position in here)
        return list(found.values())


def _together(edits: Sequence[tuple[Edit, ...]]) -> Iterator[list[int]]:
    """Rows that are run together, by their number: PEFT scales an adapter for all rows of a batch."""
    order = sorted(range(len(edits)), key=lambda i: _scale(edits[i]) or 0.0)
    for _, group in groupby(order, key=lambda i: _scale(edits[i])):
        alike = list(group)
        yield from (alike[start : start + _AT_ONCE] for start in range(0, len(alike), _AT_ONCE))


def _scale(edits: tuple[Edit, ...]) -> float | None:
    """That of the adapter, where there is one."""
    return next((float(edit.params["scale"]) for edit in edits if edit.site == "adapter"), None)


@contextmanager
def _adapted(model: Any, folder: Path | None, scale: float | None) -> Iterator[None]:
    """The model with the adapter in `folder`, which adds `scale` times what it was trained to add."""
    if folder is None or scale is None:
        yield
        return
    from peft import PeftModel
    from peft.helpers import rescale_adapter_scale

    tuned = PeftModel.from_pretrained(model, str(folder))
    try:
        with rescale_adapter_scale(tuned, scale):
            yield
    finally:
        tuned.unload()
