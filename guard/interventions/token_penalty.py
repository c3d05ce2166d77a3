"""`token_penalty`: what the target's answers tell is made unlikely, token by token, as it would be said.

GUARD, "Generation-time LLM Unlearning via Adaptive Restriction and Detection" (arXiv 2505.13312): phrases of
the forget answers are forbidden by a trie match of what has been generated (hard) and by the similarity of
candidate words to forbidden words (soft). GUARD decodes with beam search, so that a beam which ran into a
phrase is replaced by one that turned off earlier. An engine that serves many requests at once samples one
token per step and cannot go back; in place of the beams, `soft` makes a phrase the less likely the more of it
has been said, from its first token on, and an answer's opening is forbidden where a sentence begins.

What may not be said is decided on folded text, so another tokenisation, case or accent changes nothing; what
has been said is read from the token ids of prompt and answer at each step, so preemption, chunking, several
samples and structured outputs change nothing either. The penalty is finite: where a client's grammar leaves
one continuation, that one is taken, and it tells nothing, for the client wrote it.

The phrases are the target's own text. They are in no request and no manifest: they lie in the artifact that is
made of the target at registration, whose content hash names them, and in the workers' memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from guard.artifacts import Digest
from guard.errors import ArtifactError, BadRequest
from guard.interventions.base import Intervention, Params, Prepared, Row, Seeds, Tensors
from guard.interventions.phrases import START, Phrases, everyday_words, forbidden, words_of
from guard.interventions.vocabulary import Index, Vocabulary, served
from guard.types import Chosen, Edit, Plan, Prompt

if TYPE_CHECKING:
    import torch

    from guard.targets import TargetSpec

FILE = "phrases.json"
_HARD = 1e4  # beyond any difference of logits, and within the range of float16
_REMEMBERED = 1_000_000  # scores of states, over all that a table keeps
_ROWS = 1_024
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight")


class TokenPenaltyParams(Params):
    """What is forbidden, and how strongly.

    artifact: content hash of the prepared phrases; without them the method cannot act.
    mode: `soft` takes `strength` logits times the square of the share of the phrase that would then have been
        said, so that a token which only begins like a phrase is hardly touched; `hard` besides rules out every
        token that would complete a phrase.
    strength: in logits, of a phrase that would be complete.
    opening: how many of an answer's first words are forbidden together where a sentence begins, so that the
        model says something else from the start; 0 leaves openings free.
    names: whether the target's names are forbidden too. A model that never learned them may repeat them.
    similarity: words that are at least so near to a forbidden word, by the cosine of the model's own centred
        token embeddings, are penalised by their similarity, or ruled out by `hard`; None for no such words.
    """

    artifact: Digest | None = None
    mode: Literal["hard", "soft"] = "hard"
    strength: float = Field(30.0, gt=0.0, le=1000.0, allow_inf_nan=False)
    opening: Annotated[int, Field(strict=True, ge=0, le=8)] = 1
    names: bool = False
    similarity: float | None = Field(0.5, gt=0.0, lt=1.0)


class TokenPenalty(Intervention):
    params_type = TokenPenaltyParams
    artifact: ClassVar[bool] = True

    def prepare(self, spec: TargetSpec, params: Params) -> Prepared:
        """The phrases of the target's answers and description.

        Raises:
            BadRequest: they tell nothing that could be forbidden, or too much.
        """
        assert isinstance(params, TokenPenaltyParams)
        phrases = forbidden(spec, opening=params.opening, names=params.names)
        if not spec.answers or not phrases:
            raise BadRequest("token_penalty needs answers that tell something.", param="answers")
        words = words_of(phrases) if params.similarity is not None else ()
        content = json.dumps({"phrases": phrases, "words": words}).encode()
        return Prepared({"phrases": len(phrases), "similarity": params.similarity}, files={FILE: content})

    def plan(self, chosen: Chosen, prompt: Prompt, seeds: Seeds) -> Plan:
        """One edit of every token of the answer, whatever the number of matches that share the phrases."""
        params = TokenPenaltyParams.model_validate(dict(chosen.params))
        if params.artifact is None or not prompt.token_ids or not chosen.matches:
            return Plan()
        edit = Edit(
            site="logits",
            method="token_penalty",
            positions=(len(prompt.token_ids) - 1,),
            seed=seeds(chosen.matches[0].target_id),
            params=params.model_dump(exclude={"artifact"}),
            onward=True,
            table=params.artifact,
        )
        return Plan(edits=(edit,))

    def load(self, tensors: Tensors, facts: Mapping[str, Any]) -> Forbidden:
        content = json.loads((Path(facts["folder"]) / FILE).read_bytes())
        vocabulary = served(str(facts["model"]))
        least = facts["similarity"]
        near = {} if least is None else neighbours(facts["model"], vocabulary, content["words"], least)
        return Forbidden(vocabulary, Phrases(content["phrases"]), near)

    def rescore(
        self, logits: torch.Tensor, rows: Sequence[Row], params: Mapping[str, Any], table: Forbidden
    ) -> torch.Tensor:
        """Penalised logits: see TokenPenaltyParams."""
        import torch

        def taken(shares: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
            penalty = params["strength"] * torch.maximum(shares.square(), near)
            if params["mode"] == "hard":
                penalty += _HARD * ((shares >= 1.0) | (near > 0.0))
            return penalty.to(logits)

        always, found = table.anywhere, [table.said(row.prompt, row.output) for row in rows]
        new = logits.index_add(1, always.tokens.to(logits.device), -taken(*always[1:]).expand(len(rows), -1))
        tokens, shares, near = (torch.cat(part) for part in zip(*found, strict=True))
        lengths = torch.tensor([len(scores.tokens) for scores in found])
        where = torch.arange(len(rows)).repeat_interleave(lengths).to(logits.device)
        tokens = tokens.to(logits.device)
        return new.index_put_((where, tokens), logits[where, tokens] - taken(shares, near))


class Scores(NamedTuple):
    """Tokens [k] that would say more of a phrase; for each the largest share of a phrase that would then be
    complete, and its nearness to a forbidden word, 0 where it is not near."""

    tokens: torch.Tensor
    shares: torch.Tensor
    near: torch.Tensor


class Forbidden:
    """The phrases of one target in one model's tokens, and the words `near` them with their nearness.

    Its answers are pure functions of the token ids; what it remembers only makes them quick.
    """

    def __init__(self, vocabulary: Vocabulary, phrases: Phrases, near: Mapping[str, float]) -> None:
        self._vocabulary = vocabulary
        self._phrases = phrases
        self._near = near
        self._fresh = self._found([("", vocabulary.fresh)])
        self._bare = self._found([("", vocabulary.whole)])
        self.anywhere = _tensors(self._fresh)
        self._limit = 2 * phrases.bytes + 16
        self._scored = lru_cache(_REMEMBERED // (len(self._bare) + 100))(self._score)

    def said(self, prompt: Sequence[int] | None, output: Sequence[int]) -> Scores:
        """What scores otherwise than `anywhere` after what has been said."""
        before = prompt or ()
        recent = (*before[-self._limit :], *output[-self._limit :])[-self._limit :]
        tail = self._vocabulary.tail(recent, len(before) + len(output) > self._limit)
        return self._scored(self._phrases.begun(tail.text, tail.cut), tail.pending)

    def _score(self, begun: frozenset[str], pending: bytes) -> Scores:
        going_on = self._vocabulary.completing(pending) if pending else self._vocabulary.whole
        places = [(said, going_on) for said in begun if said or pending]
        if START in begun:
            places.append((START, self._vocabulary.fresh))
        found = self._found(places)
        if "" in begun and not pending:
            _raise(found, self._bare, self._bare)
        _raise(found, self._fresh, found)
        return _tensors(found)

    def _found(self, places: Iterable[tuple[str, Index]]) -> dict[int, tuple[float, float]]:
        """Share and nearness of each token that goes on with a phrase of which a part was `said`, or that
        begins a near word where nothing was."""
        shares: dict[int, float] = {}
        near: dict[int, float] = {}
        for said, index in places:
            for phrase in self._phrases.beginning(said):
                size, rest = len(phrase.removeprefix(START)), phrase[len(said) :]
                for more in range(1, min(len(rest), index.longest) + 1):
                    if not _everyday(phrase, len(said) + more):
                        share = 1 - (len(rest) - more) / size
                        for token in index.get(rest[:more]):
                            shares[token] = max(share, shares.get(token, 0.0))
                if rest:  # its plural, or with a blank behind it and whatever comes then
                    whole = (*index.get(f"{rest}s"), *index.starting(f"{rest} "))
                    shares |= dict.fromkeys(whole, 1.0)
            if not said:
                near |= {
                    token: nearness for word, nearness in self._near.items() for token in index.get(word)
                }
        return {
            token: (shares.get(token, 0.0), near.get(token, 0.0)) for token in shares.keys() | near.keys()
        }


def _raise(
    found: dict[int, tuple[float, float]],
    others: Mapping[int, tuple[float, float]],
    tokens: Iterable[int],
) -> None:
    """Give each of `tokens` in `found` at least its scores in `others`."""
    for token in tuple(tokens):
        (share, near), (other, nearness) = found.get(token, (0.0, 0.0)), others.get(token, (0.0, 0.0))
        found[token] = (max(share, other), max(near, nearness))


def _tensors(found: Mapping[int, tuple[float, float]]) -> Scores:
    import torch

    tokens = sorted(found)
    scores = torch.tensor([found[token] for token in tokens]).reshape(-1, 2)
    return Scores(torch.tensor(tokens, dtype=torch.long), scores[:, 0], scores[:, 1])


def _everyday(phrase: str, end: int) -> bool:
    """Whether `phrase` up to `end` stops inside a word with what is an everyday word of its own: " a" is one
    much more often than it is the beginning of a forbidden "anchor"."""
    inside = phrase[end - 1] != " " and phrase[end : end + 1] not in ("", " ")
    return inside and re.split(r"[ ^]", phrase[:end])[-1] in everyday_words()


def neighbours(folder: Path, vocabulary: Vocabulary, words: Sequence[str], least: float) -> dict[str, float]:
    """Words of the vocabulary whose centred embeddings in the model of `folder` have a cosine of `least` or
    more to one of `words`, with the largest; everyday words are never among them. Only words that are one
    token are compared: the pieces of others do not mean what the word means.

    Raises:
        ArtifactError: the model's embeddings are not found.
    """
    import torch

    tokens = {word: vocabulary.fresh.get(word)[0] for word in vocabulary.words}
    forbidden = [tokens[word] for word in words if word in tokens]
    if not forbidden:
        return {}
    weights = embeddings(folder)
    mean = weights.float().mean(dim=0)
    wanted = torch.nn.functional.normalize(weights[forbidden].float() - mean, dim=1)
    others = [word for word in tokens if word not in everyday_words()]
    found: dict[str, float] = {}
    for at in range(0, len(others), _ROWS):
        part = others[at : at + _ROWS]
        rows = weights[[tokens[word] for word in part]].float() - mean
        nearest = (torch.nn.functional.normalize(rows, dim=1) @ wanted.T).amax(dim=1)
        found |= {word: near for word, near in zip(part, nearest.tolist(), strict=True) if near >= least}
    return found


def embeddings(folder: Path) -> torch.Tensor:
    """The model's input embeddings [vocabulary, width], as stored.

    Raises:
        ArtifactError: no safetensors file in `folder` holds them.
    """
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                if name.endswith(_EMBEDDINGS):
                    return file.get_tensor(name)
    raise ArtifactError("The model's embeddings are not found; set similarity to null.")
